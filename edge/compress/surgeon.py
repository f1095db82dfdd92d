"""Weights pruned without training: first those that the others of a filter can best make up for.

Optimal Brain Surgeon (Hassibi and Stork, NIPS 1992) layer by layer (arXiv:1705.07565): without a
weight w the outputs are off by w^2 over the diagonal of the inverse of H, once the others are
fitted. They are fitted by conjugate gradients, as whole filters have too many weights to solve for
one by one. `edge.compress.feedback` says what H is.
"""

from __future__ import annotations

import torch

from edge.compress.feedback import Surroundings

__all__ = ["pruned_with_refit", "refitted", "worth"]

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
