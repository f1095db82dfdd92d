"""Quantization-aware fine-tuning of the very graph that is exported as INT8.

Rounding has no slope, so gradients pass straight through it. The scales are trained with the
weights (arXiv:1902.08153) until they are fixed as the exported graph will share them; then the
weights alone are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from edge.train.fit import Batches, Run, advance, begin
from edge.train.losses.ciou import Loss
from edge.train.quantized_network import QuantizedNetwork, Tensors
from edge.train.schedule import Schedule

__all__ = ["distil", "fine_tune", "imitation"]

Settle = Callable[[dict[str, float]], Mapping[str, float]]
# Share of the steps in which scales are trained.
_SCALES_LEARN = 0.7


def imitation(
    outputs: Sequence[torch.Tensor], wanted: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the mean over the raw heads of noise power over signal power; the loss of `distil`."""
    shares = [
        (mine - theirs).square().mean() / theirs.square().mean().clamp_min(1e-12)
        for mine, theirs in zip(outputs, wanted, strict=True)
    ]
    total = torch.stack(shares).mean()
    return total, {"noise": float(total.detach())}


def fine_tune(
    network: QuantizedNetwork,
    loss: Loss,
    batches: Batches,
    schedule: Schedule,
    settle: Settle,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> QuantizedNetwork:
    """Train `network` in place.

    Args:
        loss, batches: as `edge.train.fit.fit` takes them.
        schedule: its rates are in the units of `QuantizedNetwork`: 0.02 is a fiftieth of a level.
        settle: turns learned thresholds into those that the exported graph will have.
        report: called with each step and its loss.

    Returns:
        The average of the weights over the steps, with settled scales, in eval mode.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    run = begin(network, schedule)

    def step_done(parts: dict[str, float]) -> None:
        report(run.step, sum(parts.values()))

    for until in (round(schedule.steps * _SCALES_LEARN), schedule.steps):
        advance(run, loss, batches, schedule, until, step_done, after_step=_prune_again)
        _settle(run, settle)
    average: Any = run.average
    average.prune_again()
    result: QuantizedNetwork = average.eval()
    return result


def _prune_again(network: Any) -> None:
    network.prune_again()


def _settle(run: Run, settle: Settle) -> None:
    """Fix the same thresholds for the model and for its average."""
    average: Any = run.average
    final = settle(average.amax())
    for network in (run.model, run.average):
        network.settle(final)


def distil(
    network: QuantizedNetwork,
    teacher: Callable[[torch.Tensor], Tensors],
    images: Callable[[], torch.Tensor],
    schedule: Schedule,
    settle: Settle,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> QuantizedNetwork:
    """Train as `fine_tune` does, towards the teacher's heads; no labels are needed.

    Args:
        images: each call returns network inputs (N, 3, H, W).
    """

    def batches() -> tuple[torch.Tensor, Any]:
        batch = images()
        with torch.no_grad():
            return batch, teacher(batch)

    return fine_tune(network, imitation, batches, schedule, settle, report)
