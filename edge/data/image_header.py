"""The size of an image from its first bytes, before anything is decoded.

A few hundred bytes can promise gigabytes of pixels; the header tells what decoding would cost.
JPEG: ITU-T T.81 annex B; PNG: W3C; BMP: Microsoft's BITMAPINFOHEADER; WebP: RFC 9649; TIFF 6.0
section 2; PNM, PFM: netpbm; Radiance HDR; GIF 89a; JPEG 2000: ISO 15444-1 I.5.3; AVIF: ISO
23008-12 (`ispe`).
"""

from __future__ import annotations

import re
import struct

__all__ = ["image_hw"]

# Start of frame: all of C0..CF but DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNM = re.compile(rb"P([1-6])(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s")
_PAM = re.compile(rb"P7\n(?=.*?\nENDHDR)(?=.*?WIDTH (\d{1,9}))(?=.*?HEIGHT (\d{1,9}))", re.DOTALL)
_PFM = re.compile(rb"P[Ff]\s+(\d{1,9})\s+(\d{1,9})\s")
_RADIANCE = re.compile(rb"#\?(?:RADIANCE|RGBE)\n.*?\n-Y (?=\d+ \+X (\d{1,9}))(\d{1,9})", re.DOTALL)
_HEADER = 4096


def image_hw(data: bytes) -> tuple[int, int] | None:
    """Return height and width as the header of an image file states them.

    None where the format is none of those of the module's text, or its header is cut off.
    """
    try:
        return _hw(data)
    except (struct.error, IndexError):
        return None


def _hw(data: bytes) -> tuple[int, int] | None:
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    if data.startswith(b"BM"):
        if struct.unpack_from("<I", data, 14)[0] == 12:
            width, height = struct.unpack_from("<HH", data, 18)
        else:
            width, height = struct.unpack_from("<ii", data, 18)
        return abs(height), abs(width)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(data)
    if data.startswith(b"GIF8"):
        width, height = struct.unpack_from("<HH", data, 6)
        return height, width
    for pattern in (_PNM, _PAM, _PFM, _RADIANCE):
        found = pattern.match(data[:_HEADER])
        if found:
            width, height = map(int, found.groups()[-2:])
            return height, width
    return _boxed(data)


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while data[at] == 0xFF:
        mark = data[at + 1]
        if mark == 0xFF:
            at += 1
        elif mark in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        else:
            at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return height, width
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None


def _tiff(data: bytes) -> tuple[int, int] | None:
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    sides: dict[int, int] = {}
    for entry in range(count):
        tag, kind = struct.unpack_from(f"{order}HH", data, at + 2 + 12 * entry)
        if tag in (256, 257):
            form = f"{order}H" if kind == 3 else f"{order}I"
            sides[tag] = struct.unpack_from(form, data, at + 10 + 12 * entry)[0]
    return (sides[257], sides[256]) if len(sides) == 2 else None


def _boxed(data: bytes) -> tuple[int, int] | None:
    """JPEG 2000 and AVIF keep the size in a box near the beginning."""
    head = data[:_HEADER]
    at = head.find(b"ihdr")
    if at >= 0 and b"jP  " in head[:16]:
        height, width = struct.unpack_from(">II", data, at + 4)
        return height, width
    sizes = [
        struct.unpack_from(">II", data, found.end() + 4) for found in re.finditer(rb"ispe", head)
    ]
    if sizes and head[4:8] == b"ftyp":
        width, height = max(sizes)
        return height, width
    return None
