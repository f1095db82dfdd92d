"""Training a prepared network for INT8: from the FP32 network's heads, or from labelled boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from edge.artifact import read_manifest
from edge.errors import CalibrationError, DataError
from edge.train.augment import Augmentation, Labelled
from edge.train.batches import BatchMaker, make_batch
from edge.train.losses.ciou import loss_for
from edge.train.qat import distil, fine_tune
from edge.train.quantized_network import QuantizedNetwork
from edge.train.schedule import Schedule
from export.qat.options import QatOptions
from export.qat.prepare import Prepared

__all__ = ["imitate", "learn_labels"]

Array = NDArray[np.float32]
Report = Callable[[int, float], None]


def _silent(step: int, loss: float) -> None:
    """Report nothing."""


def imitate(
    prepared: Prepared,
    arrays: Sequence[Array],
    options: QatOptions | None = None,
    report: Report = _silent,
) -> QuantizedNetwork:
    """Train towards the FP32 network's heads; no labels are needed.

    Args:
        arrays: network inputs (1, 3, H, W).
        report: called with the step and its loss, the noise share of the heads.

    Raises:
        CalibrationError: there is no array, or the training diverged.
    """
    if not arrays:
        raise CalibrationError("no image to train on")
    options, device = options or QatOptions(), _device()
    teacher = prepared.teacher.to(device)
    images = _mirrored(arrays, options, device)
    network, schedule = _ready(prepared, options, device)
    try:
        trained = distil(network, teacher, images, schedule, prepared.settle, report)
    except FloatingPointError as error:
        raise CalibrationError(f"{prepared.source}: {error} (--rate)") from error
    trained.cpu()
    return trained


def learn_labels(
    prepared: Prepared,
    pictures: Sequence[Labelled],
    options: QatOptions | None = None,
    report: Report = _silent,
) -> QuantizedNetwork:
    """Train on labelled pictures with the loss and the augmentation of `edge train`.

    Args:
        pictures: of `edge.train.pictures.read_pictures`.
        report: called with the step and its loss.

    Raises:
        CalibrationError: the training diverged.
        DataError: the heads cannot be trained from boxes.
    """
    options, device = options or QatOptions(), _device()
    spec = read_manifest(prepared.source).spec
    try:
        loss = loss_for(spec)
    except ValueError as error:
        raise DataError(f"{prepared.source}: {error}") from error
    maker = BatchMaker(pictures, spec, options.batch, options.seed, Augmentation())
    steps = count()

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = make_batch(maker, next(steps))
        return images.to(device), targets.to(device)

    network, schedule = _ready(prepared, options, device)
    try:
        trained = fine_tune(network, loss, draw, schedule, prepared.settle, report)
    except FloatingPointError as error:
        raise CalibrationError(f"{prepared.source}: {error} (--rate)") from error
    trained.cpu()
    return trained


def _ready(
    prepared: Prepared, options: QatOptions, device: str
) -> tuple[QuantizedNetwork, Schedule]:
    network = prepared.network.to(device)
    network.ranges.requires_grad_(not options.calibrated_scales)
    warmup = max(1, options.steps // 10)
    return network, Schedule(options.steps, options.rate, warmup, decay=0.0, average=0.99)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _mirrored(
    arrays: Sequence[Array], options: QatOptions, device: str
) -> Callable[[], torch.Tensor]:
    """Return what draws batches, half of them mirrored: a teacher can judge any picture."""
    rng = np.random.default_rng(options.seed)
    waiting: list[int] = []

    def draw() -> torch.Tensor:
        while len(waiting) < options.batch:
            waiting.extend(rng.permutation(len(arrays)).tolist())
        chosen = [arrays[waiting.pop()] for _ in range(options.batch)]
        batch = torch.from_numpy(np.concatenate(chosen)).to(device)
        return batch.flip(3) if rng.random() < 0.5 else batch

    return draw
