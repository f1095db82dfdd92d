"""Weight sharing: a layer's weights take few values, which are then trained (arXiv:1510.00149)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from edge.compress.codebook import Codebook
from edge.compress.kmeans import Start, kmeans_1d
from edge.compress.magnitude import convolutions
from edge.errors import CompressionError

__all__ = [
    "Clustered",
    "Shared",
    "attach_clusters",
    "attach_codebooks",
    "codebooks_of",
    "renew_clusters",
    "share_tensor",
    "share_weights",
    "sharing_rate",
]


def share_tensor(
    weight: NDArray[np.float32],
    bits: int,
    start: Start = "linear",
    seed: int = 0,
    rounds: int = 200,
) -> Codebook:
    """The codebook of a weight: 2^bits values at most; zeros stay zero and take none of them.

    Raises:
        CompressionError: fewer than 1 bit or more than 12, or a layer of zeros alone.
    """
    if not 0 <= bits <= 12:
        raise CompressionError(f"{bits} bits for a codebook; it takes 0 to 12")
    kept = weight != 0
    if not kept.any():
        raise CompressionError("a layer has lost all of its weights; prune less")
    found = kmeans_1d(weight[kept], 1 << bits, start, seed, rounds)
    place = np.searchsorted((found[1:] + found[:-1]) / 2, weight) + 1
    return Codebook(found.astype(np.float32), np.where(kept, place, 0))


def share_weights(
    module: nn.Module, bits: int | Mapping[str, int], start: Start = "linear", seed: int = 0
) -> dict[str, Codebook]:
    """A codebook for each convolution, by path; those that `bits` leaves out stay as they are.

    Raises:
        CompressionError: as `share_tensor`; names the layer.
    """
    books = {}
    for path, conv in convolutions(module).items():
        wanted = bits if isinstance(bits, int) else bits.get(path)
        if wanted is None:
            continue
        try:
            books[path] = share_tensor(conv.weight.detach().numpy(), wanted, start, seed)
        except CompressionError as error:
            raise CompressionError(f"{path}: {error}") from error
    return books


class Shared(nn.Module):
    """A parametrization that makes a weight from its centroids, which are what is trained.

    The gradient of a centroid is the sum of the gradients of its weights.
    """

    def __init__(self, book: Codebook) -> None:
        super().__init__()
        self.register_buffer("index", torch.from_numpy(book.index.astype(np.int64)))
        self._start = torch.from_numpy(book.centroids.astype(np.float32))

    def forward(self, centroids: torch.Tensor) -> torch.Tensor:
        return torch.cat([centroids.new_zeros(1), centroids])[self.index]

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return self._start.to(weight.dtype).clone()


class Clustered(nn.Module):
    """A parametrization that moves each weight to the nearest of its centroids.

    Weights go on learning behind it, as if they were not moved, and may change their cluster;
    pruned ones stay zero. `renew` moves the centroids to the middle of their clusters.
    """

    def __init__(self, book: Codebook) -> None:
        super().__init__()
        self.register_buffer("mask", torch.from_numpy(book.index != 0))
        self.register_buffer("centroids", torch.from_numpy(book.centroids.astype(np.float32)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        near = self.centroids[self._nearest(weight)]
        return weight + (near * self.mask - weight).detach()

    def _nearest(self, weight: torch.Tensor) -> torch.Tensor:
        middles = (self.centroids[1:] + self.centroids[:-1]) / 2
        return torch.bucketize(weight.detach(), middles)

    def book(self, weight: torch.Tensor) -> Codebook:
        """What `weight` is moved to, without the centroids that nothing is near."""
        place = torch.where(self.mask, self._nearest(weight) + 1, 0).numpy()
        used = np.unique(place[place > 0])
        fresh = np.zeros(len(self.centroids) + 1, np.int64)
        fresh[used] = np.arange(1, len(used) + 1)
        return Codebook(self.centroids.numpy()[used - 1].copy(), fresh[place])

    def renew(self, weight: torch.Tensor) -> None:
        """Fit the centroids to the weights behind them."""
        kept = weight.detach()[self.mask].double().numpy()
        found = kmeans_1d(kept, len(self.centroids), centres=self.centroids.double().numpy())
        if len(found) == len(self.centroids):
            self.centroids.copy_(torch.from_numpy(found))


def attach_clusters(module: nn.Module, books: Mapping[str, Codebook]) -> None:
    """Keep weights near few values while they learn, until `edge.compress.magnitude.detach`."""
    for path, book in books.items():
        parametrize.register_parametrization(module.get_submodule(path), "weight", Clustered(book))


def renew_clusters(module: nn.Module) -> None:
    """Fit the centroids of every clustered layer to its weights."""
    for conv in convolutions(module).values():
        if parametrize.is_parametrized(conv, "weight"):
            held = conv.parametrizations.weight
            held[0].renew(held.original)


def attach_codebooks(module: nn.Module, books: Mapping[str, Codebook]) -> None:
    """Let whatever trains the module train centroids, until `edge.compress.magnitude.detach`."""
    for path, book in books.items():
        conv = module.get_submodule(path)
        parametrize.register_parametrization(conv, "weight", Shared(book))


def codebooks_of(module: nn.Module) -> dict[str, Codebook]:
    """The codebooks of a module whose layers are `Shared` or `Clustered`, centroids sorted."""
    books = {}
    for path, conv in convolutions(module).items():
        if parametrize.is_parametrized(conv, "weight"):
            held = conv.parametrizations.weight
            original = held.original.detach()
            if isinstance(held[0], Clustered):
                books[path] = held[0].book(original)
            else:
                books[path] = _sorted(original.numpy(), held[0].index.numpy())
    return books


def _sorted(centroids: NDArray[np.float32], index: NDArray[np.int64]) -> Codebook:
    order = np.argsort(centroids, kind="stable")
    places = np.zeros(len(order) + 1, np.int64)
    places[order + 1] = np.arange(1, len(order) + 1)
    return Codebook(centroids[order].copy(), places[index])


def sharing_rate(book: Codebook, full_bits: int = 32, value_bits: int = 32) -> float:
    """Deep Compression's rate n b / (n log2 k + k b) of a layer: n weights, k centroids of b bits.

    Whole bits are counted for an index, as a file without Huffman codes has them; where weights
    are pruned, zero is one value more.

    Args:
        full_bits: of a weight beforehand.
        value_bits: of a centroid.
    """
    size, levels = book.index.size, book.levels
    index_bits = (levels - 1 + book.pruned).bit_length()
    return size * full_bits / (size * index_bits + levels * value_bits)
