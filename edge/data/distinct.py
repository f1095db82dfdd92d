"""The pictures of a calibration: read, refused where no camera gives such, digested."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import load
from edge.data.hashes import hash_image
from edge.data.items import Dataset, Item
from edge.errors import DataError

__all__ = ["Seen", "digest", "pictures"]

# JPEG and WebP are what colour cameras write; a grey one is a picture of a grey thing.
_LOSSLESS = (".png", ".tif", ".tiff", ".pgm", ".ppm", ".bmp")


@dataclass
class Seen:
    """What went by: sha256 and perceptual hash of each picture, and a line for each left out."""

    digests: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def digest(frame: NDArray[np.uint8]) -> str:
    """sha256 of the pixels of a decoded picture."""
    return hashlib.sha256(frame.tobytes()).hexdigest()


def pictures(dataset: Dataset, seen: Seen) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(name, BGR uint8 picture) of all that can be read and is 8-bit colour; `seen` grows."""
    for item in dataset.items:
        try:
            frame, _ = load(item)
            _check_colour(item)
        except DataError as error:
            seen.skipped.append(str(error))
            continue
        seen.digests.append(digest(frame))
        seen.hashes.append(hash_image(frame))
        yield str(item.image), frame


def _check_colour(item: Item) -> None:
    """Refuse a file of one channel: reading it as colour would hide what it is.

    Raises:
        DataError: it is one.
    """
    if item.seed is not None or Path(item.image).suffix.lower() not in _LOSSLESS:
        return
    data = np.frombuffer(Path(item.image).read_bytes(), np.uint8)
    raw: Any = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR)
    if raw is not None and raw.ndim == 2:
        raise DataError(
            f"{item.image}: grey, where a camera gives colour; write it as its frames will be, "
            "or leave it out"
        )
