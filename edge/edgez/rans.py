"""Interleaved binary rANS (Duda, arXiv:1311.2540) in many lanes, so that numpy decodes quickly.

A bit's probability is given in 1/4096. A lane's state is a number of [2^16, 2^32); when it falls
below, it takes the next 16-bit word of the stream. A request for V bits goes in pieces of at most
`lanes` bits, the first of each to lane 0. The stream is the lanes' states (uint32), then the
words (uint16), all little-endian; a decoder ends with every lane at 2^16 and no word left.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import ArtifactError

__all__ = ["MAX_LANES", "UNIT", "BitCoder", "Decoder", "Encoder", "Meter"]

UNIT = 4096
MAX_LANES = 4096
_BITS = 12
_LOW = 1 << 16
Bits = NDArray[np.int64]


class BitCoder(Protocol):
    """An encoder, decoder or meter: a model gives it probabilities and gets the bits back.

    A decoder is given no bits, an encoder is. A model that only looks at what `code` returned is
    the same in both directions.
    """

    def code(self, one: Bits, bits: Bits | None) -> Bits:
        """Code `bits` (V,) of 0 and 1 and return them; `one` / 4096 is the probability of a 1.

        Args:
            one: (V,) of 1..4095.
            bits: None for a decoder.
        """
        ...


class Meter:
    """Adds up the bits that an ideal coder would take for these probabilities."""

    def __init__(self) -> None:
        self.bits = 0.0

    def code(self, one: Bits, bits: Bits | None) -> Bits:
        """Count the bits; see `BitCoder`."""
        bits = _given(bits)
        self.bits -= float(np.log2(np.where(bits, one, UNIT - one) / UNIT).sum())
        return bits


class Encoder:
    """Keeps what is coded; `finish` codes it from the last bit to the first, as rANS needs it."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._ones: list[Bits] = []
        self._bits: list[Bits] = []

    def code(self, one: Bits, bits: Bits | None) -> Bits:
        """Keep the bits; see `BitCoder`."""
        bits = _given(bits)
        self._ones.append(one)
        self._bits.append(bits)
        return bits

    def finish(self) -> bytes:
        """Return the stream of everything that was coded."""
        states = np.full(self._lanes, _LOW, np.uint64)
        words: list[NDArray[np.uint16]] = []
        for one, bits in zip(reversed(self._ones), reversed(self._bits), strict=True):
            for start in reversed(range(0, len(one), self._lanes)):
                piece = slice(start, start + self._lanes)
                words.append(_push(states, one[piece], bits[piece]))
        stream = np.concatenate(words[::-1]) if words else np.empty(0, np.uint16)
        return states.astype("<u4").tobytes() + stream.astype("<u2").tobytes()


def _given(bits: Bits | None) -> Bits:
    if bits is None:
        raise ValueError("an encoder takes the bits")
    return bits


def _push(states: NDArray[np.uint64], one: Bits, bits: Bits) -> NDArray[np.uint16]:
    """Code one bit in each of the first lanes, and return the words that they put out."""
    set_ = bits != 0
    share = np.where(set_, one, UNIT - one).astype(np.uint64)
    first = np.where(set_, 0, one).astype(np.uint64)
    x = states[: len(one)]
    full = x >= share << np.uint64(20)
    words: NDArray[np.uint16] = (x[full] & np.uint64(0xFFFF)).astype(np.uint16)
    x[full] >>= np.uint64(16)
    quotient, rest = np.divmod(x, share)
    x[:] = (quotient << np.uint64(_BITS)) + rest + first
    return words


class Decoder:
    """Reads what `Encoder.finish` wrote.

    Raises:
        ArtifactError: the stream holds no whole states or words; `source` names it.
    """

    def __init__(self, stream: bytes | memoryview, lanes: int, source: str) -> None:
        if not 1 <= lanes <= MAX_LANES or len(stream) < 4 * lanes or len(stream) % 2:
            raise ArtifactError(
                f"{source}: {len(stream)} bytes are no stream of {lanes} lanes: damaged"
            )
        self._source = source
        self._states = np.frombuffer(stream, "<u4", lanes).astype(np.int64)
        if int(self._states.min()) < _LOW:
            raise ArtifactError(f"{source}: a lane starts below its range: damaged")
        # The words are padded, so that a piece may read past their end before that is checked.
        words = np.frombuffer(stream, "<u2", offset=4 * lanes)
        self._words = np.concatenate([words, np.zeros(lanes, np.uint16)]).astype(np.int64)
        self._count, self._next = len(words), 0

    def code(self, one: Bits, bits: Bits | None) -> Bits:
        """Read one bit for each of `one`; see `BitCoder`."""
        lanes = len(self._states)
        if len(one) <= lanes:
            found = self._pull(one)
        else:
            found = np.concatenate(
                [self._pull(one[start : start + lanes]) for start in range(0, len(one), lanes)]
            )
        return found

    def _pull(self, one: Bits) -> Bits:
        x = self._states[: len(one)]
        slot = x & (UNIT - 1)
        set_ = slot < one
        x[:] = np.where(set_, one, UNIT - one) * (x >> _BITS) + np.where(set_, slot, slot - one)
        low = np.flatnonzero(x < _LOW)
        if len(low):
            stop = self._next + len(low)
            x[low] = (x[low] << 16) | self._words[self._next : stop]
            self._next = stop
            if stop > self._count:
                raise ArtifactError(f"{self._source}: its stream ends too early: damaged")
        return set_.astype(np.int64)

    def finish(self) -> None:
        """Check that the stream ends here, because otherwise what was decoded is wrong.

        Raises:
            ArtifactError: it does not.
        """
        if self._next != self._count or (self._states != _LOW).any():
            raise ArtifactError(f"{self._source}: its stream does not end where it should: damaged")
