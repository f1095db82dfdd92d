"""Deep Compression without training: on some pictures weights make up for each other's errors.

What goes and what stays is told by what the heads' loss would lose; labels are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from edge.compress.codebook import Codebook
from edge.compress.feedback import Surroundings, look, rounded_with_feedback
from edge.compress.kmeans import Start
from edge.compress.magnitude import Scope, convolutions, magnitude_masks, two_four_mask
from edge.compress.onward import changed_onward
from edge.compress.sharing import share_tensor
from edge.compress.surgeon import pruned_with_refit, refitted, worth

__all__ = ["Seen", "prune_on_pictures", "share_on_pictures"]


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures that errors are made up for on.

    Attributes:
        images: (1, 3, H, W) each, as the network takes them.
        weights: of the places of each convolution's output; see `edge.compress.places`.
    """

    images: Sequence[torch.Tensor]
    weights: Mapping[str, torch.Tensor] | None = None


def prune_on_pictures(
    full: nn.Module,
    sparsity: float,
    seen: Seen,
    scope: Scope = "loss",
    *,
    two_four: bool = False,
) -> nn.Module:
    """A copy of `full` without the share `sparsity` of its weights, the others fitted anew.

    Args:
        scope: as `edge.compress.magnitude.magnitude_masks`; of what weights are worth, not of
            their size. Layers are comparable where `seen.weights` are of one loss.
        two_four: prune two of every four along the input channels in place of `sparsity`.

    Raises:
        CompressionError: a share or scope that cannot be.
    """
    around = look(full, seen.images, seen.weights)
    scores = {path: worth(conv.weight, around[path]) for path, conv in convolutions(full).items()}
    if two_four:
        masks = {path: two_four_mask(score) for path, score in scores.items()}
    else:
        masks = magnitude_masks(scores, sparsity, scope)

    def pruned(path: str, aim: torch.Tensor, around: Surroundings) -> torch.Tensor:
        if two_four:
            return refitted(aim, masks[path], around)
        return pruned_with_refit(aim, int(masks[path].sum()), around)

    return changed_onward(full, seen.images, pruned, seen.weights)


def share_on_pictures(
    pruned: nn.Module,
    full: nn.Module,
    bits: int | Mapping[str, int],
    seen: Seen,
    start: Start = "optimal",
    *,
    scaled: bool = False,
) -> tuple[nn.Module, dict[str, Codebook]]:
    """A copy of `full` whose convolutions take 2^bits values each, and their codebooks.

    Args:
        pruned: its zeros stay.
        bits: of every convolution, or by path.
        scaled: with a scale for each output channel.

    Raises:
        CompressionError: a layer has no weights left, or `bits` that cannot be.
    """
    books: dict[str, Codebook] = {}

    def shared(path: str, aim: torch.Tensor, around: Surroundings) -> torch.Tensor:
        before = pruned.get_submodule(path).weight.detach()
        aim = refitted(aim, before != 0, around, begin=before)
        count = bits if isinstance(bits, int) else bits[path]
        book = share_tensor(aim.numpy(), count, start, scaled=scaled)
        books[path] = _balanced(aim, book, around)
        return torch.from_numpy(books[path].dense())

    return changed_onward(full, seen.images, shared, seen.weights), books


def _balanced(weight: torch.Tensor, book: Codebook, around: Surroundings) -> Codebook:
    """The codebook whose indices make up for each other's errors."""
    centroids = torch.from_numpy(book.centroids)
    middles = (centroids[1:] + centroids[:-1]) / 2
    scale = torch.ones(len(weight)) if book.scale is None else torch.from_numpy(book.scale)
    shape = weight.shape
    even = around.rows(scale.view(-1, 1, 1, 1).expand(shape).contiguous())[:, :, 0]
    found = rounded_with_feedback(
        weight,
        around,
        lambda numbers: centroids[torch.bucketize((numbers / even).contiguous(), middles)] * even,
        kept=weight != 0,
    )
    place = torch.bucketize((found / scale.view(-1, 1, 1, 1)).contiguous(), middles) + 1
    return replace(book, index=(place * (weight != 0)).numpy())
