"""A training made ready: what learns, from which batches, with which loss, and from which step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edge.data.items import Item
from edge.errors import DataError
from edge.models.darknet import Darknet
from edge.spec import ModelSpec
from edge.train.augment import Labelled
from edge.train.batches import BatchMaker
from edge.train.checkpoints import CheckpointFacts, resume
from edge.train.distributed import Team, parallel
from edge.train.fit import Run, begin
from edge.train.freeze import freeze, freeze_norms
from edge.train.losses.ciou import Loss, loss_for
from edge.train.options import TrainOptions, schedule_for
from edge.train.results import EpochRecord
from edge.train.schedule import Schedule

__all__ = ["Session", "class_weights", "count_classes", "open_session", "shape_of"]


@dataclass(eq=False)
class Session:
    """A training that is ready to run.

    Attributes:
        run: model, average, optimizer and step.
        maker: makes the batches.
        schedule: of the learning rate.
        epoch: steps of an epoch.
        loss: what is minimised.
        called: what computes outputs; with several processes it wraps the model.
        team: the processes.
        history: one record for each epoch that is done.
        frozen: layers that do not learn.
        changed: what differs from the training that wrote the resumed checkpoint.
    """

    run: Run
    maker: BatchMaker
    schedule: Schedule
    epoch: int
    loss: Loss
    called: Any
    team: Team
    history: list[EpochRecord] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def open_session(
    module: nn.Module,
    spec: ModelSpec,
    pictures: Sequence[Labelled],
    options: TrainOptions,
    team: Team,
    *,
    counts: Sequence[int] = (),
    checkpoint: Path | None = None,
) -> Session:
    """Freeze layers, move to the device, build the optimizer, and continue from `checkpoint`.

    Args:
        module, spec: from `edge.train.start`.
        pictures: labelled pictures.
        team: the processes.
        counts: objects by class, for `options.balance`.
        checkpoint: file to resume from; None starts at step 0.

    Raises:
        DataError: the batch cannot be divided, nothing is left to learn, the heads cannot be
            trained, or batch norms that several CPU processes cannot share.
        ArtifactError: the checkpoint does not fit.
    """
    if options.batch % team.size:
        raise DataError(f"--batch {options.batch} cannot be shared by {team.size} processes")
    schedule, epoch = schedule_for(options, len(pictures))
    try:
        frozen = freeze(module, options.freeze) if options.freeze else []
        if options.freeze_norm:
            freeze_norms(module)
        model = module.to(team.device, memory_format=torch.channels_last)
        run = begin(model, schedule)
        weights = class_weights(counts) if options.balance and counts else None
        loss = loss_for(
            spec,
            options.loss,
            weights=weights,
            seen=lambda: run.step * options.batch,
            region=isinstance(model, Darknet) and "region" in model.head_sections,
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    facts = CheckpointFacts() if checkpoint is None else resume(run, checkpoint)
    maker = BatchMaker(
        pictures,
        spec,
        options.batch,
        options.seed,
        options.augmentation,
        options.scales,
        team.rank,
        team.size,
    )
    called = parallel(model, team)
    history = list(facts.history)
    session = Session(run, maker, schedule, epoch, loss, called, team, history, frozen)
    session.changed = _differences(facts.shape, shape_of(session))
    return session


def shape_of(session: Session) -> dict[str, Any]:
    """Return what must stay the same for a resumed training to end where one run would."""
    return {
        **asdict(session.schedule),
        "batch": session.maker.size,
        "seed": session.maker.seed,
        "pictures": len(session.maker.pictures),
        "scales": session.maker.scales,
        "changes": repr(session.maker.options),
    }


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(now))
    return [
        f"{key} was {before[key]} and is {plain[key]}"
        for key in before
        if key in plain and before[key] != plain[key]
    ]


def count_classes(items: Sequence[Item], classes: int) -> list[int]:
    """Return the number of objects of each class; regions to ignore do not count."""
    every = [item.class_id[~item.crowd & (item.class_id >= 0)] for item in items]
    numbers = np.concatenate([[], *every]).astype(int)
    return [int(n) for n in np.bincount(numbers, minlength=classes)]


def class_weights(counts: Sequence[int], power: float = 0.5, limit: float = 10.0) -> torch.Tensor:
    """Return a weight for each class, (C,): its count to the power of -`power`.

    The weights are scaled so that their mean over all objects is 1, and none is above `limit`,
    which is also the weight of a class without objects.

    Raises:
        ValueError: there are no objects at all.
    """
    number = torch.tensor(counts, dtype=torch.float64)
    if number.sum() <= 0:
        raise ValueError("no objects to weigh classes by")
    rough = number.clamp(min=1) ** -power
    weights = rough * number.sum() / (rough * number).sum()
    weights[number == 0] = limit
    return weights.clamp(max=limit).float()
