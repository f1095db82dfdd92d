"""Canonical Huffman codes in many lanes, so that numpy encodes and decodes them quickly.

A stream of symbols is cut into lanes of nearly equal length. Its form, little-endian: the lengths
of the codes (4 bits for each symbol of the alphabet, two to a byte, 0 for one that does not
occur), the number of bits of each lane (uint32), then each lane's bits, highest first, to a whole
byte.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ArtifactError

__all__ = ["code_lengths", "decode_symbols", "encode_symbols"]

_LONGEST = 15  # a length takes four bits
_LANE = 4096  # symbols that pay for a lane's four bytes
_LANES = 64
Ints = NDArray[np.int64]


def code_lengths(counts: NDArray[Any]) -> Ints:
    """Return the lengths of the Huffman codes of symbols that occur `counts` times.

    A length is at most 15, and 0 for a symbol that never occurs. Source: D. A. Huffman, Proc. IRE
    40 (1952). Where a code would be longer, rare symbols are counted as less rare.
    """
    counts = np.asarray(counts, np.int64)
    while True:
        lengths = _tree_depths(counts)
        if lengths.max(initial=0) <= _LONGEST:
            return lengths
        counts = np.where(counts > 0, (counts >> 1) + 1, 0)


def _tree_depths(counts: Ints) -> Ints:
    lengths = np.zeros(len(counts), np.int64)
    used = np.flatnonzero(counts).tolist()
    if len(used) == 1:
        lengths[used] = 1
    heap: list[tuple[int, int, list[int]]] = [(int(counts[s]), s, [s]) for s in used]
    heapq.heapify(heap)
    while len(heap) > 1:
        low, high = heapq.heappop(heap), heapq.heappop(heap)
        joined = low[2] + high[2]
        lengths[joined] += 1
        heapq.heappush(heap, (low[0] + high[0], min(low[1], high[1]), joined))
    return lengths


def _canonical(lengths: Ints) -> Ints:
    """Return the code words, which count up in the order of length, then of symbol."""
    words, code, before = np.zeros(len(lengths), np.int64), 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)).tolist():
        length = int(lengths[symbol])
        if length:
            code <<= length - before
            words[symbol], before = code, length
            code += 1
    return words


def _shares(count: int) -> Ints:
    """Number of symbols in each lane; the first lanes have one more where there is a remainder."""
    lanes = min(_LANES, 1 + count // _LANE)
    return np.asarray(count // lanes + (np.arange(lanes) < count % lanes), np.int64)


def encode_symbols(symbols: NDArray[Any], alphabet: int) -> bytes:
    """Encode `symbols` (N,), each 0..alphabet-1."""
    symbols = np.asarray(symbols, np.int64)
    lengths = code_lengths(np.bincount(symbols, minlength=alphabet))
    words = _canonical(lengths)
    stops = np.cumsum(_shares(len(symbols)))[:-1]
    lanes = [_bits(words[part], lengths[part]) for part in np.split(symbols, stops)]
    table = np.concatenate([lengths, np.zeros(alphabet % 2, np.int64)]).reshape(-1, 2)
    head = (table[:, 0] | table[:, 1] << 4).astype(np.uint8).tobytes()
    sizes = np.array([len(lane) for lane in lanes], "<u4").tobytes()
    return b"".join([head, sizes, *(np.packbits(lane).tobytes() for lane in lanes)])


def _bits(words: Ints, lengths: Ints) -> NDArray[np.uint8]:
    """Return the bits of all words, one after the other."""
    ends = np.cumsum(lengths)
    back = np.repeat(ends, lengths) - 1 - np.arange(ends[-1] if len(ends) else 0)
    return np.asarray((np.repeat(words, lengths) >> back) & 1, np.uint8)


def decode_symbols(
    stream: memoryview, alphabet: int, count: int, source: str
) -> tuple[Ints, memoryview]:
    """Decode `count` symbols from the head of `stream`; return them and the rest of it.

    Raises:
        ArtifactError: the stream is not what `encode_symbols` writes; `source` names it.
    """
    shares = _shares(count)
    head, sizes_end = (alphabet + 1) // 2, (alphabet + 1) // 2 + 4 * len(shares)
    if len(stream) < sizes_end:
        raise _damaged(source)
    packed = np.frombuffer(stream, np.uint8, head)
    lengths = np.stack([packed & 15, packed >> 4], axis=1).ravel()[:alphabet].astype(np.int64)
    sizes = np.frombuffer(stream, "<u4", len(shares), head).astype(np.int64)
    whole = (sizes + 7) // 8
    end = sizes_end + int(whole.sum())
    if len(stream) < end:
        raise _damaged(source)
    starts = (np.cumsum(whole) - whole) * 8
    payload = np.frombuffer(stream, np.uint8, end - sizes_end, sizes_end)
    return _decode(payload, _table(lengths, source), shares, starts, sizes, source), stream[end:]


def _table(lengths: Ints, source: str) -> Ints:
    """For every 15 bits: 16 times the symbol that they begin with, plus its length; 0 for none."""
    table = np.zeros(1 << _LONGEST, np.int64)
    spans = np.where(lengths > 0, 1 << (_LONGEST - lengths), 0)
    if int(spans.sum()) > len(table):
        raise _damaged(source)
    order = np.lexsort((np.arange(len(lengths)), lengths))
    order = order[lengths[order] > 0]
    table[: int(spans.sum())] = np.repeat(order * 16 + lengths[order], spans[order])
    return table


def _decode(
    payload: NDArray[np.uint8], table: Ints, shares: Ints, starts: Ints, sizes: Ints, source: str
) -> Ints:
    padded = np.concatenate([payload, np.zeros(3, np.uint8)]).astype(np.int64)
    window = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    steps = int(shares.max())
    found = np.zeros((steps, len(shares)), np.int64)
    at = starts.copy()
    for step in range(steps):
        lanes = len(shares) if step < shares[-1] else int((shares > step).sum())
        place = at[:lanes]
        word = window[np.minimum(place >> 3, len(window) - 1)]
        entry = table[(word >> (9 - (place & 7))) & 0x7FFF]
        found[step, :lanes] = entry
        place += entry & 15
    taken = np.arange(steps)[:, None] < shares
    if (at != starts + sizes).any() or (found[taken] == 0).any():
        raise _damaged(source)
    return np.asarray((found.T >> 4)[taken.T])


def _damaged(source: str) -> ArtifactError:
    return ArtifactError(f"{source}: its Huffman code is damaged; copy the file again")
