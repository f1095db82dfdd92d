"""The training loop, which also keeps an average of the weights over time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edge.train.freeze import learn
from edge.train.losses.ciou import Loss
from edge.train.schedule import Schedule, learning_rate

__all__ = ["Batches", "Run", "Schedule", "advance", "begin", "fit", "follow", "learning_rate"]

Batches = Callable[[], tuple[torch.Tensor, torch.Tensor]]
AfterStep = Callable[[nn.Module], None]
Report = Callable[[str], None]
_LONGEST_GRADIENT = 10.0


@dataclass(eq=False)
class Run:
    """A training in progress: all that its next step depends on, except for the batches.

    Attributes:
        model: what learns.
        average: average of its weights over the steps, which is what is kept.
        optimizer: optimizer with its state.
        step: number of steps done.
    """

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0


def begin(model: nn.Module, schedule: Schedule) -> Run:
    """Return a run before its first step; what has `requires_grad` false stays as it is."""
    return Run(model, copy.deepcopy(model).eval(), _optimizer(model, schedule))


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": schedule.decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.peak, momentum=0.9)
    return torch.optim.AdamW(groups, lr=schedule.peak)


def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's by `1 - decay`; counters are copied."""
    with torch.no_grad():
        now = model.state_dict()
        for name, value in average.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(now[name], 1 - decay)
            else:
                value.copy_(now[name])


def advance(
    run: Run,
    loss: Loss,
    batches: Batches,
    schedule: Schedule,
    until: int,
    step_done: Callable[[dict[str, float]], None] | None = None,
    *,
    after_step: AfterStep | None = None,
    called: Any = None,
) -> None:
    """Train until `until` steps are done.

    Args:
        run: changed in place.
        loss, batches, schedule: as `fit` takes them.
        until: at most `schedule.steps`, beyond which there is no learning rate.
        step_done: gets the parts of every step's loss.
        after_step: gets the model after each step, before its average moves; keeps pruned weights
            at zero, for instance.
        called: computes the model's outputs where that is not the model itself
            (`edge.train.distributed.parallel`).

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    learn(run.model)
    with _without_denormals():
        while run.step < until:
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(run.step, schedule)
            parts = _step(
                run.model if called is None else called, loss, batches, run.optimizer, schedule
            )
            if after_step is not None:
                after_step(run.model)
            follow(run.average, run.model, min(schedule.average, (1 + run.step) / (10 + run.step)))
            run.step += 1
            if step_done is not None:
                step_done(parts)


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Round numbers below 1e-38 to zero while the context lasts.

    Scores near 0 and 1 have such gradients, and a CPU needs many times as long for a product with
    one.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    schedule: Schedule,
    report: Report,
    every: int = 100,
    *,
    after_step: AfterStep | None = None,
) -> nn.Module:
    """Train `model` in place and return the average of its weights, in eval mode.

    Args:
        model: parts whose parameters need no gradient stay as they are.
        loss: turns outputs and targets into the loss and its parts; see
            `edge.train.losses.ciou.loss_for`.
        batches: each call returns images (N, 3, H, W) and targets (M, 6).
        schedule: number of steps and learning rates.
        report: gets a line of mean losses after every `every` steps.
        after_step: as `advance` takes it.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    run, start, sums = begin(model, schedule), time.monotonic(), dict[str, float]()

    def step_done(parts: dict[str, float]) -> None:
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part
        if run.step % every == 0 or run.step == schedule.steps:
            done = run.step % every or every
            means = "  ".join(f"{name} {part / done:.4f}" for name, part in sums.items())
            report(f"step {run.step:5d}  {means}  {time.monotonic() - start:6.0f} s")
            sums.clear()

    advance(run, loss, batches, schedule, schedule.steps, step_done, after_step=after_step)
    return run.average.eval()


def _step(
    model: Any,
    loss: Loss,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
) -> dict[str, float]:
    images, targets = batches()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=schedule.bfloat16):
        outputs = model(images)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    total, parts = loss(outputs, targets)
    if not math.isfinite(total.item()):
        raise FloatingPointError(f"the loss is {total.item()}; lower the learning rate")
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(learning, _LONGEST_GRADIENT)
    optimizer.step()
    return parts
