"""Rounding and pruning whose errors the other weights make up for, on some pictures.

A filter whose weights are wrong by e gives outputs that are wrong by e' H e in the mean square,
where H is the second moment of its inputs; places of its output may count more or less
(`edge.compress.weights.places`). Weights are rounded one after another, and the error of each is
passed on, through the inverse of H, to those that follow (Optimal Brain Surgeon; in the form of
GPTQ, arXiv:2210.17323, section 3).

What enters a layer of a coarse network is already wrong. So layers are changed in the order of the
data: each is first fitted to give on those inputs what the full network gives on its own
(arXiv:1707.06168, section 3.1; for rounding arXiv:2504.02692), then changed, and its bias takes up
the mean error that is left. Nothing is trained and no label is needed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from edge.compress.weights.magnitude import convolutions
from edge.models.hooks import hooked

__all__ = [
    "Change",
    "InputMoments",
    "change_layers",
    "input_moments",
    "rounded_with_feedback",
]

# Times the mean square of the inputs: keeps the equations solvable where inputs are alike.
_RIDGE = 1e-2
# Places of an output that are looked at in each picture.
_POINTS = 2048
# Weights of a filter whose errors make up for each other; memory grows with its square.
_MOST = 2304
_BLOCK = 128
Rounding = Callable[[torch.Tensor], torch.Tensor]
# Takes the path of a convolution, the weight to come near to, and the moments of its inputs.
Change = Callable[[str, torch.Tensor, "InputMoments"], torch.Tensor]


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Second moments of a convolution's inputs, by which errors of its weights cancel.

    The weight (O, I, kh, kw) is taken as rows (G, R, K): one matrix for each group or, with wide
    filters, for each part of a group's channels; errors cancel only within a part.

    Attributes:
        groups: number of groups of the convolution.
        moment: (G, K, K), H with a small ridge.
    """

    groups: int
    moment: torch.Tensor

    @cached_property
    def order(self) -> torch.Tensor:
        """The order (G, K) in which weights are rounded: those with the strongest inputs first."""
        return self.moment.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)

    @cached_property
    def factor(self) -> torch.Tensor:
        """The upper triangular R (G, K, K), in that order, for which R' R is the inverse of H."""
        moment, order = self.moment.double(), self.order
        moment = moment.gather(1, order[:, :, None].expand_as(moment))
        moment = moment.gather(2, order[:, None, :].expand_as(moment))
        # Cholesky of the matrix back to front: H = U U' with U upper, whose inverse is R.
        upper = torch.linalg.cholesky(moment.flip(1, 2)).flip(1, 2)
        one = torch.eye(upper.shape[1], dtype=upper.dtype)
        return torch.linalg.solve_triangular(upper, one, upper=True).float()

    @cached_property
    def slack(self) -> torch.Tensor:
        """The diagonal (G, 1, K) of the inverse of H: a weight is worth w² divided by it."""
        found = self.factor.square().sum(dim=1)
        return torch.empty_like(found).scatter_(1, self.order, found)[:, None]

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight (O, I, kh, kw) as rows (G, R, K)."""
        parts = len(self.moment) // self.groups
        rows = weight.detach().reshape(self.groups, -1, parts, self.moment.shape[1])
        return rows.movedim(2, 1).flatten(0, 1)

    def weight(self, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return rows (G, R, K) as a weight (O, I, kh, kw)."""
        parts = len(self.moment) // self.groups
        return rows.unflatten(0, (self.groups, parts)).movedim(1, 2).reshape(shape)


def input_moments(
    module: nn.Module,
    images: Iterable[torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, InputMoments]:
    """Return the moments of each convolution's inputs, by path, on `images` (1, 3, H, W) each.

    Args:
        weights: of the places of each convolution's output, (images, h, w) by path; None gives
            all the same weight.

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
    return {path: _with_ridge(conv, moments.pop(path)) for path, conv in found.items()}


def _with_ridge(conv: nn.Conv2d, moment: torch.Tensor) -> InputMoments:
    """Return the moments of a convolution from the sum of x x' over patches, changed in place."""
    diagonal = moment.diagonal(dim1=1, dim2=2)
    diagonal.add_(_RIDGE * diagonal.mean(dim=1, keepdim=True).clamp(min=1e-12))
    return InputMoments(conv.groups, moment)


def _watching(
    found: dict[str, nn.Conv2d],
    moments: dict[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
) -> list[RemovableHandle]:
    """Return hooks that sum x x' over the patches x that each convolution sees."""

    def watch(path: str) -> Callable[[nn.Conv2d, tuple[torch.Tensor]], None]:
        numbers = count()

        def before(conv: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
            number = next(numbers)
            weight = weights[path][number] if path in weights else None
            seen = _patches(conv, inputs[0], weight)
            moment = seen @ seen.mT
            moments[path] = moments[path].add_(moment) if path in moments else moment

        return before

    return [conv.register_forward_pre_hook(watch(path)) for path, conv in found.items()]


def _patches(
    conv: nn.Conv2d, image: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return what a convolution sees at some places of its output, always the same: (G, K, P).

    They are scaled so that the sum of x x' is what it would be over all places.

    Args:
        image: (1, I, h, w).
        weights: of the places, (h, w).
    """
    padding: Any = conv.padding
    seen = functional.unfold(
        image, conv.kernel_size, dilation=conv.dilation, padding=padding, stride=conv.stride
    )[0]
    # Every nth place would be the same few columns of the picture where n divides its width.
    places = torch.randperm(seen.shape[1], generator=torch.Generator().manual_seed(0))[:_POINTS]
    share = seen.shape[1] / len(places)
    seen = seen[:, places] * math.sqrt(share)
    if weights is not None:
        seen = seen * weights.flatten()[places].sqrt()
    return seen.unflatten(0, (conv.groups * _parts(conv), -1))


def _parts(conv: nn.Conv2d) -> int:
    """Return the smallest number of equal parts of its input channels that are small enough."""
    channels, numbers = conv.weight.shape[1], conv.weight[0].numel()
    return next(
        parts
        for parts in range(1, channels + 1)
        if channels % parts == 0 and (numbers // parts <= _MOST or parts == channels)
    )


def rounded_with_feedback(
    weight: torch.Tensor,
    inputs: InputMoments,
    rounding: Rounding,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weight (O, I, kh, kw) rounded such that errors cancel.

    Args:
        rounding: takes one column of all rows, (G, R), and returns its rounded values.
        kept: of the weight's shape; where it is False the value becomes zero.
    """
    rows = inputs.rows(weight)
    place = inputs.order[:, None].expand_as(rows)
    stays = None if kept is None else inputs.rows(kept).gather(2, place)
    found = _round_columns(rows.gather(2, place), stays, inputs.factor, rounding)
    return inputs.weight(torch.empty_like(rows).scatter_(2, place, found), weight.shape)


def _round_columns(
    left: torch.Tensor, stays: torch.Tensor | None, factor: torch.Tensor, rounding: Rounding
) -> torch.Tensor:
    """Run GPTQ's loop over the columns of `left` (G, R, K), which is changed in place.

    The errors of a block reach the columns behind it together, which is faster.
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


def change_layers(
    full: nn.Module,
    images: Sequence[torch.Tensor],
    change: Change,
    weights: Mapping[str, torch.Tensor] | None = None,
    tick: Callable[[], object] = lambda: None,
) -> nn.Module:
    """Return a copy of `full` whose convolutions `change` has changed, in the order of the data.

    Args:
        full: a network in which each convolution runs once.
        images: (1, 3, H, W) each, as the network takes them.
        change: returns the changed weight, of the same shape.
        weights: of the places of each convolution's output, (images, h, w) by path; None gives
            all the same weight.
        tick: called after each convolution.
    """
    work = copy.deepcopy(full).eval()

    def after(path: str) -> Callable[[nn.Conv2d, tuple[torch.Tensor], torch.Tensor], torch.Tensor]:
        places = None if weights is None else weights[path]

        def changed(
            conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor
        ) -> torch.Tensor:
            wanted, _ = output.chunk(2)
            theirs, mine = inputs[0].chunk(2)
            aim, moments = _aim(conv, theirs, mine, places)
            conv.weight.copy_(change(path, aim, moments))
            found = conv.forward(mine)
            if conv.bias is not None:
                off = _mean(wanted - found, places)
                conv.bias.add_(off)
                found = found + off[:, None, None]
            tick()
            return torch.cat([wanted, found])

        return changed

    # One batch holds the inputs of both networks, those of the full one first.
    batch = torch.cat(list(images))
    hooks = [c.register_forward_hook(after(path)) for path, c in convolutions(work).items()]
    with hooked(hooks), torch.no_grad():
        work(torch.cat([batch, batch]))
    return work


def _mean(off: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """Return the mean (O,) of `off` (N, O, h, w), weighted by `places` (N, h, w)."""
    if places is None:
        return off.mean(dim=(0, 2, 3))
    return torch.einsum("nohw,nhw->o", off, places) / places.sum()


def _aim(
    conv: nn.Conv2d, theirs: torch.Tensor, mine: torch.Tensor, places: torch.Tensor | None
) -> tuple[torch.Tensor, InputMoments]:
    """Return the weight that gives on `mine` (N, I, h, w) what the old one gives on `theirs`."""
    moment: torch.Tensor | float = 0.0
    cross: torch.Tensor | float = 0.0
    for number in range(len(mine)):
        weight = None if places is None else places[number]
        seen = _patches(conv, mine[number : number + 1], weight)
        moment = moment + seen @ seen.mT
        cross = cross + (_patches(conv, theirs[number : number + 1], weight) - seen) @ seen.mT
    inputs = _with_ridge(conv, moment)
    rows = inputs.rows(conv.weight)
    away = torch.linalg.solve(inputs.moment, (rows @ cross).mT).mT
    return inputs.weight(rows + away, conv.weight.shape), inputs
