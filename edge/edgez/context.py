"""The model of a pruned and shared layer: its sequence of bits, and what predicts each of them.

A layer's codes are whole numbers (O, I, T): output channels, input channels, taps of the kernel;
0 is a pruned position, 1..K a place in the sorted codebook. First come the positions, one column
of all O channels after the other; then the values of those that were kept, in blocks, each from
its highest binary digit down.
"""

from __future__ import annotations

import numpy as np

from edge.edgez.mixing import Ints, Mixer, level_of
from edge.edgez.rans import BitCoder

__all__ = ["BLOCKS", "code_layer"]

_LEVELS = 12  # classes of a channel's density and of its mean value
_PLACES = 16  # taps beyond count as the last
_CROWD = 9
BLOCKS = 96


def code_layer(
    coder: BitCoder, shape: tuple[int, int, int], levels: int, codes: Ints | None
) -> Ints:
    """Code one layer and return its codes (O, I, T).

    Args:
        coder: an encoder takes the bits, a decoder gives them.
        shape: O, I, T.
        levels: K, the size of the codebook, 1 or more.
        codes: 0..K of that shape; None to decode.
    """
    known = None if codes is None else np.ascontiguousarray(codes.transpose(1, 2, 0))
    mask = _code_mask(coder, shape, known)
    result = _code_values(coder, mask, levels, known)
    return np.ascontiguousarray(result.transpose(2, 0, 1))


def _code_mask(coder: BitCoder, shape: tuple[int, int, int], known: Ints | None) -> Ints:
    """Code which positions are kept, (I, T, O) of 0 and 1."""
    rows, channels, taps = shape
    mask = np.zeros((channels, taps, rows), np.int64)
    mixer = Mixer([1, rows, channels, _PLACES * 10, _LEVELS**2, _PLACES * 4], 2)
    nothing, row = np.zeros(rows, np.int64), np.arange(rows)
    for channel in range(channels):
        crowd, own = nothing.copy(), np.full(rows, channel)
        for tap in range(taps):
            place = min(tap, _PLACES - 1)
            density = level_of(mixer.probability(1, row), _LEVELS) * _LEVELS
            density += level_of(mixer.probability(2, channel), _LEVELS)
            last = mask[channel, tap - 1] if tap else nothing
            older = mask[channel - 1, tap] if channel else nothing
            near = place * 4 + last * 2 + older
            at = [nothing, row, own, place * 10 + np.minimum(crowd, _CROWD), density, near]
            bits = None if known is None else (known[channel, tap] != 0).astype(np.int64)
            found = mixer.code(coder, at, int(tap > 0), bits)
            mask[channel, tap] = found
            crowd += found
    return mask


def _code_values(coder: BitCoder, mask: Ints, levels: int, known: Ints | None) -> Ints:
    """Code the values of the positions that `mask` keeps; 0..K of shape (I, T, O)."""
    digits = (levels - 1).bit_length()
    if not digits:
        return mask
    result = np.zeros_like(mask)
    channel, tap, row = np.nonzero(mask)
    crowd = np.minimum(mask.sum(axis=1)[channel, row], _CROWD) - 1
    contexts = _ValueContexts(mask.shape, levels)
    block = max(32, len(row) // BLOCKS)
    for start in range(0, len(row), block):
        piece = slice(start, start + block)
        c, t, r = channel[piece], tap[piece], row[piece]
        wanted = None if known is None else known[c, t, r] - 1
        value = contexts.code(coder, c, t, r, crowd[piece], wanted)
        result[c, t, r] = value + 1
    return result


class _ValueContexts:
    """Codes values 0..K-1, predicted from what their channels have shown so far."""

    def __init__(self, shape: tuple[int, ...], levels: int) -> None:
        channels, _, rows = shape
        self.levels, self.digits = levels, (levels - 1).bit_length()
        sizes = (1, _LEVELS, _LEVELS, _CROWD, _PLACES, _CROWD)
        self.mixer = Mixer([size << self.digits for size in sizes], self.digits)
        self.size_by_row, self.size_by_channel = _Means(rows), _Means(channels)
        self.sign_by_row = _Means(rows)

    def code(
        self, coder: BitCoder, channel: Ints, tap: Ints, row: Ints, crowd: Ints, wanted: Ints | None
    ) -> Ints:
        contexts = (
            np.zeros_like(row),
            self.size_by_row.level(row, self.levels, _LEVELS),
            self.size_by_channel.level(channel, self.levels, _LEVELS),
            crowd,
            np.minimum(tap, _PLACES - 1),
            self.sign_by_row.level(row, 2 * self.levels, _CROWD),
        )
        node = np.ones_like(row)
        for depth in range(self.digits):
            bits = None if wanted is None else (wanted >> (self.digits - 1 - depth)) & 1
            at = [(context << self.digits) + node for context in contexts]
            node = node * 2 + self.mixer.code(coder, at, depth, bits)
        value = node - (1 << self.digits)
        self._learn(channel, row, 2 * value - (self.levels - 1))
        return np.asarray(value)

    def _learn(self, channel: Ints, row: Ints, offset: Ints) -> None:
        self.size_by_row.update(row, np.abs(offset))
        self.size_by_channel.update(channel, np.abs(offset))
        self.sign_by_row.update(row, offset + self.levels)


class _Means:
    """The mean of a number in each of several groups."""

    def __init__(self, groups: int) -> None:
        self.sums = np.zeros(groups, np.int64)
        self.seen = np.zeros(groups, np.int64)

    def level(self, at: Ints, most: int, levels: int) -> Ints:
        """Return each group's mean, scaled from 0..`most` to 0..levels-1; the middle at first."""
        mean = (self.sums[at] * 2 + most) * levels // (most * 2 * (self.seen[at] + 1))
        return np.asarray(mean.clip(0, levels - 1))

    def update(self, at: Ints, numbers: Ints) -> None:
        np.add.at(self.sums, at, numbers)
        np.add.at(self.seen, at, 1)
