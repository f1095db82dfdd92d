"""Deep Compression without training: on some pictures weights make up for each other's errors.

How much the loss at the heads would grow decides what is removed; no labels are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from edge.compress.options import Scope, Start
from edge.compress.weights.feedback import (
    InputMoments,
    change_layers,
    input_moments,
    rounded_with_feedback,
)
from edge.compress.weights.magnitude import convolutions, magnitude_masks, two_four_mask
from edge.compress.weights.sharing import share_tensor
from edge.edgez.codebook import Codebook

__all__ = [
    "WeightedPictures",
    "prune_on_pictures",
    "pruned_with_refit",
    "refitted",
    "share_on_pictures",
    "worth",
]


@dataclass(frozen=True, eq=False)
class WeightedPictures:
    """Pictures on which errors are to cancel.

    Attributes:
        images: (1, 3, H, W) each, as the network takes them.
        weights: of the places of each convolution's output; see `edge.compress.weights.places`.
    """

    images: Sequence[torch.Tensor]
    weights: Mapping[str, torch.Tensor] | None = None


def prune_on_pictures(
    full: nn.Module,
    sparsity: float,
    pictures: WeightedPictures,
    scope: Scope = "loss",
    *,
    two_four: bool = False,
) -> nn.Module:
    """Return a copy of `full` without the share `sparsity` of its weights, the others fitted anew.

    Args:
        scope: as `edge.compress.weights.magnitude.magnitude_masks`, by what weights are worth, not
            by their size. Layers are comparable where `pictures.weights` are of one loss.
        two_four: prune two of every four along the input channels instead of `sparsity`.

    Raises:
        CompressionError: an impossible share or scope.
    """
    moments = input_moments(full, pictures.images, pictures.weights)
    scores = {path: worth(conv.weight, moments[path]) for path, conv in convolutions(full).items()}
    if two_four:
        masks = {path: two_four_mask(score) for path, score in scores.items()}
    else:
        masks = magnitude_masks(scores, sparsity, scope)

    def pruned(path: str, aim: torch.Tensor, inputs: InputMoments) -> torch.Tensor:
        if two_four:
            return refitted(aim, masks[path], inputs)
        return pruned_with_refit(aim, int(masks[path].sum()), inputs)

    return change_layers(full, pictures.images, pruned, pictures.weights)


def share_on_pictures(
    pruned: nn.Module,
    full: nn.Module,
    bits: int | Mapping[str, int],
    pictures: WeightedPictures,
    start: Start = "optimal",
    *,
    scaled: bool = False,
) -> tuple[nn.Module, dict[str, Codebook]]:
    """Return a copy of `full` whose convolutions take 2^bits values each, and their codebooks.

    Args:
        pruned: the same network pruned; its zeros stay.
        bits: of every convolution, or by path.
        scaled: give each output channel a scale.

    Raises:
        CompressionError: a layer has no weights left, or impossible `bits`.
    """
    books: dict[str, Codebook] = {}

    def shared(path: str, aim: torch.Tensor, inputs: InputMoments) -> torch.Tensor:
        before = pruned.get_submodule(path).weight.detach()
        aim = refitted(aim, before != 0, inputs, begin=before)
        count = bits if isinstance(bits, int) else bits[path]
        book = share_tensor(aim.numpy(), count, start, scaled=scaled)
        books[path] = _balanced(aim, book, inputs)
        return torch.from_numpy(books[path].dense())

    return change_layers(full, pictures.images, shared, pictures.weights), books


def _balanced(weight: torch.Tensor, book: Codebook, inputs: InputMoments) -> Codebook:
    """Return the codebook with indices chosen such that errors cancel."""
    centroids = torch.from_numpy(book.centroids)
    middles = (centroids[1:] + centroids[:-1]) / 2
    scale = torch.ones(len(weight)) if book.scale is None else torch.from_numpy(book.scale)
    shape = weight.shape
    even = inputs.rows(scale.view(-1, 1, 1, 1).expand(shape).contiguous())[:, :, 0]
    found = rounded_with_feedback(
        weight,
        inputs,
        lambda numbers: centroids[torch.bucketize((numbers / even).contiguous(), middles)] * even,
        kept=weight != 0,
    )
    place = torch.bucketize((found / scale.view(-1, 1, 1, 1)).contiguous(), middles) + 1
    return replace(book, index=(place * (weight != 0)).numpy())


_ROUNDS = 8
_STEPS_BETWEEN, _STEPS = 15, 60


def worth(weight: torch.Tensor, inputs: InputMoments) -> torch.Tensor:
    """Return the root of the outputs' error without each weight, of the shape of `weight`."""
    rows = inputs.rows(weight)
    return inputs.weight(rows.abs() / inputs.slack.sqrt(), weight.shape)


def pruned_with_refit(weight: torch.Tensor, keep: int, inputs: InputMoments) -> torch.Tensor:
    """Return the weight (O, I, kh, kw) with at most `keep` numbers that are not zero, fitted anew.

    They are removed in several rounds, more at first, and the rest is fitted in between.
    """
    found, count = weight.detach(), weight.numel()
    for left in range(_ROUNDS - 1, -1, -1):
        gone = round((count - keep) * (1 - (left / _ROUNDS) ** 3))
        score = worth(found, inputs)
        level = score.flatten().kthvalue(gone).values if gone else -1.0
        mask = (score > level) | (score == score.max())
        found = refitted(weight, mask, inputs, _STEPS_BETWEEN if left else _STEPS, found)
    return found


def refitted(
    weight: torch.Tensor,
    mask: torch.Tensor,
    inputs: InputMoments,
    steps: int = _STEPS,
    begin: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weight, zero where `mask` is False, whose outputs are nearest to `weight`'s.

    Args:
        steps: at most this many steps of conjugate gradients.
        begin: where to begin; left out, at the weight itself.
    """
    stays, wanted = inputs.rows(mask), inputs.rows(weight)
    found = stays * (wanted if begin is None else inputs.rows(begin))
    rest = stays * ((wanted - found) @ inputs.moment)
    way, size = rest.clone(), rest.square().sum(dim=2, keepdim=True)
    for _ in range(steps):
        seen = stays * (way @ inputs.moment)
        far = size / (way * seen).sum(dim=2, keepdim=True).clamp(min=1e-30)
        found = found + far * way
        rest = rest - far * seen
        before, size = size, rest.square().sum(dim=2, keepdim=True)
        way = rest + size / before.clamp(min=1e-30) * way
    return inputs.weight(found, weight.shape)
