"""Rounding whose errors are made up for by the weights that are not yet rounded.

A filter whose weights are off by e gives outputs that are off by e' H e in the mean square, where H
is the second moment of what the filter sees on some pictures. Weight after weight is rounded, and
through the inverse of H its error is given to those that follow (Optimal Brain Surgeon; in the form
of GPTQ, arXiv:2210.17323, section 3). Nothing is trained and no label is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from edge.compress.magnitude import convolutions

__all__ = ["Surroundings", "look", "rounded_with_feedback"]

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

    Attributes:
        groups: of the convolution. Each has G / groups parts, that know nothing of each other.
        order: (G, K) in which weights are rounded: first what sees the strongest inputs.
        factor: (G, K, K) upper triangular R, in that order: R' R is the inverse of H.
    """

    groups: int
    order: torch.Tensor
    factor: torch.Tensor


def look(module: nn.Module, images: Iterable[torch.Tensor]) -> dict[str, Surroundings]:
    """The surroundings of each convolution, by path, on `images` (N, 3, H, W) each.

    Raises:
        ValueError: no images.
    """
    found, moments = convolutions(module), dict[str, torch.Tensor]()
    with _watched(found, moments), torch.no_grad():
        for batch in images:
            module(batch)
    if not moments:
        raise ValueError("no images to look at")
    return {path: _solved(moments.pop(path), conv.groups) for path, conv in found.items()}


@contextmanager
def _watched(found: dict[str, nn.Conv2d], moments: dict[str, torch.Tensor]) -> Iterator[None]:
    def watch(path: str) -> Callable[[nn.Conv2d, tuple[torch.Tensor]], None]:
        def before(conv: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
            moment = _moment(conv, inputs[0])
            moments[path] = moments[path] + moment if path in moments else moment

        return before

    hooks = [conv.register_forward_pre_hook(watch(path)) for path, conv in found.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _moment(conv: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    """Mean of x x' over places of the output, (G, K, K), where x are the inputs of a place."""
    assert not isinstance(conv.padding, str)
    seen = functional.unfold(
        images, conv.kernel_size, dilation=conv.dilation, padding=conv.padding, stride=conv.stride
    )
    seen = seen[:, :, :: max(1, seen.shape[2] // _POINTS)]
    seen = seen.unflatten(1, (conv.groups * _parts(conv), -1)).permute(1, 2, 0, 3).flatten(2)
    return (seen @ seen.mT).double() / seen.shape[2]


def _parts(conv: nn.Conv2d) -> int:
    """The least number of equal parts of its input channels that are small enough."""
    channels, numbers = conv.weight.shape[1], conv.weight[0].numel()
    return next(
        parts
        for parts in range(1, channels + 1)
        if channels % parts == 0 and (numbers // parts <= _MOST or parts == channels)
    )


def _solved(moment: torch.Tensor, groups: int) -> Surroundings:
    strength = moment.diagonal(dim1=1, dim2=2)
    order = strength.argsort(dim=1, descending=True)
    moment = moment.gather(1, order[:, :, None].expand_as(moment))
    moment = moment.gather(2, order[:, None, :].expand_as(moment))
    ridge = _RIDGE * strength.mean(dim=1).clamp(min=1e-12)
    moment.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    # Cholesky of the matrix back to front: H = U U' with U upper, whose inverse is the factor.
    upper = torch.linalg.cholesky(moment.flip(1, 2)).flip(1, 2)
    one = torch.eye(upper.shape[1], dtype=upper.dtype)
    factor = torch.linalg.solve_triangular(upper, one, upper=True)
    return Surroundings(groups, order, factor.float())


def rounded_with_feedback(
    weight: torch.Tensor, around: Surroundings, rounding: Rounding
) -> torch.Tensor:
    """The weight (O, I, kh, kw) in the values that `rounding` takes numbers to."""
    parts = len(around.order) // around.groups
    flat = weight.detach().reshape(around.groups, -1, parts, around.order.shape[1])
    flat = flat.movedim(2, 1).flatten(0, 1)
    place = around.order[:, None].expand_as(flat)
    found = _round_by_and_by(flat.gather(2, place), around.factor, rounding)
    found = torch.empty_like(flat).scatter_(2, place, found)
    return found.unflatten(0, (around.groups, parts)).movedim(1, 2).reshape(weight.shape)


def _round_by_and_by(left: torch.Tensor, factor: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """GPTQ's loop over columns of (G, O, K); `left` is used up.

    Errors reach the columns beyond a block together, which is faster.
    """
    found, numbers = torch.empty_like(left), left.shape[2]
    for begin in range(0, numbers, _BLOCK):
        end = min(begin + _BLOCK, numbers)
        block, errors = left[:, :, begin:end], []
        for column in range(end - begin):
            row = factor[:, begin + column, begin:end]
            value = rounding(block[:, :, column])
            found[:, :, begin + column] = value
            error = (block[:, :, column] - value) / row[:, None, column]
            block[:, :, column:] -= error[:, :, None] * row[:, None, column:]
            errors.append(error)
        left[:, :, end:] -= torch.stack(errors, dim=2) @ factor[:, begin:end, end:]
    return found
