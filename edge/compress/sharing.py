"""Weight sharing: a layer's weights take few values, which are then trained (arXiv:1510.00149)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    "rounded_scale",
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
    *,
    scaled: bool = False,
) -> Codebook:
    """The codebook of a weight: 2^bits values at most; zeros stay zero and take none of them.

    Args:
        scaled: divide each output channel by its root mean square first. Folded batch norms leave
            channels of very different ranges, which few values cannot serve.

    Raises:
        CompressionError: fewer than 1 bit or more than 12, or a layer of zeros alone.
    """
    if not 0 <= bits <= 12:
        raise CompressionError(f"{bits} bits for a codebook; it takes 0 to 12")
    kept = weight != 0
    if not kept.any():
        raise CompressionError("a layer has lost all of its weights; prune less")
    scale = rounded_scale(_channel_size(torch.from_numpy(weight)).numpy()) if scaled else None
    even = weight if scale is None else weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
    found = kmeans_1d(even[kept], 1 << bits, start, seed, rounds)
    place = np.searchsorted((found[1:] + found[:-1]) / 2, even) + 1
    return Codebook(found.astype(np.float32), np.where(kept, place, 0), scale)


def rounded_scale(scale: NDArray[Any]) -> NDArray[np.float32]:
    """Scales (O,) of five significant binary digits: within 3 %, and packed they take less room.

    Centroids are trained after it.
    """
    fraction, exponent = np.frexp(scale.astype(np.float64))
    return np.asarray(np.ldexp(np.round(fraction * 32) / 32, exponent).astype(np.float32))


def _channel_size(weight: torch.Tensor) -> torch.Tensor:
    """Root mean square of what is not zero in each output channel, (O,); 1 where all is."""
    flat = weight.detach().flatten(1)
    count = (flat != 0).sum(dim=1)
    size = (flat.square().sum(dim=1) / count.clamp(min=1)).sqrt()
    return torch.where(size > 0, size, torch.ones_like(size))


def share_weights(
    module: nn.Module,
    bits: int | Mapping[str, int],
    start: Start = "linear",
    seed: int = 0,
    *,
    scaled: bool = False,
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
            weight = conv.weight.detach().numpy()
            books[path] = share_tensor(weight, wanted, start, seed, scaled=scaled)
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
        self.register_buffer("scale", _scale_of(book))
        self._start = torch.from_numpy(book.centroids.astype(np.float32))

    def forward(self, centroids: torch.Tensor) -> torch.Tensor:
        shared = torch.cat([centroids.new_zeros(1), centroids])[self.index]
        return shared if self.scale is None else shared * self.scale

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return self._start.to(weight.dtype).clone()


class Clustered(nn.Module):
    """A parametrization that moves each weight to the nearest of its centroids.

    Weights go on learning behind it, as if they were not moved, and may change their cluster;
    pruned ones stay zero. `renew` moves the centroids to the middle of their clusters, and scales
    to the size of their channels.
    """

    def __init__(self, book: Codebook) -> None:
        super().__init__()
        self.register_buffer("mask", torch.from_numpy(book.index != 0))
        self.register_buffer("centroids", torch.from_numpy(book.centroids.astype(np.float32)))
        self.register_buffer("scale", _scale_of(book))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        near = self.centroids[self._nearest(weight)]
        if self.scale is not None:
            near = near * self.scale
        return weight + (near * self.mask - weight).detach()

    def _even(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach() if self.scale is None else weight.detach() / self.scale

    def _nearest(self, weight: torch.Tensor) -> torch.Tensor:
        middles = (self.centroids[1:] + self.centroids[:-1]) / 2
        return torch.bucketize(self._even(weight).contiguous(), middles)

    def book(self, weight: torch.Tensor) -> Codebook:
        """What `weight` is moved to, without the centroids that nothing is near."""
        place = torch.where(self.mask, self._nearest(weight) + 1, 0).numpy()
        used = np.unique(place[place > 0])
        fresh = np.zeros(len(self.centroids) + 1, np.int64)
        fresh[used] = np.arange(1, len(used) + 1)
        return Codebook(self.centroids.numpy()[used - 1].copy(), fresh[place], _plain(self.scale))

    def renew(self, weight: torch.Tensor) -> None:
        """Fit scales and centroids to the weights behind them."""
        if self.scale is not None:
            self.scale.copy_(_channel_size(weight * self.mask).view_as(self.scale))
        kept = self._even(weight)[self.mask].double().numpy()
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
                scale = _plain(held[0].scale)
                books[path] = _sorted(original.numpy(), held[0].index.numpy(), scale)
    return books


def _scale_of(book: Codebook) -> torch.Tensor | None:
    """The scales of a codebook, (O, 1, ...)."""
    if book.scale is None:
        return None
    return torch.from_numpy(book.scale.astype(np.float32)).view(-1, *[1] * (book.index.ndim - 1))


def _plain(scale: torch.Tensor | None) -> NDArray[np.float32] | None:
    return None if scale is None else scale.flatten().numpy().copy()


def _sorted(
    centroids: NDArray[np.float32], index: NDArray[np.int64], scale: NDArray[np.float32] | None
) -> Codebook:
    order = np.argsort(centroids, kind="stable")
    places = np.zeros(len(order) + 1, np.int64)
    places[order + 1] = np.arange(1, len(order) + 1)
    return Codebook(centroids[order].copy(), places[index], scale)


def sharing_rate(book: Codebook, full_bits: int = 32, value_bits: int = 32) -> float:
    """Deep Compression's rate n b / (n log2 k + k b) of a layer: n weights, k centroids of b bits.

    A scale counts as a centroid does.

    Whole bits are counted for an index, as a file without Huffman codes has them; where weights
    are pruned, zero is one value more.

    Args:
        full_bits: of a weight beforehand.
        value_bits: of a centroid.
    """
    size, levels = book.index.size, book.levels
    index_bits = (levels - 1 + book.pruned).bit_length()
    numbers = levels + (0 if book.scale is None else len(book.scale))
    return size * full_bits / (size * index_bits + numbers * value_bits)
