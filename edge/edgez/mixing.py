"""Predict one bit from several contexts: adaptive counts, mixed in the logistic domain.

After M. Mahoney, "Adaptive weighing of context models for lossless data compression" (Florida
Tech, CS-2005-16). A batch of bits is predicted at once and learned from at once. Everything is
integer arithmetic and whole-number tables, so that two machines predict alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.edgez.rans import UNIT, BitCoder

__all__ = ["Ints", "Mixer", "level_of"]

Ints = NDArray[np.int64]
_FADE = 1020  # counts above it are halved
_STRENGTH = 6  # the first context's opinion counts as this many bits seen in each of the others
_RATE = 9
_WEIGHT = 85_000  # of 65536, shared out over the contexts


def _squash_table() -> Ints:
    """4096 / (1 + e^-(x / 256)) for x = -2047..2047, between 33 whole numbers."""
    rising = (1, 2, 3, 6, 10, 16, 27, 45, 73, 120, 194, 310, 488, 747, 1101, 1546)
    falling = (2549, 2994, 3348, 3607, 3785, 3901, 3975, 4024, 4050, 4068, 4079, 4085, 4089)
    knots = np.array([*rising, 2047, *falling, 4092, 4093, 4094], np.int64)
    x = np.arange(-2047, 2048) + 2048
    low, part = x >> 7, x & 127
    return np.asarray((knots[low] * (128 - part) + knots[low + 1] * part + 64) >> 7)


_SQUASH = _squash_table()
# For each probability, the first x whose squashed value reaches it.
_STRETCH: Ints = np.searchsorted(_SQUASH, np.arange(UNIT)).clip(0, 4094) - 2047


def level_of(probability: Ints, levels: int) -> Ints:
    """Round a probability to one of `levels` steps, equal in the logistic domain from -6 to 6."""
    place = _STRETCH[np.minimum(np.maximum(probability, 1), UNIT - 1)] + 1536
    return np.asarray(np.minimum(np.maximum(place, 0), 3071) * levels // 3072)


class Mixer:
    """Predicts bits from several contexts at once, with a set of weights for each kind of bits.

    The first context is the coarsest: the others fall back on it until they have seen enough.
    """

    def __init__(self, sizes: Sequence[int], sets: int) -> None:
        self._first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self._ones = np.zeros(sum(sizes), np.int64)
        self._seen = np.zeros(sum(sizes), np.int64)
        self._weights = np.full((sets, len(sizes)), _WEIGHT // (len(sizes) + 2), np.int64)

    def probability(self, which: int, at: Ints | int) -> Ints:
        """Return the probability of a one in the contexts `at` of count `which`, in 1/4096."""
        place = self._first[which] + at
        return np.asarray((self._ones[place] * UNIT + UNIT // 2) // (self._seen[place] + 1))

    def code(self, coder: BitCoder, at: Sequence[Ints], kind: int, bits: Ints | None) -> Ints:
        """Code bits (V,) in the contexts `at`, one array (V,) for each count, and learn them."""
        places = np.stack(at) + self._first[:, None]
        opinions = self._opinions(places)
        weights = self._weights[kind]
        total = (weights[:, None] * opinions).sum(axis=0) >> 16
        one = _SQUASH[np.minimum(np.maximum(total, -2047), 2047) + 2047]
        found = coder.code(one, bits)
        error = found * UNIT - one
        weights += ((opinions * error).sum(axis=1) * _RATE // max(len(found), 4)) >> 10
        self._update(places, found)
        return found

    def _opinions(self, places: Ints) -> Ints:
        ones, seen = self._ones[places] * UNIT, self._seen[places]
        share = np.empty_like(places)
        share[0] = (ones[0] + UNIT // 2) // (seen[0] + 1)
        share[1:] = (ones[1:] + _STRENGTH * share[0]) // (seen[1:] + _STRENGTH)
        return _STRETCH[np.minimum(np.maximum(share, 1), UNIT - 1)]

    def _update(self, places: Ints, bits: Ints) -> None:
        size = len(self._seen)
        self._seen += np.bincount(places.ravel(), minlength=size)
        self._ones += np.bincount(places[:, bits != 0].ravel(), minlength=size)
        if int(self._seen.max()) > _FADE:
            old = self._seen > _FADE
            self._ones[old] >>= 1
            self._seen[old] >>= 1
