"""A training made ready: what learns, from which batches, towards what, and where it went on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edge.data.items import Item
from edge.errors import DataError
from edge.spec import ModelSpec
from edge.train.batches import BatchMaker
from edge.train.checkpoints import resume
from edge.train.distributed import Team, parallel
from edge.train.fit import Run, begin
from edge.train.freeze import freeze, freeze_norms
from edge.train.losses.ciou import Loss, loss_for
from edge.train.recipe import Recipe, schedule_of
from edge.train.schedule import Schedule

__all__ = ["Session", "class_weights", "count_classes", "open_session", "shape_of"]


@dataclass(eq=False)
class Session:
    """A training ready to go.

    Attributes:
        run: model, average, optimizer, step.
        maker: of batches.
        schedule: of the learning rate.
        epoch: steps of an epoch.
        loss: what is minimised.
        called: what computes outputs; several processes wrap the model.
        team: the processes.
        history: one entry per epoch done.
        frozen: layers that do not learn.
        changed: what is not as it was when the resumed checkpoint was written.
    """

    run: Run
    maker: BatchMaker
    schedule: Schedule
    epoch: int
    loss: Loss
    called: Any
    team: Team
    history: list[dict[str, Any]] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def open_session(
    module: nn.Module,
    spec: ModelSpec,
    pictures: Any,
    recipe: Recipe,
    team: Team,
    *,
    counts: list[int] | None = None,
    checkpoint: Path | None = None,
) -> Session:
    """Freeze, move to the device, build the optimizer, and go on from `checkpoint` if given.

    Args:
        module, spec: from `edge.train.start`.
        pictures: labelled pictures by number.
        recipe: how to train.
        team: the processes.
        counts: objects by class, for `recipe.balance`.
        checkpoint: to resume.

    Raises:
        DataError: the batch cannot be divided, nothing is left to learn, heads of another kind,
            or batch norm that several CPU processes cannot share.
        ArtifactError: the checkpoint does not fit.
    """
    if recipe.batch % team.size:
        raise DataError(f"--batch {recipe.batch} cannot be shared by {team.size} processes")
    schedule, epoch = schedule_of(recipe, len(pictures))
    try:
        frozen = freeze(module, recipe.freeze) if recipe.freeze else []
        if recipe.freeze_norm:
            freeze_norms(module)
        module = module.to(team.device, memory_format=torch.channels_last)
        run = begin(module, schedule)
        weights = class_weights(counts) if recipe.balance and counts else None
        seen = partial(_seen, run, recipe.batch)
        loss = loss_for(spec, recipe.loss, weights=weights, seen=seen)
    except ValueError as error:
        raise DataError(str(error)) from error
    facts = resume(run, checkpoint) if checkpoint is not None else {}
    maker = BatchMaker(
        pictures,
        spec,
        recipe.batch,
        recipe.seed,
        recipe.augmentation,
        recipe.scales,
        team.rank,
        team.size,
    )
    called = parallel(module, team)
    history = facts.get("history", [])
    session = Session(run, maker, schedule, epoch, loss, called, team, history, frozen)
    session.changed = _changed(facts.get("shape", {}), shape_of(session))
    return session


def shape_of(session: Session) -> dict[str, Any]:
    """What must be as it was for a resumed training to end where one run would."""
    return {
        **asdict(session.schedule),
        "batch": session.maker.size,
        "seed": session.maker.seed,
        "pictures": len(session.maker.pictures),
        "scales": session.maker.scales,
        "changes": repr(session.maker.options),
    }


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(now))
    return [
        f"{key} was {before[key]} and is {plain[key]}"
        for key in before
        if key in plain and before[key] != plain[key]
    ]


def _seen(run: Run, batch: int) -> int:
    return run.step * batch


def count_classes(items: Sequence[Item], classes: int) -> list[int]:
    """Objects of each class; regions do not count."""
    every = [item.class_id[~item.crowd & (item.class_id >= 0)] for item in items]
    return [
        int(n) for n in np.bincount(np.concatenate([[], *every]).astype(int), minlength=classes)
    ]


def class_weights(counts: Sequence[int], power: float = 0.5, limit: float = 10.0) -> torch.Tensor:
    """A weight (C,) for each class: its count to the power of -`power`, scaled so that the mean
    over all objects is 1 and none is above `limit`; a class without objects has `limit`.

    Raises:
        ValueError: no objects at all.
    """
    number = torch.tensor(counts, dtype=torch.float64)
    if number.sum() <= 0:
        raise ValueError("no objects to weigh classes by")
    rough = number.clamp(min=1) ** -power
    weights = rough * number.sum() / (rough * number).sum()
    weights[number == 0] = limit
    return weights.clamp(max=limit).float()
