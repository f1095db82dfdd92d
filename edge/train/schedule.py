"""How many steps a training takes, and the learning rate of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Schedule", "learning_rate", "read_drops"]


@dataclass(frozen=True)
class Schedule:
    """How many steps to take, and how large.

    Attributes:
        steps: number of optimizer steps.
        peak: highest learning rate, reached after `warmup` steps.
        decay: weight decay, of convolution weights only.
        average: how slowly the averaged weights follow, per step; `fit` returns the average.
        bfloat16: run the forward pass under autocast.
        epoch: steps of an epoch in which the rate is constant; 0 changes it in every step.
        drops: pairs of the epoch and the share of the peak from then on; without them the rate
            follows half a cosine.
        optimizer: AdamW (arXiv:1711.05101), or SGD with a momentum of 0.9.
    """

    steps: int
    peak: float = 2e-3
    warmup: int = 200
    decay: float = 1e-4
    average: float = 0.998
    bfloat16: bool = False
    epoch: int = 0
    drops: tuple[tuple[int, float], ...] = ()
    optimizer: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer is {self.optimizer!r}; known: adamw, sgd")
        if self.drops and self.epoch < 1:
            raise ValueError("drops of the learning rate need the steps of an epoch")


def learning_rate(step: int, schedule: Schedule) -> float:
    """Return the learning rate of a step.

    It rises linearly, then follows the drops, or half a cosine down to a hundredth of the peak.
    """
    if step < schedule.warmup:
        return schedule.peak * (step + 1) / schedule.warmup
    if schedule.drops:
        epoch = step // schedule.epoch
        reached = [share for start, share in sorted(schedule.drops) if start <= epoch]
        return schedule.peak * (reached[-1] if reached else 1.0)
    at = step - step % schedule.epoch if schedule.epoch else step
    share = max(0, at - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.peak * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def read_drops(text: str) -> tuple[tuple[int, float], ...]:
    """Read drops such as `30:0.1,60:0.01`: a tenth of the peak from epoch 30, a hundredth from 60.

    Raises:
        ValueError: the text has another form.
    """
    pairs = [part.split(":") for part in text.split(",")]
    try:
        return tuple((int(epoch), float(share)) for epoch, share in pairs)
    except ValueError:
        raise ValueError(f"{text!r} is not EPOCH:SHARE,... such as 30:0.1,60:0.01") from None
