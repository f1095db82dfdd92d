"""The sections of a package: split, checked and joined; see `edge.edgez.package`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from edge.errors import ArtifactError

__all__ = ["Kind", "Part", "deflated", "inflated", "join_parts", "part_of", "split_parts"]

MAGIC, VERSIONS = b"EDGEZ", (1, 2)
_HEAD = struct.Struct("<5sBH")
_ENTRY = struct.Struct("<HHIII")
_CRC = struct.Struct("<I")
_RAW, _ZLIB = 0, 1
_META_MOST = 4 << 20


class Kind(IntEnum):
    """What a section holds."""

    META = 1
    GRAPH = 2
    CODEBOOKS = 3
    WEIGHTS = 4
    PLAIN = 5


_NEEDED = (Kind.META, Kind.CODEBOOKS, Kind.WEIGHTS, Kind.PLAIN)


@dataclass(frozen=True)
class Part:
    """One section: `stored` bytes that decode to `decoded` bytes."""

    kind: Kind
    coding: int
    stored: memoryview
    decoded: int


def part_of(kind: Kind, coding: int, stored: bytes, decoded: int) -> Part:
    """Make a section of bytes that are coded already."""
    return Part(kind, coding, memoryview(stored), decoded)


def deflated(kind: Kind, data: bytes, dictionary: bytes = b"") -> Part:
    """Make a section of `data`, compressed by zlib where that makes it smaller."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=dictionary[-32_768:])
    packed = packer.compress(data) + packer.flush()
    small = len(packed) < len(data)
    return part_of(kind, _ZLIB if small else _RAW, packed if small else data, len(data))


def inflated(part: Part, source: str, dictionary: bytes = b"") -> bytes:
    """Return what `deflated` was given; never more bytes than the section declares.

    Raises:
        ArtifactError: it decodes to another number of bytes, or not at all.
    """
    if part.coding == _RAW:
        data = bytes(part.stored)
    elif part.coding == _ZLIB:
        reader = zlib.decompressobj(-15, zdict=dictionary[-32_768:])
        try:
            data = reader.decompress(part.stored, part.decoded + 1)
        except zlib.error as error:
            raise _damaged(part.kind, source, str(error)) from error
        if not reader.eof or reader.unused_data:
            raise _damaged(part.kind, source, "it does not end where it should")
    else:
        raise ArtifactError(f"{source}: section {part.kind.name}: coding {part.coding} is unknown")
    if len(data) != part.decoded:
        raise _damaged(part.kind, source, f"{len(data)} bytes and not {part.decoded}")
    return data


def join_parts(parts: Sequence[Part], version: int) -> bytes:
    """Join the sections to a file."""
    head = _HEAD.pack(MAGIC, version, len(parts))
    for part in parts:
        head += _ENTRY.pack(
            part.kind, part.coding, len(part.stored), part.decoded, zlib.crc32(part.stored)
        )
    return b"".join([head, _CRC.pack(zlib.crc32(head)), *(part.stored for part in parts)])


def split_parts(data: bytes, source: str, limit_bytes: int) -> dict[Kind, Part]:
    """Split a file into its sections by kind, after checking all lengths and checksums.

    Raises:
        ArtifactError: it is no package, damaged, of a newer version, or too large.
    """
    count = _count(data, source)
    start = _HEAD.size + count * _ENTRY.size
    if len(data) < start + _CRC.size:
        raise ArtifactError(f"{source}: ends inside its header; copy the file again")
    if _CRC.unpack_from(data, start)[0] != zlib.crc32(data[:start]):
        raise ArtifactError(f"{source}: its header is damaged; copy the file again")
    found: dict[Kind, Part] = {}
    at, view = start + _CRC.size, memoryview(data)
    for number in range(count):
        entry = _ENTRY.unpack_from(data, _HEAD.size + number * _ENTRY.size)
        part = _part(view[at : at + entry[2]], entry, source, limit_bytes)
        if part.kind in found:
            raise ArtifactError(f"{source}: section {part.kind.name} occurs twice")
        found[part.kind] = part
        at += entry[2]
    if at != len(data):
        raise ArtifactError(f"{source}: {len(data)} bytes and not {at}; copy the file again")
    for kind in _NEEDED:
        if kind not in found:
            raise ArtifactError(f"{source}: section {kind.name} is missing")
    return found


def _count(data: bytes, source: str) -> int:
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        raise ArtifactError(f"{source}: not an .edgez package")
    _, version, count = _HEAD.unpack_from(data)
    if version not in VERSIONS:
        raise ArtifactError(
            f"{source}: version {version} of the package; this edge reads 1 to {VERSIONS[-1]}: "
            "update it"
        )
    return int(count)


def _part(stored: memoryview, entry: tuple[int, ...], source: str, limit_bytes: int) -> Part:
    kind, coding, size, decoded, crc = entry
    if kind not in list(Kind):
        raise ArtifactError(f"{source}: a section of the unknown kind {kind}; update edge")
    part = Part(Kind(kind), coding, stored, decoded)
    if len(stored) != size:
        raise ArtifactError(f"{source}: ends inside section {part.kind.name}; copy it again")
    if zlib.crc32(stored) != crc:
        raise ArtifactError(f"{source}: section {part.kind.name} is damaged; copy the file again")
    most = _META_MOST if part.kind in (Kind.META, Kind.GRAPH) else limit_bytes
    if decoded > most:
        raise ArtifactError(
            f"{source}: section {part.kind.name} unfolds to {decoded} bytes, over {most}"
        )
    return part


def _damaged(kind: Kind, source: str, why: str) -> ArtifactError:
    return ArtifactError(f"{source}: section {kind.name} cannot be decompressed: {why}")
