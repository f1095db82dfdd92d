"""Image files as every command sees them: upright, three channels of eight bits.

What `cv2.imread` does, with one exception. EXIF turns the picture upright, as whoever labelled it
saw it; palettes and CMYK become colours, grey becomes three equal channels, and alpha is dropped
(a network never saw any). More than eight bits a channel are refused: `cv2.imread` keeps the
upper eight, which leaves a camera's ten or twelve bits nearly black.

A file whose header promises more than 64 million pixels is refused before it is decoded;
`EDGE_MAX_PIXELS` in the environment names another number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.image_header import image_hw
from edge.data.items import Item
from edge.errors import DataError
from edge.files import read_file

__all__ = ["PIXELS_VARIABLE", "check_pixels", "read_image", "turned_upright"]

PIXELS_VARIABLE = "EDGE_MAX_PIXELS"
_PIXELS = 64 * 10**6

# Orientations 5 to 8 of EXIF, which exchange the sides: a stored picture to the upright one, and
# where a point (x, y) of a stored picture of width w and height h lies then.
_TURNS: tuple[tuple[Callable[[Any], Any], Callable[..., tuple[Any, Any]]], ...] = (
    (lambda image: image.swapaxes(0, 1), lambda x, y, w, h: (y, x)),
    (lambda image: np.rot90(image, -1), lambda x, y, w, h: (h - y, x)),
    (lambda image: np.rot90(image, 2).swapaxes(0, 1), lambda x, y, w, h: (h - y, w - x)),
    (lambda image: np.rot90(image), lambda x, y, w, h: (y, w - x)),
)


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image as (H, W, 3) BGR uint8, by the rule of this module.

    Raises:
        DataError: missing, empty, not an image, cut off, larger than `check_pixels` allows, or of
            more than 8 bits a channel.
    """
    data = _bytes_of(path)
    check_pixels(data, str(path))
    if _cut_off(data):
        raise DataError(f"{path}: the image is cut off after {len(data)} bytes; copy it again")
    image: Any = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise DataError(f"{path}: not an image that OpenCV can read ({len(data)} bytes)")
    if image.dtype != np.uint8:
        raise DataError(
            f"{path}: {image.itemsize * 8} bits a channel, where a camera gives 8; write it as "
            "its frames will be"
        )
    return np.asarray(image, np.uint8)


def check_pixels(data: bytes, source: str) -> None:
    """Refuse an image whose header promises too many pixels, or none.

    Raises:
        DataError: it does, or `EDGE_MAX_PIXELS` is no number; names `source`.
    """
    hw = image_hw(data)
    if hw is None:
        raise DataError(f"{source}: not an image that OpenCV can read ({len(data)} bytes)")
    text = os.environ.get(PIXELS_VARIABLE, str(_PIXELS))
    if not text.isascii() or not text.isdigit():
        raise DataError(f"{PIXELS_VARIABLE} is {text!r}; it takes a number of pixels")
    if hw[0] * hw[1] > int(text):
        raise DataError(
            f"{source}: {hw[1]}x{hw[0]} pixels in {len(data)} bytes, more than {text}; if it is "
            f"a real picture, set {PIXELS_VARIABLE}={hw[0] * hw[1]}"
        )
    if not hw[0] or not hw[1]:
        raise DataError(f"{source}: an image of {hw[1]}x{hw[0]} pixels")


def turned_upright(item: Item, frame: NDArray[np.uint8]) -> Item:
    """`item` in pixels of the upright `frame` where its boxes are in those of the stored picture.

    Some tools pass EXIF over and state the stored size; others show the picture upright and state
    that. The stated size tells which it was where a quarter turn exchanges the sides; without one
    boxes are taken to be upright.
    """
    height, width = frame.shape[:2]
    if item.hw is None or item.hw != (width, height) or height == width or item.fraction:
        return item
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    stored: Any = _decode(_bytes_of(item.image), flags)
    for turn, move in _TURNS:
        if stored is not None and np.array_equal(turn(stored), frame):
            x, y = move(item.xyxy[:, 0::2], item.xyxy[:, 1::2], height, width)
            xyxy = np.stack((x.min(1), y.min(1), x.max(1), y.max(1)), axis=1)
            return replace(item, xyxy=xyxy.astype(np.float32), hw=(height, width))
    return item


def _bytes_of(path: str | Path) -> bytes:
    return read_file(path, error=DataError)


def _decode(data: bytes, flags: int) -> Any:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        return None


def _cut_off(data: bytes) -> bool:
    """Decoders fill what is missing with grey and say nothing, so look for the end marks."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_cut_off(data)
    return data.startswith(b"\x89PNG") and data.rfind(b"IEND") < 0


def _jpeg_cut_off(data: bytes) -> bool:
    """Whether no end mark follows the first scan (ITU-T T.81, annex B).

    Segments before it are passed over by their length: an EXIF thumbnail has marks of its own.
    """
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return False  # not a segment: the decoder's to judge
        if data[at + 1] == 0xFF:
            at += 1
            continue
        if data[at + 1] == 0xDA:
            return data.find(b"\xff\xd9", at) < 0
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True
