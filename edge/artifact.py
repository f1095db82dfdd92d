"""Artifacts on disk: their checksum, their manifest, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from edge.errors import ArtifactError, EngineMismatch
from edge.onnx_metadata import read_manifest as read_onnx_manifest
from edge.spec import Manifest

__all__ = [
    "layers_path",
    "make_folder",
    "manifest_path",
    "read_engine",
    "read_manifest",
    "rebuild_command",
    "sha256_of",
    "write_atomic",
]

_CHUNK = 1 << 20


def manifest_path(engine: Path) -> Path:
    """Where the manifest of an engine lies: `NAME.engine.json`."""
    return engine.with_name(engine.name + ".json")


def layers_path(engine: Path) -> Path:
    """Where the layer report of an engine lies: `NAME.engine.layers.json`."""
    return engine.with_name(engine.name + ".layers.json")


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal text.

    Raises:
        ArtifactError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and move it into place, so that no reader sees half a file.

    Raises:
        ArtifactError: the folder cannot be written; nothing is left behind.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def make_folder(folder: str | Path) -> Path:
    """Make `folder` where it is missing, and those above it.

    Raises:
        ArtifactError: it cannot be made.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{path}: no folder can be made: {error.strerror}; name another one"
        ) from error
    return path


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
    except RecursionError:
        raise ArtifactError(f"{path}: not a manifest of edge{again}") from None


def _verify(engine: Path, manifest: Manifest, sha256: str) -> None:
    if manifest.sha256 != sha256:
        raise EngineMismatch(
            f"{engine}: its sha256 {sha256[:12]} is not the {manifest.sha256[:12] or 'none'} of "
            f"{manifest_path(engine).name}: damaged, or from another build; "
            f"rebuild it: {rebuild_command(engine)}"
        )
