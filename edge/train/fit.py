"""The training loop: AdamW, warm-up and cosine, an average of the weights over time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from edge.train.losses import Loss

__all__ = ["Schedule", "fit", "learning_rate"]

Batches = Callable[[], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: optimizer steps.
        peak: highest learning rate, reached after `warmup` steps.
        decay: AdamW's weight decay, on convolution weights alone.
        average: of the weights, per step; the average is what `fit` leaves in the model.
        bfloat16: run the network's forward pass under autocast.
    """

    steps: int
    peak: float = 2e-3
    warmup: int = 200
    decay: float = 1e-4
    average: float = 0.998
    bfloat16: bool = False


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    if step < schedule.warmup:
        return schedule.peak * (step + 1) / schedule.warmup
    share = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.peak * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": schedule.decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.peak)


def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        now = model.state_dict()
        for name, value in average.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(now[name], 1 - decay)
            else:
                value.copy_(now[name])


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    schedule: Schedule,
    report: Callable[[str], None],
    every: int = 100,
) -> nn.Module:
    """Train `model` in place and return the average of its weights, in eval mode.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    optimizer, average = _optimizer(model, schedule), copy.deepcopy(model)
    start, sums = time.monotonic(), dict[str, float]()
    model.train()
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule)
        for name, part in _step(model, loss, batches, optimizer, schedule).items():
            sums[name] = sums.get(name, 0.0) + part
        _follow(average, model, min(schedule.average, (1 + step) / (10 + step)))
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            done = every if (step + 1) % every == 0 else (step + 1) % every
            told = "  ".join(f"{name} {part / done:.4f}" for name, part in sums.items())
            report(f"step {step + 1:5d}  {told}  {time.monotonic() - start:6.0f} s")
            sums.clear()
    return average.eval()


def _step(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
) -> dict[str, float]:
    images, targets = batches()
    with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
        outputs = model(images)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    total, parts = loss(outputs, targets)
    if not math.isfinite(total.item()):
        raise FloatingPointError(f"the loss is {total.item()}; lower the learning rate")
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    return parts
