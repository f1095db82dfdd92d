"""Prune single weights by their magnitude, all at once or gradually while training.

Gradual pruning follows Zhu and Gupta (arXiv:1710.01878). While it lasts, pruned weights keep
learning behind their masks and may return (Guo et al., arXiv:1608.04493).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from edge.compress.options import Scope
from edge.errors import CompressionError

__all__ = [
    "Masked",
    "apply_masks",
    "attach_masks",
    "convolutions",
    "cubic_sparsity",
    "detach",
    "magnitude_masks",
    "pruning_schedule",
    "two_four_mask",
]

Masks = dict[str, torch.Tensor]


def convolutions(module: nn.Module) -> dict[str, nn.Module]:
    """Return every convolution by its path."""
    return {path: m for path, m in module.named_modules() if isinstance(m, nn.Conv2d)}


def magnitude_masks(
    weights: Mapping[str, torch.Tensor], sparsity: float, scope: Scope = "global"
) -> Masks:
    """Return masks that are False for the share `sparsity` of the weights, which is to go.

    Args:
        scope: `layer` removes the share from every layer. `global` compares all weights in units
            of their layer's root mean square. `lamp` compares the layer-adaptive score of
            arXiv:2010.07611, a squared weight as a share of all in its layer that are no smaller.
            `loss` compares the numbers themselves, which then say what the loss loses. No layer
            loses its last weight.

    Raises:
        CompressionError: `sparsity` is not in [0, 1), or the scope is unknown.
    """
    if not 0 <= sparsity < 1:
        raise CompressionError(f"a share of {sparsity} cannot be pruned; it takes 0 <= share < 1")
    if scope not in _SCORES:
        raise CompressionError(f"scope {scope!r} is unknown; known: {', '.join(_SCORES)}")
    scores = {name: _SCORES[scope](weight.detach()) for name, weight in weights.items()}
    if scope == "layer":
        return {name: _above(score, sparsity) for name, score in scores.items()}
    level = _level(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    return {name: (score > level) | (score == score.max()) for name, score in scores.items()}


def _above(score: torch.Tensor, sparsity: float) -> torch.Tensor:
    return (score > _level(score.flatten(), sparsity)) | (score == score.max())


def _level(scores: torch.Tensor, sparsity: float) -> float:
    """Return the score that the share `sparsity` of all does not exceed."""
    count = round(sparsity * len(scores))
    return scores.kthvalue(count).values.item() if count else -1.0


def _relative(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs() / weight.square().mean().sqrt().clamp(min=1e-30)


def _lamp(weight: torch.Tensor) -> torch.Tensor:
    squares, order = weight.double().square().flatten().sort()
    no_smaller = squares.flip(0).cumsum(0).flip(0).clamp(min=1e-300)
    score = torch.empty_like(squares)
    score[order] = squares / no_smaller
    return score.view_as(weight)


_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "global": _relative,
    "layer": torch.Tensor.abs,
    "loss": torch.Tensor.abs,
    "lamp": _lamp,
}


def two_four_mask(weight: torch.Tensor) -> torch.Tensor:
    """Return a mask that is True for the two largest of every four weights along the inputs.

    This is the pattern of sparse tensor cores (arXiv:2104.08378). A layer whose number of input
    channels is not a multiple of four stays whole.
    """
    outputs, inputs = weight.shape[:2]
    if inputs % 4:
        return torch.ones_like(weight, dtype=torch.bool)
    fours = weight.detach().abs().reshape(outputs, inputs // 4, 4, -1)
    best = fours.topk(2, dim=2).indices
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, best, True).view_as(weight)


def cubic_sparsity(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """Return the share to prune at `step` of `steps`: it rises fast at first, slowly at the end."""
    left = 1 - min(1.0, step / max(1, steps))
    return final + (initial - final) * left**3


class Masked(nn.Module):
    """A parametrization of a weight: zero where `mask` is False.

    Attributes:
        mask: bool, of the weight's shape.
        through: pruned weights learn as if they were not pruned, so that they may return.
    """

    def __init__(self, mask: torch.Tensor, through: bool) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.through = through

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        pruned = weight * self.mask
        return weight + (pruned - weight).detach() if self.through else pruned


def apply_masks(module: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Set the weights to zero where the masks are False."""
    with torch.no_grad():
        for path, mask in masks.items():
            module.get_submodule(path).weight.mul_(mask)


def attach_masks(
    module: nn.Module, masks: Mapping[str, torch.Tensor], through: bool = False
) -> None:
    """Keep pruned weights at zero while the module is trained, until `detach`."""
    for path, mask in masks.items():
        conv = module.get_submodule(path)
        parametrize.register_parametrization(conv, "weight", Masked(mask, through))


def detach(module: nn.Module) -> None:
    """Replace every parametrized weight by the plain weight that it stands for."""
    for conv in list(module.modules()):
        if isinstance(conv, nn.Conv2d) and parametrize.is_parametrized(conv, "weight"):
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)


def pruning_schedule(
    sparsity: float, steps: int, scope: Scope = "global", every: int = 25, begun: float = 0.0
) -> Callable[[nn.Module], None]:
    """Return a function that prunes gradually, to be called with the module after each step.

    The masks of `attach_masks(..., through=True)` are made anew from the weights behind them, and
    reach `sparsity` after `steps`; from then on they stay.

    Args:
        every: number of steps between two changes of the masks.
        begun: share of the weights that is pruned already.
    """
    count = 0

    def after_step(module: nn.Module) -> None:
        nonlocal count
        count += 1
        if count <= steps and (count % every == 0 or count == steps):
            share = cubic_sparsity(count, steps, sparsity, begun)
            _renew(module, share, scope, count < steps)

    return after_step


def _renew(module: nn.Module, sparsity: float, scope: Scope, through: bool) -> None:
    found = {
        path: conv.parametrizations.weight
        for path, conv in convolutions(module).items()
        if parametrize.is_parametrized(conv, "weight")
    }
    masks = magnitude_masks({path: p.original for path, p in found.items()}, sparsity, scope)
    for path, parametrized in found.items():
        parametrized[0].mask.copy_(masks[path])
        parametrized[0].through = through
