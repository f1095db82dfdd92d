"""Everything that shapes a training but model and data, in one value that goes on record."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from edge.train.augment import Augmentation
from edge.train.schedule import Schedule

__all__ = ["Recipe", "changed", "schedule_of"]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: times that every picture is seen.
        steps: optimizer steps in place of epochs.
        epoch_steps: what counts as an epoch, after which there is validation and a checkpoint.
        batch: pictures in a step, of all processes together.
        seed: of batches; the start's weights have their own.
        peak, warmup, decay, average, optimizer, drops, bfloat16: as in `Schedule`; warmup None is
            a twentieth of the steps, 200 at most.
        epoch_rate: hold the learning rate through each epoch.
        loss: as `loss_for` takes it.
        balance: weigh classes by their rarity.
        augmentation: None resizes as the contract says and no more.
        scales: change the input's size every ten steps.
        freeze: layers from the input that stay as they are.
        freeze_norm: whether all batch norms do.
    """

    epochs: int = 50
    steps: int | None = None
    epoch_steps: int | None = None
    batch: int = 16
    seed: int = 0
    peak: float = 2e-3
    warmup: int | None = None
    decay: float = 1e-4
    average: float = 0.998
    optimizer: Literal["adamw", "sgd"] = "adamw"
    drops: tuple[tuple[int, float], ...] = ()
    epoch_rate: bool = False
    bfloat16: bool = False
    loss: Literal["ciou", "published"] = "ciou"
    balance: bool = False
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    scales: bool = False
    freeze: int = 0
    freeze_norm: bool = False


def schedule_of(recipe: Recipe, pictures: int) -> tuple[Schedule, int]:
    """The schedule for so many pictures, and the steps of an epoch."""
    epoch = recipe.epoch_steps or max(1, -(-pictures // recipe.batch))
    steps = recipe.steps or recipe.epochs * epoch
    warmup = min(200, steps // 20) if recipe.warmup is None else recipe.warmup
    held = epoch if recipe.epoch_rate or recipe.drops else 0
    schedule = Schedule(
        steps,
        recipe.peak,
        warmup,
        recipe.decay,
        recipe.average,
        recipe.bfloat16,
        held,
        recipe.drops,
        recipe.optimizer,
    )
    return schedule, epoch


def changed(options: Augmentation, text: str) -> Augmentation:
    """`options` with what `text` says, such as `mosaic=0,degrees=10,scale=0.8:1.2`.

    Raises:
        ValueError: no such change, or not a number.
    """
    known = {field.name for field in fields(options)}
    changes: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(sorted(known))}")
        numbers = tuple(float(number) for number in value.split(":"))
        if len(numbers) != (2 if name == "scale" else 1):
            raise ValueError(f"{part!r}: scale takes LOW:HIGH, all else one number")
        changes[name] = numbers if name == "scale" else numbers[0]
    return replace(options, **changes)
