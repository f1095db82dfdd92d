"""What a training reports: its epochs, and the result of the whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edge.train.schedule import Schedule

__all__ = ["OVERFIT_MAP50", "EpochRecord", "TrainResult", "best_of"]

# What a network, its loss and its labels must reach on a handful of pictures that it learns by
# heart; below it one of them is wrong.
OVERFIT_MAP50 = 0.9


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a training.

    Attributes:
        epoch: its number, from 1.
        step: optimizer steps done at its end.
        rate: learning rate of its last step.
        loss: mean of each part of the loss.
        map50, map50_95: mAP on the validation pictures, 0..1; None without them.
        dead_units: by layer, how many channels never answer and how many there are.
    """

    epoch: int
    step: int
    rate: float
    loss: dict[str, float]
    map50: float | None = None
    map50_95: float | None = None
    dead_units: dict[str, tuple[int, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record without what was not measured."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def best_of(history: Sequence[EpochRecord]) -> EpochRecord | None:
    """Return the first epoch with the highest mAP@.5; None where none was validated."""
    validated = [record for record in history if record.map50 is not None]
    return max(validated, key=lambda record: record.map50 or 0.0, default=None)


@dataclass(frozen=True)
class TrainResult:
    """What `edge train` did.

    Attributes:
        rank: number of this process; process 0 writes the files.
        model: name of the files.
        files: what was written.
        steps: optimizer steps done.
        ended: why training ended.
        schedule: of the learning rate.
        batch: pictures in each step.
        objects: number of labelled objects by class.
        problems: number of labels that were changed or left out, by reason.
        history: one record for each epoch.
        overfits: whether the pictures were learned by heart; None where that was not asked.
        seconds: duration of the training.
    """

    rank: int
    model: str
    files: tuple[str, ...]
    steps: int
    ended: str
    schedule: Schedule
    batch: int
    objects: Mapping[str, int]
    problems: Mapping[str, int]
    history: tuple[EpochRecord, ...]
    overfits: bool | None
    seconds: float

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the highest mAP@.5; None without validation."""
        return best_of(self.history)

    def to_json(self) -> dict[str, Any]:
        """Return the result by its keys in JSON."""
        fields: dict[str, Any] = {
            "rank": self.rank,
            "model": self.model,
            "files": self.files,
            "steps": self.steps,
            "ended": self.ended,
            "schedule": self.schedule,
            "batch": self.batch,
            "objects": self.objects,
            "problems": self.problems,
            "history": self.history,
            "best": self.best,
        }
        if self.overfits is not None:
            fields["overfits"] = self.overfits
        return fields | {"seconds": self.seconds}
