"""Deep Compression without training: on some pictures weights make up for each other's errors.

What goes and what stays is told by what the heads' loss would lose; labels are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from edge.compress.weights.feedback import Surroundings, look, rounded_with_feedback
from edge.compress.weights.kmeans import Start
from edge.compress.weights.magnitude import Scope, convolutions, magnitude_masks, two_four_mask
from edge.compress.weights.onward import changed_onward
from edge.compress.weights.sharing import share_tensor
from edge.edgez.codebook import Codebook

__all__ = [
    "Seen",
    "prune_on_pictures",
    "pruned_with_refit",
    "refitted",
    "share_on_pictures",
    "worth",
]


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures that errors are made up for on.

    Attributes:
        images: (1, 3, H, W) each, as the network takes them.
        weights: of the places of each convolution's output; see `edge.compress.weights.places`.
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
        scope: as `edge.compress.weights.magnitude.magnitude_masks`; of what weights are worth, not
        of
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


_ROUNDS = 8
_STEPS_BETWEEN, _STEPS = 15, 60


def worth(weight: torch.Tensor, around: Surroundings) -> torch.Tensor:
    """Root of what the outputs are off by without each weight, like `weight` (O, I, kh, kw)."""
    rows = around.rows(weight)
    return around.weight(rows.abs() / around.slack.sqrt(), weight.shape)


def pruned_with_refit(weight: torch.Tensor, keep: int, around: Surroundings) -> torch.Tensor:
    """The weight (O, I, kh, kw) with at most `keep` that are not zero, those fitted anew.

    They go in several rounds, more at first, and what is left is fitted in between.
    """
    found, count = weight.detach(), weight.numel()
    for left in range(_ROUNDS - 1, -1, -1):
        gone = round((count - keep) * (1 - (left / _ROUNDS) ** 3))
        score = worth(found, around)
        level = score.flatten().kthvalue(gone).values if gone else -1.0
        mask = (score > level) | (score == score.max())
        found = refitted(weight, mask, around, _STEPS_BETWEEN if left else _STEPS, found)
    return found


def refitted(
    weight: torch.Tensor,
    mask: torch.Tensor,
    around: Surroundings,
    steps: int = _STEPS,
    begin: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights of `mask`, all others zero, whose outputs are nearest to those of `weight`.

    Args:
        steps: of conjugate gradients, at most.
        begin: where to begin; left out, at the weight itself.
    """
    stays, wanted = around.rows(mask), around.rows(weight)
    found = stays * (wanted if begin is None else around.rows(begin))
    rest = stays * ((wanted - found) @ around.moment)
    way, size = rest.clone(), rest.square().sum(dim=2, keepdim=True)
    for _ in range(steps):
        seen = stays * (way @ around.moment)
        far = size / (way * seen).sum(dim=2, keepdim=True).clamp(min=1e-30)
        found = found + far * way
        rest = rest - far * seen
        before, size = size, rest.square().sum(dim=2, keepdim=True)
        way = rest + size / before.clamp(min=1e-30) * way
    return around.weight(found, weight.shape)
