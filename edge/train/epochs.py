"""Epochs: train, validate, keep the best, write a checkpoint, and know when to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from edge.errors import DataError
from edge.train.batches import make_batch, prefetched
from edge.train.checkpoints import save_checkpoint
from edge.train.distributed import agree, mean
from edge.train.fit import advance
from edge.train.schedule import learning_rate
from edge.train.session import Session, shape_of

__all__ = ["Hooks", "run_epochs", "stale"]


@dataclass(frozen=True)
class Hooks:
    """What `run_epochs` asks its caller to do; all but `validate` may be left out.

    Attributes:
        validate: figures of the average at an epoch's end, `map50` the one that decides; process 0
            alone is asked. None: no validation, the last weights are kept.
        keep: gets the average when it is the best so far.
        told: gets every step's number and loss parts.
        done: gets an epoch's entry of the history.
        checkpoint: where to write one after each epoch.
        patience: epochs without a better `map50` after which to stop; 0: never.
        after_step: as `advance` takes it.
    """

    validate: Callable[[nn.Module], dict[str, float]] | None = None
    keep: Callable[[nn.Module], None] | None = None
    told: Callable[[int, dict[str, float]], None] | None = None
    done: Callable[[dict[str, Any]], None] | None = None
    checkpoint: Path | None = None
    patience: int = 0
    after_step: Callable[[nn.Module], None] | None = None


def run_epochs(session: Session, hooks: Hooks) -> str:
    """Train to the end of the schedule or until it is stale; returns why it ended.

    Raises:
        DataError: the loss is no longer a number.
    """
    run, steps = session.run, session.schedule.steps
    batch_at = partial(make_batch, session.maker)
    with prefetched(batch_at, run.step, session.team.device) as batches:
        while run.step < steps:
            if _stale(session, hooks.patience):
                return f"no better mAP@.5 in {hooks.patience} epochs"
            until = min(steps, (run.step // session.epoch + 1) * session.epoch)
            entry = _train(session, batches, until, hooks)
            entry |= agree(_validated(session, hooks))
            session.history.append(entry)
            _write(session, hooks, entry)
    return "all steps done"


def _stale(session: Session, patience: int) -> bool:
    scores = [entry["map50"] for entry in session.history if "map50" in entry]
    return bool(patience) and stale(scores, patience)


def _train(session: Session, batches: Any, until: int, hooks: Hooks) -> dict[str, Any]:
    run, start, sums = session.run, session.run.step, dict[str, float]()

    def told(parts: dict[str, float]) -> None:
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part
        if hooks.told is not None:
            hooks.told(run.step, parts)

    try:
        advance(
            run,
            session.loss,
            batches,
            session.schedule,
            until,
            told,
            after_step=hooks.after_step,
            called=session.called,
        )
    except FloatingPointError as error:
        raise DataError(f"step {run.step + 1}: {error} (--peak)") from error
    means = {name: value / (until - start) for name, value in sums.items()}
    return {
        "epoch": len(session.history) + 1,
        "step": until,
        "rate": learning_rate(until - 1, session.schedule),
        "loss": mean(means, session.team.device),
    }


def _validated(session: Session, hooks: Hooks) -> dict[str, float]:
    if hooks.validate is None or session.team.rank:
        return {}
    return hooks.validate(session.run.average)


def _write(session: Session, hooks: Hooks, entry: dict[str, Any]) -> None:
    if session.team.rank:
        return
    scores = [one["map50"] for one in session.history if "map50" in one]
    best = "map50" not in entry or entry["map50"] >= max(scores)
    if hooks.keep is not None and best:
        hooks.keep(session.run.average)
    if hooks.checkpoint is not None:
        facts = {"history": session.history, "shape": shape_of(session)}
        save_checkpoint(session.run, hooks.checkpoint, facts)
    if hooks.done is not None:
        hooks.done(entry)


def stale(scores: Sequence[float], patience: int) -> bool:
    """Whether the best of `scores`, the last one newest, is `patience` or more scores old."""
    if not scores:
        return False
    return len(scores) - 1 - max(range(len(scores)), key=scores.__getitem__) >= patience
