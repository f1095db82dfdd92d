"""The codes of a network's layers as bytes, in one of three codings.

`packed`   every code in the fewest whole bits: Deep Compression before its Huffman stage.
`huffman`  pruned positions as distances between the kept ones, distances and values each in a
           canonical Huffman code of the layer (Deep Compression, arXiv:1510.00149).
`ans`      `edge.edgez.context`'s model with rANS, one stream for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.edgez.context import BLOCKS, code_layer
from edge.edgez.huffman import decode_symbols, encode_symbols
from edge.edgez.rans import MAX_LANES, Decoder, Encoder, Meter
from edge.errors import ArtifactError

__all__ = [
    "CODINGS",
    "Layer",
    "decode",
    "encode",
    "entropy_bits",
    "model_bits",
    "relative_bits",
    "smallest",
]

CODINGS = ("packed", "huffman", "ans")
_WEIGHTS_A_LANE = 32_768
_GAP_BITS = range(2, 9)
# Steps of `ans` that a stream may take: these, and more for each of its bytes. Packages of trained
# detectors take 0.02 to 0.11 a byte; a step takes some 0.2 ms.
_FREE_STEPS, _STEPS_A_BYTE = 2048, 2
_WORD = 4  # bytes of a length in the Huffman coding
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """What a decoder knows of a layer beforehand.

    Attributes:
        shape: output channels, input channels, taps of the kernel.
        levels: size of the codebook, K.
        pruned: whether code 0 occurs.
    """

    shape: tuple[int, int, int]
    levels: int
    pruned: bool

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def bits(self) -> int:
        """Whole bits that tell one code."""
        return (self.levels - 1 + self.pruned).bit_length()


def entropy_bits(layers: Sequence[Layer], codes: Sequence[Ints]) -> float:
    """Return the entropy in bits: no coding of single codes by their frequency needs fewer."""
    total = 0.0
    for layer, code in zip(layers, codes, strict=True):
        counts = np.bincount(code.ravel(), minlength=layer.levels + 1)
        counts = counts[counts > 0]
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total


def model_bits(layers: Sequence[Layer], codes: Sequence[Ints]) -> float:
    """Return the bits that an ideal coder needs with the model of `ans`."""
    meter = Meter()
    for layer, code in zip(layers, codes, strict=True):
        code_layer(meter, layer.shape, layer.levels, code)
    return meter.bits


def encode(layers: Sequence[Layer], codes: Sequence[Ints], coding: str) -> bytes:
    """Encode the codes of all layers in one of `CODINGS`.

    Args:
        codes: of each layer, (O, I, T), 0 for a pruned position, else 1..K.

    Raises:
        ValueError: no such coding, or layers that it does not take.
    """
    pairs = list(zip(layers, codes, strict=True))
    if coding == "packed":
        return b"".join(_pack(layer, code.ravel()) for layer, code in pairs)
    if coding == "huffman":
        return b"".join(_encode_layer(layer, code.ravel()) for layer, code in pairs)
    if coding != "ans":
        raise ValueError(f"coding is {coding!r}; known: {', '.join(CODINGS)}")
    encoder = Encoder(_lanes(layers))
    for layer, code in pairs:
        code_layer(encoder, layer.shape, layer.levels, code)
    stream = encoder.finish()
    if not _worth_decoding(layers, len(stream)):
        raise ValueError("ans takes too many steps for so few bytes; take huffman")
    return stream


def smallest(layers: Sequence[Layer], codes: Sequence[Ints]) -> tuple[str, bytes]:
    """Return the coding that needs the fewest bytes, and those bytes."""
    streams = {coding: encode(layers, codes, coding) for coding in ("packed", "huffman")}
    # In vain where even the larger stream would be too small for so many steps.
    if _worth_decoding(layers, max(map(len, streams.values()))):
        with suppress(ValueError):
            streams["ans"] = encode(layers, codes, "ans")
    best = min(streams, key=lambda coding: len(streams[coding]))
    return best, streams[best]


def decode(
    stream: bytes | memoryview, layers: Sequence[Layer], coding: str, source: str
) -> Iterator[Ints]:
    """Decode the codes (O, I, T) of one layer after the other; only one is held at a time.

    Raises:
        ArtifactError: the stream is damaged, or belongs to other layers; `source` names it.
    """
    rest = memoryview(stream)
    if coding == "ans":
        yield from _decode_ans(rest, layers, source)
        return
    read = _unpack if coding == "packed" else _decode_layer
    for layer in layers:
        code, rest = read(layer, rest, source)
        yield code.reshape(layer.shape)
    if len(rest):
        raise ArtifactError(f"{source}: {len(rest)} bytes are left over after the last layer")


def _worth_decoding(layers: Sequence[Layer], stored: int) -> bool:
    """Whether `ans` decodes `stored` bytes in a time that is in proportion to them.

    The model takes a step for each column of O channels, and for each binary digit of a block of
    values a step whose time grows with the codebook.
    """
    steps = 0.0
    for layer in layers:
        digits = (layer.levels - 1).bit_length()
        blocks = min(layer.size / 32 + 1, BLOCKS + 1)
        steps += prod(layer.shape[1:]) + digits * blocks * (0.1 + (1 << digits) / 2048)
    return steps <= _FREE_STEPS + _STEPS_A_BYTE * stored


def _lanes(layers: Sequence[Layer]) -> int:
    """Number of lanes, a power of two: few enough to cost less than a thousandth of the stream."""
    wanted = sum(layer.size for layer in layers) // _WEIGHTS_A_LANE
    return min(MAX_LANES, 1 << max(2, wanted.bit_length()))


def _decode_ans(stream: memoryview, layers: Sequence[Layer], source: str) -> Iterator[Ints]:
    if not _worth_decoding(layers, len(stream)):
        raise ArtifactError(
            f"{source}: its weights would take too long to decode for {len(stream)} bytes: damaged"
        )
    decoder = Decoder(stream, _lanes(layers), source)
    for layer in layers:
        codes = code_layer(decoder, layer.shape, layer.levels, None)
        _check_codes(codes, layer, source)
        yield codes
    decoder.finish()


def _check_codes(codes: Ints, layer: Layer, source: str) -> None:
    if codes.size and int(codes.max()) > layer.levels:
        raise ArtifactError(f"{source}: a code is beyond its codebook of {layer.levels}: damaged")


def _pack(layer: Layer, codes: Ints) -> bytes:
    values = codes - (0 if layer.pruned else 1)
    digits = np.arange(layer.bits - 1, -1, -1)
    return np.packbits(((values[:, None] >> digits) & 1).astype(np.uint8)).tobytes()


def _unpack(layer: Layer, stream: memoryview, source: str) -> tuple[Ints, memoryview]:
    size = (layer.size * layer.bits + 7) // 8
    if len(stream) < size:
        raise ArtifactError(f"{source}: ends inside a layer; copy the file again")
    bits = np.unpackbits(np.frombuffer(stream, np.uint8, size), count=layer.size * layer.bits)
    codes = np.zeros(layer.size, np.int64)
    for digit in bits.reshape(layer.size, layer.bits).T:
        codes = codes * 2 + digit
    codes += 0 if layer.pruned else 1
    _check_codes(codes, layer, source)
    return codes, stream[size:]


def _gaps(codes: Ints, bits: int) -> Ints:
    """Zeros before each kept code; the highest symbol stands for that many zeros and no code."""
    most = (1 << bits) - 1
    zeros = np.diff(np.flatnonzero(codes), prepend=-1) - 1
    fillers, rest = np.divmod(zeros, most)
    symbols = np.full(int(fillers.sum()) + len(rest), most, np.int64)
    symbols[np.cumsum(fillers + 1) - 1] = rest
    return symbols


def _encode_layer(layer: Layer, codes: Ints) -> bytes:
    values = codes[codes != 0] - 1
    kept = encode_symbols(values, layer.levels)
    if not layer.pruned:
        return kept
    options = []
    for bits in _GAP_BITS:
        gaps = _gaps(codes, bits)
        head = bytes([bits]) + len(gaps).to_bytes(_WORD, "little")
        options.append(head + encode_symbols(gaps, 1 << bits))
    return min(options, key=len) + kept


def _decode_layer(layer: Layer, stream: memoryview, source: str) -> tuple[Ints, memoryview]:
    places: NDArray[Any] = np.arange(layer.size)
    if layer.pruned:
        places, stream = _decode_places(layer, stream, source)
    values, stream = decode_symbols(stream, layer.levels, len(places), source)
    codes = np.zeros(layer.size, np.int64)
    codes[places] = values + 1
    return codes, stream


def _decode_places(layer: Layer, stream: memoryview, source: str) -> tuple[Ints, memoryview]:
    if len(stream) < 1 + _WORD or stream[0] not in _GAP_BITS:
        raise ArtifactError(
            f"{source}: the distances of a pruned layer are missing; copy the file again"
        )
    bits, count = stream[0], int.from_bytes(stream[1 : 1 + _WORD], "little")
    # A symbol takes one position or more, so there cannot be more of them than weights.
    if count > layer.size:
        raise ArtifactError(f"{source}: {count} distances for {layer.size} weights: damaged")
    gaps, stream = decode_symbols(stream[1 + _WORD :], 1 << bits, count, source)
    filler = gaps == (1 << bits) - 1
    places = (np.cumsum(gaps + ~filler) - 1)[~filler]
    if len(places) and int(places[-1]) >= layer.size:
        raise ArtifactError(f"{source}: a pruned layer runs over its end: damaged")
    return places, stream


def relative_bits(code: Ints, value_bits: int) -> int:
    """Return the bits of a pruned layer before Huffman coding, as Deep Compression stores it.

    Each kept value comes with the zeros before it as a distance. All distances have one number of
    bits, the one that takes the least room; a longer distance is filled up with stored zeros of
    `value_bits` each.
    """
    flat = code.ravel()
    if (flat != 0).all():
        return value_bits * flat.size
    return min((bits + value_bits) * len(_gaps(flat, bits)) for bits in range(1, 9))
