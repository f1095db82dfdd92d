"""Bytes of a network's weights after each stage of Deep Compression, counted as its paper does.

Source: arXiv:1510.00149, section 2 and 3. Headers and the graph are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from edge.edgez.codebook import Codebook
from edge.edgez.coding import Layer, entropy_bits, relative_bits

__all__ = ["bound_bytes", "pruned_bytes", "shared_bytes"]


def _weights(module: nn.Module) -> Iterator[tuple[str, Any, int]]:
    """Path, weight and number of biases of each convolution."""
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            yield path, part.weight.detach().numpy(), len(part.bias)


def pruned_bytes(module: nn.Module) -> int:
    """As Deep Compression counts: FP32 values, relative positions, FP32 biases."""
    bits = sum(
        relative_bits((weight != 0).astype(np.int64), 32) + 32 * biases
        for _, weight, biases in _weights(module)
    )
    return -(-bits // 8)


def shared_bytes(module: nn.Module, books: Mapping[str, Codebook], half: bool) -> int:
    """The same with indices in place of values, and the codebooks.

    Args:
        books: by the path of each convolution.
        half: centroids, scales and biases in FP16.
    """
    value, bits = 16 if half else 32, 0
    for path, _, biases in _weights(module):
        book = books[path]
        index_bits = max(1, (book.levels - 1).bit_length())
        scales = 0 if book.scale is None else len(book.scale)
        bits += relative_bits(book.matrix(), index_bits)
        bits += value * (book.levels + scales + biases)
    return -(-bits // 8)


def bound_bytes(books: Mapping[str, Codebook]) -> float:
    """The entropy of single codes, each in its layer."""
    codes = [book.matrix() for book in books.values()]
    layers = [
        Layer(code.shape, b.levels, b.pruned) for code, b in zip(codes, books.values(), strict=True)
    ]
    return round(entropy_bits(layers, codes) / 8, 1)
