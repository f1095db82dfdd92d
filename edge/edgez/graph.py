"""The ONNX graph of a package, and the FP32 ONNX file that it becomes: numpy alone is needed.

Wire format: https://protobuf.dev/programming-guides/encoding/; field numbers: onnx/onnx.proto3
(ModelProto: graph 7, metadata_props 14; GraphProto: initializer 5; TensorProto: dims 1,
data_type 2, name 8, raw_data 9; StringStringEntryProto: key 1, value 2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.cache import cache_root
from edge.edgez.package import Package, read_package
from edge.errors import ArtifactError
from edge.files import make_folder, read_file, sha256_of, write_file
from edge.onnx_metadata import MANIFEST_KEY
from edge.spec import Manifest

__all__ = ["cached_package_onnx", "split_graph", "write_package_onnx"]

_SIZE = struct.Struct("<I")
_FLOAT = 1
_RECORD_BYTES = 1 << 10


def split_graph(model: Any, weights: Iterable[str]) -> bytes:
    """Serialise an onnx `ModelProto` without the initializers `weights` and without its manifest.

    Returns:
        The size of all but the graph (uint32), all but the graph, the graph.
    """
    leave, bare = set(weights), type(model)()
    bare.CopyFrom(model)
    kept = [tensor for tensor in bare.graph.initializer if tensor.name not in leave]
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(kept)
    graph = bare.graph.SerializeToString(deterministic=True)
    bare.ClearField("graph")
    del bare.metadata_props[:]
    head = bare.SerializeToString(deterministic=True)
    return _SIZE.pack(len(head)) + bytes(head) + bytes(graph)


def cached_package_onnx(source: str | Path) -> Path:
    """Return a package's ONNX file in the cache; it is unfolded where it is missing or damaged.

    Raises:
        ArtifactError: as `write_package_onnx`, or the cache cannot be written.
    """
    folder = cache_root() / "packages" / sha256_of(Path(source))[:16]
    for there in folder.glob("*.onnx"):
        record = _record(there)
        if record.is_file() and read_file(record, limit=_RECORD_BYTES) == _checksum(there):
            return there
    try:
        make_folder(folder)
    except ArtifactError as error:
        raise ArtifactError(f"{error}: EDGE_CACHE=FOLDER") from error
    target = write_package_onnx(source, folder)
    write_file(_record(target), _checksum(target))
    return target


def _record(onnx: Path) -> Path:
    return onnx.with_name(f"{onnx.name}.sha256")


def _checksum(path: Path) -> bytes:
    return sha256_of(path).encode()


def write_package_onnx(source: str | Path, folder: Path) -> Path:
    """Unfold a package to `folder/NAME.fp32.onnx`.

    Raises:
        ArtifactError: damaged, or without a graph.
    """
    package = read_package(source)
    manifest = replace(package.manifest, parent_sha256=sha256_of(Path(source)))
    target = folder / f"{manifest.spec.name}.fp32.onnx"
    write_file(target, _model(package, manifest))
    return target


def _model(package: Package, manifest: Manifest) -> bytes:
    graph = package.graph()
    if graph is None:
        raise ArtifactError(
            f"{package.source}: carries no ONNX graph; edge unpack {package.source} -o DIR gives "
            "its weights"
        )
    size = _SIZE.unpack_from(graph)[0] if len(graph) >= _SIZE.size else len(graph)
    if _SIZE.size + size > len(graph):
        raise ArtifactError(f"{package.source}: its graph is damaged; copy the file again")
    head, body = graph[_SIZE.size : _SIZE.size + size], graph[_SIZE.size + size :]
    weights = b"".join(_initializer(name, array) for name, array in package.tensors())
    entry = _field(1, MANIFEST_KEY.encode()) + _field(2, manifest.to_json().encode())
    return head + _field(7, body + weights) + _field(14, entry)


def _initializer(name: str, array: NDArray[np.float32]) -> bytes:
    dims = b"".join(b"\x08" + _varint(side) for side in array.shape)
    kind = b"\x10" + _varint(_FLOAT)
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return _field(5, dims + kind + _field(8, name.encode()) + _field(9, data))


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
