"""Artifacts on disk: an ONNX file or an engine, and the manifest that says what it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edge.errors import ArtifactError, EngineMismatch
from edge.files import read_file, sha256_of
from edge.onnx_metadata import read_manifest as read_onnx_manifest
from edge.spec import Manifest

__all__ = [
    "foreign_header",
    "layers_path",
    "manifest_path",
    "read_engine",
    "read_manifest",
    "rebuild_command",
]

# A manifest of many layers has some hundred kilobytes, an engine of a detector some hundred MiB.
_MOST_BYTES = 16 << 20
_MOST_PLAN_BYTES = 16 << 30


def manifest_path(engine: Path) -> Path:
    """Where the manifest of an engine lies: `NAME.engine.json`."""
    return engine.with_name(engine.name + ".json")


def layers_path(engine: Path) -> Path:
    """Where the layer report of an engine lies: `NAME.engine.layers.json`."""
    return engine.with_name(engine.name + ".layers.json")


def read_manifest(artifact: str | Path) -> Manifest:
    """Read the manifest of an `.onnx` (in its metadata) or an `.engine` (in the `.json` beside it).

    Raises:
        ArtifactError: the file is missing, of another kind, or without a readable manifest.
        EngineMismatch: the engine has another checksum than its manifest's.
    """
    path = Path(artifact)
    if path.suffix == ".onnx":
        return read_onnx_manifest(path)
    if path.suffix != ".engine":
        raise ArtifactError(f"{path}: neither .onnx nor .engine")
    manifest = _beside(path)
    _verify(path, manifest, sha256_of(path))
    return manifest


def read_engine(engine: Path) -> tuple[bytes, Manifest]:
    """Read a plan and its manifest, and return the bytes that were verified.

    Raises:
        ArtifactError, EngineMismatch: as `read_manifest`.
    """
    manifest = _beside(engine)
    plan = read_file(engine, limit=_MOST_PLAN_BYTES)
    _verify(engine, manifest, hashlib.sha256(plan).hexdigest())
    return plan, manifest


def rebuild_command(engine: Path) -> str:
    """Return the command that builds this engine again from the ONNX file beside it."""
    return f"export-engine {engine.with_suffix('.onnx')} -o {engine.parent}"


def foreign_header(engine: Path) -> str:
    """What ultralytics put before a plan, and how to strip it; empty for a plain plan.

    Its header is a length of four bytes and so many bytes of JSON.
    """
    try:
        with engine.open("rb") as file:
            start = file.read(5)
        size = engine.stat().st_size
    except OSError:
        return ""
    length = int.from_bytes(start[:4], "little", signed=True)
    if start[4:] != b"{" or not 0 < length < min(_MOST_BYTES, size):
        return ""
    return (
        f"an engine of ultralytics, with {length} bytes of JSON in front of the plan (to strip "
        f"them: tail -c +{length + 5} {engine.name} > {engine.stem}.plan)"
    )


def _beside(engine: Path) -> Manifest:
    if not engine.is_file():
        raise ArtifactError(f"{engine}: no such file")
    path = manifest_path(engine)
    again = f"; rebuild both: {rebuild_command(engine)}"
    if not path.exists():
        header = foreign_header(engine)
        if header:
            raise ArtifactError(f"{engine}: {header}; build an engine from its ONNX file instead")
        raise ArtifactError(f"{engine}: its manifest {path.name} is missing{again}")
    try:
        return Manifest.from_json(read_file(path, limit=_MOST_BYTES), str(path))
    except ArtifactError as error:
        raise ArtifactError(f"{error}{again}") from error


def _verify(engine: Path, manifest: Manifest, sha256: str) -> None:
    if manifest.sha256 != sha256:
        raise EngineMismatch(
            f"{engine}: its sha256 {sha256[:12]} is not the {manifest.sha256[:12] or 'none'} of "
            f"{manifest_path(engine).name}: it is damaged, or from another build; "
            f"rebuild it: {rebuild_command(engine)}"
        )
