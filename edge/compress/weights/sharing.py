"""Weight sharing: a layer's weights take few values, which then learn (arXiv:1510.00149)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from edge.compress.options import Start
from edge.compress.weights.kmeans import kmeans_1d
from edge.compress.weights.magnitude import convolutions
from edge.edgez.codebook import Codebook
from edge.errors import CompressionError

__all__ = [
    "Clustered",
    "attach_clusters",
    "codebooks_of",
    "renew_clusters",
    "rounded_scale",
    "share_tensor",
    "share_weights",
    "weights_behind",
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
    """Return a codebook of at most 2^bits values for a weight; zeros stay zero and take none.

    Args:
        scaled: divide each output channel by its root mean square first. Folded batch norms leave
            channels of very different ranges, for which few values are not enough.

    Raises:
        CompressionError: fewer than 0 bits or more than 12, or all weights are zero.
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
    """Round scales (O,) to five significant binary digits, which take less room when packed.

    The error is below 3 %, and centroids are fitted afterwards.
    """
    fraction, exponent = np.frexp(scale.astype(np.float64))
    return np.asarray(np.ldexp(np.round(fraction * 32) / 32, exponent).astype(np.float32))


def _channel_size(weight: torch.Tensor) -> torch.Tensor:
    """Return the root mean square (O,) of each output channel's weights that are not zero."""
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
    """Return a codebook for each convolution, by path; those that `bits` leaves out are not shared.

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


class Clustered(nn.Module):
    """A parametrization that moves each weight to the nearest centroid.

    The weights behind it keep learning as if they were not moved, and may change to another
    centroid; pruned ones stay zero. Each centroid learns from the sum of its weights' gradients,
    as the step of a quantizer does in arXiv:1902.08153.

    Attributes:
        gain: logarithm of a factor of the output channels' scales, (O, 1, ...), which learns; None
            where `renew` sets the scales to the size of their channels.
    """

    def __init__(self, book: Codebook, *, gains: bool = False) -> None:
        super().__init__()
        self.register_buffer("mask", torch.from_numpy(book.index != 0))
        self.register_buffer("scale", _scale_of(book))
        self.centroids = nn.Parameter(torch.from_numpy(book.centroids.astype(np.float32)))
        learns = gains and self.scale is not None
        self.gain = nn.Parameter(torch.zeros_like(self.scale)) if learns else None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale, ordered = self._scale(), self.centroids.sort().values
        near = ordered[_nearest(weight.detach(), ordered.detach(), scale)]
        if scale is not None:
            near = near * scale
        return near * self.mask + (weight - weight.detach())

    def _scale(self) -> torch.Tensor | None:
        if self.gain is None:
            found: torch.Tensor | None = self.scale
            return found
        return self.scale * self.gain.exp()

    def book(self, weight: torch.Tensor) -> Codebook:
        """Return the codebook that `weight` is moved to, without unused centroids."""
        with torch.no_grad():
            scale, ordered = self._scale(), self.centroids.sort().values
            place = torch.where(self.mask, _nearest(weight, ordered, scale) + 1, 0).numpy()
        used = np.unique(place[place > 0])
        fresh = np.zeros(len(ordered) + 1, np.int64)
        fresh[used] = np.arange(1, len(used) + 1)
        return Codebook(ordered.numpy()[used - 1].copy(), fresh[place], _plain(scale))

    def renew(self, weight: torch.Tensor) -> None:
        """Set the scales to the size of the weights behind them."""
        if self.scale is not None and self.gain is None:
            self.scale.copy_(_channel_size(weight * self.mask).view_as(self.scale))


def _nearest(
    weight: torch.Tensor, ordered: torch.Tensor, scale: torch.Tensor | None
) -> torch.Tensor:
    """Return the index of the centroid that, scaled, is nearest to each weight."""
    even = weight if scale is None else weight / scale.detach()
    return torch.bucketize(even.contiguous(), (ordered[1:] + ordered[:-1]) / 2)


def attach_clusters(
    module: nn.Module, books: Mapping[str, Codebook], *, gains: bool = False
) -> None:
    """Keep weights at few values while they learn, until `magnitude.detach`."""
    for path, book in books.items():
        conv = module.get_submodule(path)
        parametrize.register_parametrization(conv, "weight", Clustered(book, gains=gains))


def renew_clusters(module: nn.Module) -> None:
    """Set the scales of every clustered layer to the size of its weights."""
    for conv in convolutions(module).values():
        if parametrize.is_parametrized(conv, "weight"):
            held = conv.parametrizations.weight
            held[0].renew(held.original)


def weights_behind(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that learn behind each clustered layer, by path."""
    return {
        path: conv.parametrizations.weight.original.detach().clone()
        for path, conv in convolutions(module).items()
        if parametrize.is_parametrized(conv, "weight")
    }


def codebooks_of(module: nn.Module) -> dict[str, Codebook]:
    """Return the codebooks of the clustered layers, centroids sorted, by path."""
    return {
        path: conv.parametrizations.weight[0].book(conv.parametrizations.weight.original)
        for path, conv in convolutions(module).items()
        if parametrize.is_parametrized(conv, "weight")
    }


def _scale_of(book: Codebook) -> torch.Tensor | None:
    """Return the scales of a codebook, (O, 1, ...)."""
    if book.scale is None:
        return None
    return torch.from_numpy(book.scale.astype(np.float32)).view(-1, *[1] * (book.index.ndim - 1))


def _plain(scale: torch.Tensor | None) -> NDArray[np.float32] | None:
    return None if scale is None else scale.flatten().numpy().copy()
