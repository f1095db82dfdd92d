"""Bytes of a network's weights after each stage of Deep Compression, counted as its paper does.

Source: arXiv:1510.00149, sections 2 and 3. Headers and the graph are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from edge.edgez.codebook import Codebook
from edge.edgez.coding import Layer, entropy_bits, relative_bits

__all__ = ["entropy_bytes", "pruned_bytes", "shared_bytes", "sharing_rate"]


def _weights(module: nn.Module) -> Iterator[tuple[str, Any, int]]:
    """Yield path, weight and number of biases of each convolution."""
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            yield path, part.weight.detach().numpy(), len(part.bias)


def pruned_bytes(module: nn.Module) -> int:
    """Return the bytes of a pruned network: FP32 values, relative positions, FP32 biases."""
    bits = sum(
        relative_bits((weight != 0).astype(np.int64), 32) + 32 * biases
        for _, weight, biases in _weights(module)
    )
    return -(-bits // 8)


def shared_bytes(module: nn.Module, books: Mapping[str, Codebook], half: bool) -> int:
    """Return the bytes of a network with shared values: indices, relative positions, codebooks.

    Args:
        books: by the path of each convolution.
        half: whether centroids, scales and biases are in FP16.
    """
    value, bits = 16 if half else 32, 0
    for path, _, biases in _weights(module):
        book = books[path]
        index_bits = max(1, (book.levels - 1).bit_length())
        scales = 0 if book.scale is None else len(book.scale)
        bits += relative_bits(book.matrix(), index_bits)
        bits += value * (book.levels + scales + biases)
    return -(-bits // 8)


def entropy_bytes(books: Mapping[str, Codebook]) -> float:
    """Return the entropy of the codes, taken one by one, each with the frequencies of its layer."""
    codes = [book.matrix() for book in books.values()]
    layers = [
        Layer(code.shape, b.levels, b.pruned) for code, b in zip(codes, books.values(), strict=True)
    ]
    return round(entropy_bits(layers, codes) / 8, 1)


def sharing_rate(book: Codebook, full_bits: int = 32, value_bits: int = 32) -> float:
    """Return Deep Compression's rate n b / (n log2 k + k b): n weights, k centroids of b bits.

    Indices have whole bits, as in a file without entropy coding. A scale counts as a centroid
    does, and zero as one value more where weights are pruned.

    Args:
        full_bits: bits of a weight beforehand.
        value_bits: bits of a centroid.
    """
    size, levels = book.index.size, book.levels
    index_bits = (levels - 1 + book.pruned).bit_length()
    numbers = levels + (0 if book.scale is None else len(book.scale))
    return size * full_bits / (size * index_bits + numbers * value_bits)
