"""Perceptual hashes: 64 bits that a re-encoded, resized or slightly changed picture keeps.

The signs of the lowest frequencies of a small grey picture about their median, as in Zauner,
"Implementation and benchmarking of perceptual image hash functions" (2010), section 3.2.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["NEAR", "distances", "hash_image", "near_duplicates"]

# Of 64 bits; what JPEG at quality 50 or half the size changes stays within 4.
NEAR = 4
_SIDE, _KEPT = 32, 8


def hash_image(frame: NDArray[np.uint8]) -> str:
    """Perceptual hash of a (H, W, 3) BGR uint8 picture, 16 hexadecimal digits."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:_KEPT, :_KEPT].reshape(-1)
    # The mean level says nothing of the picture, and stays out of the median.
    bits = low > np.median(low[1:])
    return np.packbits(bits).tobytes().hex()


def distances(first: Sequence[str], second: Sequence[str]) -> NDArray[np.int64]:
    """Bits that differ between each of `first` and each of `second`, (M, N)."""
    a, b = _bits(first), _bits(second)
    return np.asarray((a[:, None] != b[None]).sum(axis=2), np.int64)


def _bits(hashes: Sequence[str]) -> NDArray[np.uint8]:
    raw = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), -1)
    return np.unpackbits(raw, axis=1)


def near_duplicates(hashes: Iterable[str], near: int = NEAR) -> list[int]:
    """Indices of `hashes` that are within `near` bits of one before that is not itself in the list.

    What is left keeps at least one of each group and has no two alike.
    """
    kept: list[str] = []
    dropped: list[int] = []
    for index, one in enumerate(hashes):
        if kept and distances([one], kept).min() <= near:
            dropped.append(index)
        else:
            kept.append(one)
    return dropped
