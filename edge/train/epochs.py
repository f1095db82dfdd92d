"""Epochs: train, validate, keep the best weights, write a checkpoint, and stop in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from edge.errors import DataError
from edge.train.batches import make_batch, prefetched
from edge.train.checkpoints import CheckpointFacts, save_checkpoint
from edge.train.distributed import agree, mean
from edge.train.fit import Batches, advance
from edge.train.results import EpochRecord, best_of
from edge.train.schedule import learning_rate
from edge.train.session import Session, shape_of

__all__ = ["Hooks", "run_epochs", "stale"]

DeadUnits = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Hooks:
    """What `run_epochs` asks its caller to do; each may be left out.

    Attributes:
        validate: gets the averaged model at the end of an epoch and returns mAP@.5, which decides
            what is best, and mAP@.5:.95. Only process 0 is asked.
        keep: gets the averaged model whenever it is the best so far; without `validate` always.
        watch: gets the model and returns its dead units.
        step_done: gets the number of each step and the parts of its loss.
        epoch_done: gets the record of each epoch, after the checkpoint is written.
        checkpoint: file to write after each epoch.
        patience: epochs without a better mAP@.5 after which to stop; 0 never stops early.
        after_step: as `advance` takes it.
    """

    validate: Callable[[nn.Module], tuple[float, float]] | None = None
    keep: Callable[[nn.Module], None] | None = None
    watch: Callable[[nn.Module], DeadUnits] | None = None
    step_done: Callable[[int, dict[str, float]], None] | None = None
    epoch_done: Callable[[EpochRecord], None] | None = None
    checkpoint: Path | None = None
    patience: int = 0
    after_step: Callable[[nn.Module], None] | None = None


def run_epochs(session: Session, hooks: Hooks) -> str:
    """Train to the end of the schedule, or until patience ends, and return why it ended.

    Raises:
        DataError: the loss is no longer a number.
    """
    run, steps = session.run, session.schedule.steps
    batch_at = partial(make_batch, session.maker)
    with prefetched(batch_at, run.step, session.team.device) as batches:
        while run.step < steps:
            if hooks.patience and stale(_scores(session), hooks.patience):
                return f"no better mAP@.5 in {hooks.patience} epochs"
            until = min(steps, (run.step // session.epoch + 1) * session.epoch)
            record = _train_epoch(session, batches, until, hooks)
            map50, map50_95 = agree(_validated(session, hooks))
            session.history.append(replace(record, map50=map50, map50_95=map50_95))
            if not session.team.rank:
                _finish_epoch(session, hooks)
    return "all steps done"


def _scores(session: Session) -> list[float]:
    return [record.map50 for record in session.history if record.map50 is not None]


def _train_epoch(session: Session, batches: Batches, until: int, hooks: Hooks) -> EpochRecord:
    run, start, sums = session.run, session.run.step, dict[str, float]()

    def step_done(parts: dict[str, float]) -> None:
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part
        if hooks.step_done is not None:
            hooks.step_done(run.step, parts)

    try:
        advance(
            run,
            session.loss,
            batches,
            session.schedule,
            until,
            step_done,
            after_step=hooks.after_step,
            called=session.called,
        )
    except FloatingPointError as error:
        raise DataError(f"step {run.step + 1}: {error} (--peak)") from error
    means = {name: value / (until - start) for name, value in sums.items()}
    return EpochRecord(
        epoch=len(session.history) + 1,
        step=until,
        rate=learning_rate(until - 1, session.schedule),
        loss=mean(means, session.team.device),
    )


def _validated(session: Session, hooks: Hooks) -> tuple[float | None, float | None]:
    if hooks.validate is None or session.team.rank:
        return None, None
    return hooks.validate(session.run.average)


def _finish_epoch(session: Session, hooks: Hooks) -> None:
    """Keep the weights if they are the best, write the checkpoint, and report."""
    record = session.history[-1]
    best = best_of(session.history)
    if hooks.keep is not None and (best is None or record.map50 == best.map50):
        hooks.keep(session.run.average)
    if hooks.watch is not None:
        record = replace(record, dead_units=hooks.watch(session.run.model))
        session.history[-1] = record
    if hooks.checkpoint is not None:
        facts = CheckpointFacts(tuple(session.history), shape_of(session))
        save_checkpoint(session.run, hooks.checkpoint, facts)
    if hooks.epoch_done is not None:
        hooks.epoch_done(record)


def stale(scores: Sequence[float], patience: int) -> bool:
    """Return whether the best of `scores`, the newest last, is `patience` or more scores old."""
    if not scores:
        return False
    return len(scores) - 1 - max(range(len(scores)), key=scores.__getitem__) >= patience
