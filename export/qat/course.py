"""Training a prepared network for INT8: from the FP32 network's heads, or from labelled boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import read_manifest
from edge.errors import CalibrationError, DataError
from edge.optional import require
from export.qat.prepare import Prepared

if TYPE_CHECKING:
    from edge.train.quantized_network import QuantizedNetwork

__all__ = ["Course", "imitate", "learn_labels"]

Array = NDArray[np.float32]
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Course:
    """How a network is trained for INT8.

    Attributes:
        steps: of the optimizer.
        batch: images of a step.
        peak: highest learning rate, in steps of the weights' INT8 scale.
        seed: of the order of the images and what is done to them.
        scales: whether activations' scales learn too, or stay as calibrated.
    """

    steps: int = 1000
    batch: int = 4
    peak: float = 0.01
    seed: int = 0
    scales: bool = True


def _silent(step: int, loss: float) -> None:
    """No report."""


def imitate(
    prepared: Prepared,
    arrays: Sequence[Array],
    course: Course | None = None,
    report: Report = _silent,
) -> QuantizedNetwork:
    """Train towards the FP32 network's heads; no labels are needed.

    Args:
        arrays: network inputs (1, 3, H, W).
        report: called with the step and its loss, the noise share of the heads.

    Raises:
        CalibrationError: no array, or the training diverged.
    """
    if not arrays:
        raise CalibrationError("no image to train on")
    course, device = course or Course(), _device()
    teacher = prepared.teacher.to(device)

    def train(qat: Any, network: Any, schedule: Any) -> Any:
        images = _mirrored(arrays, course, device)
        return qat.distil(network, teacher, images, schedule, prepared.settle, report)

    return _trained(prepared, course, device, train)


def learn_labels(
    prepared: Prepared,
    pictures: Sequence[Any],
    course: Course | None = None,
    report: Report = _silent,
) -> QuantizedNetwork:
    """Train on labelled pictures with the loss and the augmentation of `edge train`.

    Args:
        pictures: of `edge.train.pictures.read_pictures`.
        report: called with the step and its loss.

    Raises:
        CalibrationError: the training diverged.
        DataError: heads of a kind that cannot be trained from boxes.
    """
    course, device = course or Course(), _device()
    batches = require("edge.train.batches")
    spec = read_manifest(prepared.source).spec
    changes = require("edge.train.augment").Augmentation()
    maker = batches.BatchMaker(pictures, spec, course.batch, course.seed, changes)
    steps = count()

    def draw() -> tuple[Any, Any]:
        images, targets = batches.make_batch(maker, next(steps))
        return images.to(device), targets.to(device)

    def train(qat: Any, network: Any, schedule: Any) -> Any:
        loss = require("edge.train.losses.ciou").loss_for(spec)
        return qat.fine_tune(network, loss, draw, schedule, prepared.settle, report)

    try:
        return _trained(prepared, course, device, train)
    except CalibrationError:
        raise
    except ValueError as error:
        raise DataError(f"{prepared.source}: {error}") from error


def _trained(
    prepared: Prepared, course: Course, device: str, train: Callable[[Any, Any, Any], Any]
) -> QuantizedNetwork:
    schedule = require("edge.train.schedule").Schedule(
        course.steps, course.peak, warmup=max(1, course.steps // 10), decay=0.0, average=0.99
    )
    network = prepared.network.to(device)
    network.ranges.requires_grad_(course.scales)
    try:
        result: QuantizedNetwork = train(require("edge.train.qat"), network, schedule).cpu()
    except FloatingPointError as error:
        raise CalibrationError(f"{prepared.source}: {error}") from error
    return result


def _device() -> str:
    return "cuda" if require("torch").cuda.is_available() else "cpu"


def _mirrored(arrays: Sequence[Array], course: Course, device: str) -> Callable[[], Any]:
    """Batches in a drawn order, half of them mirrored: to the teacher any picture is a lesson."""
    torch, rng = require("torch"), np.random.default_rng(course.seed)
    waiting: list[int] = []

    def draw() -> Any:
        while len(waiting) < course.batch:
            waiting.extend(rng.permutation(len(arrays)).tolist())
        chosen = [arrays[waiting.pop()] for _ in range(course.batch)]
        batch = torch.from_numpy(np.concatenate(chosen)).to(device)
        return batch.flip(3) if rng.random() < 0.5 else batch

    return draw
