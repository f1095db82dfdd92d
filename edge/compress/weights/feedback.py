"""Rounding whose errors are made up for by the weights that are not yet rounded.

A filter whose weights are off by e gives outputs that are off by e' H e in the mean square, where H
is the second moment of what the filter sees on some pictures; places of its output may weigh more
or less in it (`edge.compress.weights.places`). Weight after weight is rounded, and
through the inverse of H its error is given to those that follow (Optimal Brain Surgeon; in the form
of GPTQ, arXiv:2210.17323, section 3). Nothing is trained and no label is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from edge.compress.weights.magnitude import convolutions
from edge.models.hooks import hooked

__all__ = ["Surroundings", "look", "patches", "rounded_with_feedback", "surroundings"]

# Of the mean square of an input: keeps the equations solvable where inputs say the same.
_RIDGE = 1e-2
# Places of an output, of each picture.
_POINTS = 2048
# Weights of a filter whose errors make up for each other; memory grows with its square.
_MOST = 2304
_BLOCK = 128
Rounding = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What tells how errors of a convolution's weights make up for each other.

    Its weight (O, I, kh, kw) is looked at as rows (G, R, K): one matrix for each group, or, of
    wide filters, for each part of a group's channels; parts know nothing of each other.

    Attributes:
        groups: of the convolution.
        moment: (G, K, K), H with a small ridge.
    """

    groups: int
    moment: torch.Tensor

    @cached_property
    def order(self) -> torch.Tensor:
        """(G, K) in which weights are rounded: first what sees the strongest inputs."""
        return self.moment.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)

    @cached_property
    def factor(self) -> torch.Tensor:
        """(G, K, K) upper triangular R, in that order: R' R is the inverse of H."""
        moment, order = self.moment.double(), self.order
        moment = moment.gather(1, order[:, :, None].expand_as(moment))
        moment = moment.gather(2, order[:, None, :].expand_as(moment))
        # Cholesky of the matrix back to front: H = U U' with U upper, whose inverse is R.
        upper = torch.linalg.cholesky(moment.flip(1, 2)).flip(1, 2)
        one = torch.eye(upper.shape[1], dtype=upper.dtype)
        return torch.linalg.solve_triangular(upper, one, upper=True).float()

    @cached_property
    def slack(self) -> torch.Tensor:
        """(G, 1, K), the diagonal of the inverse of H: w^2 over it is what a weight is worth."""
        found = self.factor.square().sum(dim=1)
        return torch.empty_like(found).scatter_(1, self.order, found)[:, None]

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight (O, I, kh, kw) as (G, R, K)."""
        parts = len(self.moment) // self.groups
        rows = weight.detach().reshape(self.groups, -1, parts, self.moment.shape[1])
        return rows.movedim(2, 1).flatten(0, 1)

    def weight(self, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Rows (G, R, K) as the weight (O, I, kh, kw) that they are of."""
        parts = len(self.moment) // self.groups
        return rows.unflatten(0, (self.groups, parts)).movedim(1, 2).reshape(shape)


def look(
    module: nn.Module,
    images: Iterable[torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Surroundings]:
    """The surroundings of each convolution, by path, on `images` (1, 3, H, W) each.

    Args:
        weights: of the places of each convolution's output, (images, h, w) by path; None: 1.

    Raises:
        ValueError: no images.
    """
    found, moments = convolutions(module), dict[str, torch.Tensor]()
    hooks = _watching(found, moments, weights or {})
    with hooked(hooks), torch.no_grad():
        for batch in images:
            module(batch)
    if not moments:
        raise ValueError("no images to look at")
    return {path: surroundings(conv, moments.pop(path)) for path, conv in found.items()}


def surroundings(conv: nn.Conv2d, moment: torch.Tensor) -> Surroundings:
    """Of a convolution whose `patches` x have the sum x x' (G, K, K), which is used up."""
    diagonal = moment.diagonal(dim1=1, dim2=2)
    diagonal.add_(_RIDGE * diagonal.mean(dim=1, keepdim=True).clamp(min=1e-12))
    return Surroundings(conv.groups, moment)


def _watching(
    found: dict[str, nn.Conv2d],
    moments: dict[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
) -> list[RemovableHandle]:
    """Hooks that sum up what enters each convolution."""

    def watch(path: str) -> Callable[[nn.Conv2d, tuple[torch.Tensor]], None]:
        numbers = count()

        def before(conv: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
            number = next(numbers)
            weight = weights[path][number] if path in weights else None
            seen = patches(conv, inputs[0], weight)
            moment = seen @ seen.mT
            moments[path] = moments[path].add_(moment) if path in moments else moment

        return before

    return [conv.register_forward_pre_hook(watch(path)) for path, conv in found.items()]


def patches(
    conv: nn.Conv2d, image: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """What a convolution sees at some places of its output, the same each time: (G, K, P).

    Args:
        image: (1, I, h, w).
        weights: of the places, (h, w): x x' of the patches is to be as if all had been taken.
    """
    assert not isinstance(conv.padding, str)
    seen = functional.unfold(
        image, conv.kernel_size, dilation=conv.dilation, padding=conv.padding, stride=conv.stride
    )[0]
    # Every nth place would be the same few columns of the picture where n divides its width.
    places = torch.randperm(seen.shape[1], generator=torch.Generator().manual_seed(0))[:_POINTS]
    share = seen.shape[1] / len(places)
    seen = seen[:, places] * math.sqrt(share)
    if weights is not None:
        seen = seen * weights.flatten()[places].sqrt()
    return seen.unflatten(0, (conv.groups * _parts(conv), -1))


def _parts(conv: nn.Conv2d) -> int:
    """The least number of equal parts of its input channels that are small enough."""
    channels, numbers = conv.weight.shape[1], conv.weight[0].numel()
    return next(
        parts
        for parts in range(1, channels + 1)
        if channels % parts == 0 and (numbers // parts <= _MOST or parts == channels)
    )


def rounded_with_feedback(
    weight: torch.Tensor,
    around: Surroundings,
    rounding: Rounding,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight (O, I, kh, kw) in the values that `rounding` takes rows to.

    Args:
        rounding: gets one column of all rows, (G, R).
        kept: like the weight; where it is False the value is zero.
    """
    rows = around.rows(weight)
    place = around.order[:, None].expand_as(rows)
    stays = None if kept is None else around.rows(kept).gather(2, place)
    found = _round_by_and_by(rows.gather(2, place), stays, around.factor, rounding)
    return around.weight(torch.empty_like(rows).scatter_(2, place, found), weight.shape)


def _round_by_and_by(
    left: torch.Tensor, stays: torch.Tensor | None, factor: torch.Tensor, rounding: Rounding
) -> torch.Tensor:
    """GPTQ's loop over columns of (G, R, K); `left` is used up.

    Errors reach the columns beyond a block together, which is faster.
    """
    found, numbers = torch.empty_like(left), left.shape[2]
    for begin in range(0, numbers, _BLOCK):
        end = min(begin + _BLOCK, numbers)
        block, errors = left[:, :, begin:end], []
        for column in range(end - begin):
            row = factor[:, begin + column, begin:end]
            value = rounding(block[:, :, column])
            if stays is not None:
                value = value * stays[:, :, begin + column]
            found[:, :, begin + column] = value
            error = (block[:, :, column] - value) / row[:, None, column]
            block[:, :, column:] -= error[:, :, None] * row[:, None, column:]
            errors.append(error)
        left[:, :, end:] -= torch.stack(errors, dim=2) @ factor[:, begin:end, end:]
    return found
