"""The manifest inside an ONNX file, read without the onnx package and without the weights.

Wire format: https://protobuf.dev/programming-guides/encoding/; field numbers: onnx/onnx.proto3
(ModelProto: graph 7, metadata_props 14; StringStringEntryProto: key 1, value 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from edge.errors import ArtifactError
from edge.spec import Manifest

__all__ = [
    "LOW_KEY",
    "MANIFEST_KEY",
    "manifest_in",
    "metadata_in",
    "read_manifest",
    "read_metadata",
]

MANIFEST_KEY = "edge.manifest"
# JSON: the lowest value of each tensor that convolutions read, for `edge.runtime.ort_lowering`.
LOW_KEY = "edge.low"
_GRAPH, _METADATA = 7, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# A model has some ten fields at its top and a manifest of some kilobytes; far more is no ONNX file.
_MOST_FIELDS = 100_000
_MOST_BYTES = 16 << 20


def read_manifest(path: str | Path) -> Manifest:
    """The manifest that `edge` wrote into an ONNX file.

    Raises:
        ArtifactError: the file is missing, is not ONNX, or has no manifest that can be read.
    """
    return manifest_in(read_metadata(path), str(path))


def manifest_in(metadata: Mapping[str, str], source: str) -> Manifest:
    """Return the manifest in the metadata of the ONNX file `source`.

    Raises:
        ArtifactError: there is none that can be read.
    """
    text = metadata.get(MANIFEST_KEY)
    if text is None:
        raise ArtifactError(
            f"{source}: an ONNX file without a manifest of edge, so its classes, anchors and "
            f"pre-processing are unknown; import it: edge import {source}"
        )
    return Manifest.from_json(text, source)


def read_metadata(path: str | Path) -> dict[str, str]:
    """`metadata_props` of an ONNX file; its weights are skipped, not read.

    Raises:
        ArtifactError: the file is missing or is not ONNX.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _metadata(file, size)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not an ONNX file, or cut short: {error}") from error


def metadata_in(data: bytes, source: str) -> dict[str, str]:
    """Return `metadata_props` in the bytes of the ONNX file `source`.

    Raises:
        ArtifactError: the bytes are not ONNX.
    """
    try:
        return _metadata(BytesIO(data), len(data))
    except ValueError as error:
        raise ArtifactError(f"{source}: not an ONNX file, or cut short: {error}") from error


def _metadata(file: BinaryIO, size: int) -> dict[str, str]:
    found: dict[str, str] = {}
    graphs = 0
    for field, length in _fields(file, size):
        graphs += field == _GRAPH
        if field == _METADATA:
            if length > _MOST_BYTES:
                raise ValueError(f"a metadata entry of {length} bytes")
            key, value = _entry(file.read(length))
            found[key] = value
    if graphs != 1:
        raise ValueError(f"{graphs} graphs in it")
    return found


def _entry(data: bytes) -> tuple[str, str]:
    file, parts = BytesIO(data), {1: "", 2: ""}
    for field, length in _fields(file, len(data)):
        if field in parts:
            parts[field] = file.read(length).decode()
    return parts[1], parts[2]


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Field number and byte length of each length-delimited field; stands at its first byte."""
    for _ in range(_MOST_FIELDS):
        at = file.tell()
        if at == size:
            return
        tag = _varint(file)
        field, wire = tag >> 3, tag & 7
        if field == 0:
            raise ValueError(f"no field number at byte {at}")
        length = _length(file, wire)
        end = file.tell() + length
        if end > size:
            raise ValueError(f"a field at byte {at} ends {end - size} bytes behind the file")
        if wire == _BYTES:
            yield field, length
        file.seek(end)
    raise ValueError(f"more than {_MOST_FIELDS} fields")


def _length(file: BinaryIO, wire: int) -> int:
    """Bytes that follow the tag and, where there is one, the length; a varint is read here."""
    if wire == _VARINT:
        _varint(file)
        return 0
    if wire == _BYTES:
        return _varint(file)
    if wire in (_FIXED32, _FIXED64):
        return 4 if wire == _FIXED32 else 8
    raise ValueError(f"wire type {wire} before byte {file.tell()}")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError(f"a number of more than ten bytes before byte {file.tell()}")
