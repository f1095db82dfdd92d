"""Artifacts on disk: an ONNX file or an engine, and the manifest that says what it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edge.errors import ArtifactError, EngineMismatch
from edge.files import sha256_of
from edge.onnx_metadata import read_manifest as read_onnx_manifest
from edge.spec import Manifest

__all__ = [
    "layers_path",
    "manifest_path",
    "read_engine",
    "read_manifest",
    "rebuild_command",
]


def manifest_path(engine: Path) -> Path:
    """Where the manifest of an engine lies: `NAME.engine.json`."""
    return engine.with_name(engine.name + ".json")


def layers_path(engine: Path) -> Path:
    """Where the layer report of an engine lies: `NAME.engine.layers.json`."""
    return engine.with_name(engine.name + ".layers.json")


def read_manifest(artifact: str | Path) -> Manifest:
    """The manifest of an `.onnx` (in its metadata) or an `.engine` (in the `.json` beside it).

    Raises:
        ArtifactError: the file is missing, of another kind, or without a readable manifest.
        EngineMismatch: the engine's bytes are not those that its manifest speaks of.
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
    """The plan and its manifest; the bytes returned are the bytes that were verified.

    Raises:
        ArtifactError, EngineMismatch: as `read_manifest`.
    """
    manifest = _beside(engine)
    try:
        plan = engine.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{engine}: cannot be read: {error.strerror}") from error
    _verify(engine, manifest, hashlib.sha256(plan).hexdigest())
    return plan, manifest


def rebuild_command(engine: Path) -> str:
    """What to type to have this engine made again from the ONNX file beside it."""
    return f"export-engine {engine.with_suffix('.onnx')} -o {engine.parent}"


def _beside(engine: Path) -> Manifest:
    if not engine.is_file():
        raise ArtifactError(f"{engine}: no such file")
    path = manifest_path(engine)
    again = f"; rebuild both: {rebuild_command(engine)}"
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ArtifactError(f"{engine}: its manifest {path.name} is missing{again}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}{again}") from error
    try:
        return Manifest.from_json(text, str(path))
    except ArtifactError as error:
        raise ArtifactError(f"{error}{again}") from error


def _verify(engine: Path, manifest: Manifest, sha256: str) -> None:
    if manifest.sha256 != sha256:
        raise EngineMismatch(
            f"{engine}: its sha256 {sha256[:12]} is not the {manifest.sha256[:12] or 'none'} of "
            f"{manifest_path(engine).name}: damaged, or from another build; "
            f"rebuild it: {rebuild_command(engine)}"
        )
