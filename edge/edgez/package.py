"""`.edgez`: a whole detector in one small file, read with numpy alone.

All numbers are little-endian. A header: "EDGEZ", a version byte, the number of sections (uint16);
for each section its kind and its coding (uint16), bytes stored and bytes decoded (uint32) and the
CRC-32 of what is stored; the CRC-32 of the header so far. Then the sections, nothing between them.

META      JSON: the manifest, what rebuilds the module, the tensors in order, the sha256 of their
          dense bytes.
GRAPH     optional: the ONNX graph without its weights, see `edge.edgez.graph`; zlib with
          META as its dictionary.
CODEBOOKS the centroids of every shared tensor, and the scales of its output channels if it has any.
WEIGHTS   the codes of every shared tensor, in one of `edge.edgez.coding.CODINGS`.
PLAIN     every other tensor: biases.

Version 2 has scales, version 1 has none; a package is of the lowest version that holds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.decoding import decode_json
from edge.edgez.codebook import Codebook
from edge.edgez.coding import CODINGS, decode, encode, smallest
from edge.edgez.parts import Kind, Part, deflated, inflated, join_parts, part_of, split_parts
from edge.edgez.tensors import Entry, as_half, entry_of, parse_entries
from edge.errors import ArtifactError
from edge.files import plain_text, read_file, write_file
from edge.spec import Manifest

__all__ = [
    "LIMIT_BYTES",
    "Package",
    "PackageSizes",
    "parse_package",
    "read_package",
    "write_package",
]

# Dense float32 bytes that a package may unfold to, unless the caller says otherwise; and for its
# size, so that a small file never costs a large memory. Packages of trained detectors: 3 to 31.
LIMIT_BYTES = 1 << 30
_FREE_BYTES, _MOST_RATIO = 4 << 20, 512
Tensor = Codebook | NDArray[Any]


@dataclass(frozen=True)
class PackageSizes:
    """Bytes of a package: `file` in all, and its sections by name; `coding` of the weights."""

    file: int
    sections: dict[str, int]
    coding: str


@dataclass(frozen=True)
class Package:
    """A package whose sections have been read and checked; its tensors are not unfolded yet.

    Attributes:
        source: its path, for messages.
        manifest: the detector; its precision is that of the dense model.
        model: what rebuilds the torch module: the metadata of its `.safetensors`.
        stages: how it was made, as `edge compress` recorded it.
        entries: its tensors, in order.
        coding: of the weights.
        sections: bytes by name.
    """

    source: str
    manifest: Manifest
    model: dict[str, str]
    stages: tuple[dict[str, Any], ...]
    entries: tuple[Entry, ...]
    coding: str
    sections: dict[str, int]
    _parts: Mapping[Kind, Part] = field(repr=False)
    _meta: bytes = field(repr=False)
    _sha256: str = field(repr=False)

    @property
    def dense_bytes(self) -> int:
        """Size of all tensors as float32."""
        return 4 * sum(entry.size for entry in self.entries)

    def graph(self) -> bytes | None:
        """Return the ONNX graph without weights; None where the package has none.

        Raises:
            ArtifactError: it cannot be decompressed.
        """
        part = self._parts.get(Kind.GRAPH)
        return None if part is None else inflated(part, self.source, self._meta)

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield every tensor, dense float32, in order; only one is held at a time.

        Raises:
            ArtifactError: damaged. The last checksum is compared after the last tensor, so use
                nothing of it before this has ended.
        """
        digest = hashlib.sha256()
        for entry, tensor in self._coded():
            dense = tensor.dense() if isinstance(tensor, Codebook) else tensor.astype(np.float32)
            if not np.isfinite(dense).all():
                raise ArtifactError(
                    f"{self.source}: {plain_text(entry.name)} holds NaN or infinity: the weights "
                    "are damaged; make the package again"
                )
            digest.update(np.ascontiguousarray(dense, "<f4").data)
            yield entry.name, dense
        if digest.hexdigest() != self._sha256:
            raise ArtifactError(f"{self.source}: its weights are not those that were packed")

    def coded(self) -> dict[str, Tensor]:
        """Return every tensor as it was given to `write_package`, to continue compressing it."""
        return {entry.name: tensor for entry, tensor in self._coded()}

    def _coded(self) -> Iterator[tuple[Entry, Tensor]]:
        shared = [entry for entry in self.entries if entry.layer is not None]
        layers = [entry.layer for entry in shared if entry.layer is not None]
        weights, books = self._parts[Kind.WEIGHTS], self._parts[Kind.CODEBOOKS]
        codes = decode(weights.stored, layers, self.coding, self.source)
        centroids = memoryview(inflated(books, self.source))
        plain = memoryview(inflated(self._parts[Kind.PLAIN], self.source))
        for entry in self.entries:
            if entry.layer is None:
                values, plain = entry.take(plain)
                yield entry, values.reshape(entry.shape)
            else:
                values, centroids = entry.take(centroids)
                yield entry, entry.book(values, next(codes))
        # The codes' own check comes after their last layer.
        for _ in codes:
            raise ArtifactError(f"{self.source}: codes of more layers than it names")


def write_package(
    path: str | Path,
    manifest: Manifest,
    model: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    *,
    graph: bytes | None = None,
    stages: Sequence[Mapping[str, Any]] = (),
    coding: str = "auto",
    half: bool = True,
) -> PackageSizes:
    """Write a package, whole or not at all.

    Args:
        manifest: of the dense FP32 model.
        model: what rebuilds the torch module, all text.
        tensors: the state dict in order; arrays are stored as float16 or float32.
        graph: see `edge.edgez.graph.split_graph`.
        coding: of the weights; `auto` takes the smallest.
        half: store centroids and plain tensors as FP16 where that holds them; else all as FP32.

    Raises:
        ArtifactError: the file cannot be written.
        ValueError: there is no such coding, or a tensor is not of floats or is not finite.
    """
    stored = {name: as_half(tensor) if half else tensor for name, tensor in tensors.items()}
    entries = tuple(entry_of(name, tensor) for name, tensor in stored.items())
    books = [t for t in stored.values() if isinstance(t, Codebook)]
    layers = [entry.layer for entry in entries if entry.layer is not None]
    codes = [book.matrix() for book in books]
    chosen, weights = (
        smallest(layers, codes) if coding == "auto" else (coding, encode(layers, codes, coding))
    )
    meta = _meta_json(manifest, model, entries, stages, _digest(stored))
    parts = [
        deflated(Kind.META, meta),
        deflated(
            Kind.CODEBOOKS,
            b"".join(
                entry.bytes_of(stored[entry.name]) for entry in entries if entry.layer is not None
            ),
        ),
        part_of(Kind.WEIGHTS, CODINGS.index(chosen), weights, 4 * sum(la.size for la in layers)),
        deflated(
            Kind.PLAIN,
            b"".join(entry.bytes_of(stored[entry.name]) for entry in entries if not entry.layer),
        ),
    ]
    if graph is not None:
        parts.append(deflated(Kind.GRAPH, graph, meta))
    data = join_parts(parts, 2 if any(entry.scaled for entry in entries) else 1)
    write_file(Path(path), data)
    return PackageSizes(len(data), {p.kind.name.lower(): len(p.stored) for p in parts}, chosen)


def read_package(path: str | Path, limit_bytes: int = LIMIT_BYTES) -> Package:
    """Read a package and check it, section by section, before anything of it is unfolded.

    Args:
        limit_bytes: of the dense model and of every section; larger packages are refused.

    Raises:
        ArtifactError: missing, foreign, damaged, of a newer version or too large.
    """
    return parse_package(read_file(path, limit=limit_bytes), str(path), limit_bytes)


def parse_package(data: bytes, source: str, limit_bytes: int = LIMIT_BYTES) -> Package:
    """Read a package from its bytes, as `read_package` does from a file."""
    parts = split_parts(data, source, limit_bytes)
    meta = inflated(parts[Kind.META], source)
    what = "the description of a package"
    found = decode_json(meta, _Meta, source, what)
    try:
        entries = parse_entries(found.tensors)
    except ValueError as error:
        raise ArtifactError(f"{source}: not {what}: {plain_text(str(error))}") from error
    manifest = Manifest.from_plain(found.manifest, source)
    dense, most = (
        4 * sum(entry.size for entry in entries),
        max(_FREE_BYTES, _MOST_RATIO * len(data)),
    )
    if dense > most:
        raise ArtifactError(
            f"{source}: unfolds to {dense} bytes, more than the {most} that {len(data)} bytes may: "
            "damaged"
        )
    _check_sizes(parts, entries, source, limit_bytes)
    coding = parts[Kind.WEIGHTS].coding
    if coding >= len(CODINGS):
        raise ArtifactError(f"{source}: its weights are in coding {coding}; update edge")
    sections = {kind.name.lower(): len(part.stored) for kind, part in parts.items()}
    return Package(
        source,
        manifest,
        found.model,
        found.stages,
        entries,
        CODINGS[coding],
        sections,
        parts,
        meta,
        found.sha256,
    )


@dataclass(frozen=True)
class _Meta:
    """The section META."""

    manifest: object
    model: dict[str, str]
    tensors: list[object]
    stages: tuple[dict[str, object], ...]
    sha256: str


def _check_sizes(
    parts: Mapping[Kind, Part], entries: Sequence[Entry], source: str, limit_bytes: int
) -> None:
    """Check that the sections declare the sizes that the tensors need, and that these are small."""
    shared = [entry for entry in entries if entry.layer is not None]
    wanted = {
        Kind.WEIGHTS: 4 * sum(entry.size for entry in shared),
        Kind.CODEBOOKS: sum(entry.stored_bytes for entry in shared),
        Kind.PLAIN: sum(entry.stored_bytes for entry in entries if entry.layer is None),
    }
    for kind, size in wanted.items():
        if parts[kind].decoded != size:
            raise ArtifactError(
                f"{source}: section {kind.name} is declared as {parts[kind].decoded} bytes and "
                f"its tensors take {size}: damaged"
            )
    if 4 * sum(entry.size for entry in entries) > limit_bytes:
        raise ArtifactError(f"{source}: unfolds to more than {limit_bytes} bytes; raise the limit")


def _meta_json(
    manifest: Manifest,
    model: Mapping[str, str],
    entries: Sequence[Entry],
    stages: Sequence[Mapping[str, Any]],
    sha256: str,
) -> bytes:
    fields = {
        "manifest": asdict(manifest),
        "model": dict(model),
        "tensors": [entry.to_json() for entry in entries],
        "stages": [dict(stage) for stage in stages],
        "sha256": sha256,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        dense = tensor.dense() if isinstance(tensor, Codebook) else tensor.astype(np.float32)
        digest.update(np.ascontiguousarray(dense, "<f4").data)
    return digest.hexdigest()
