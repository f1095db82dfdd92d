"""From a set of images to a calibration table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.collect import collect
from calibration.histogram import Histogram
from calibration.table import CalibrationTable
from calibration.threshold import threshold
from edge.artifact import read_manifest, sha256_of
from edge.data.datasets import load, open_dataset
from edge.data.items import Dataset
from edge.errors import CalibrationError, DataError

__all__ = ["IMAGES", "SCENES", "Calibration", "calibrate"]

# Scales move by less than a percent beyond this many images of the sets in the README's table.
IMAGES = 200
# Scenes of the built-in world that no evaluation renders.
SCENES = "scenes://?seed=500000&count=400"


@dataclass(frozen=True)
class Calibration:
    """What a calibration gave.

    Attributes:
        table: the thresholds.
        histograms: by tensor, for other methods without another run.
        used: number of images.
        skipped: one line for each image that could not be read.
    """

    table: CalibrationTable
    histograms: dict[str, Histogram]
    used: int
    skipped: tuple[str, ...]


def calibrate(
    onnx: str | Path,
    data: str | Path = SCENES,
    *,
    images: int = IMAGES,
    method: str = "mse",
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Calibration:
    """Run an FP32 graph over images and choose a threshold for each convolution's input.

    Args:
        onnx: FP32 ONNX file that edge wrote.
        data: folder of images, labelled set, or `scenes://`, as `open_dataset` takes it.
        images: take at most so many, spread evenly over the set.
        method: mse, percentile, entropy or minmax.
        progress: called with (done, of).
        threads: of onnxruntime; all cores by default.

    Raises:
        CalibrationError: no image could be read, or an activation is not finite.
        DataError: `data` is not there.
    """
    onnx = Path(onnx)
    contract = read_manifest(onnx).spec.contract
    dataset = open_dataset(data, limit=images)
    skipped: list[str] = []
    digests: list[str] = []
    frames = _frames(dataset, digests, skipped)
    count = len(dataset.items)
    try:
        histograms = collect(
            onnx,
            frames,
            threads=threads,
            progress=progress and (lambda done: progress(done, count)),
        )
    except CalibrationError:
        if digests:
            raise
        first = f"; the first: {skipped[0]}" if skipped else ""
        raise CalibrationError(
            f"{data}: none of its {count} images can be calibrated on{first}"
        ) from None
    table = CalibrationTable(
        amax=tuple((name, threshold(found, method)) for name, found in histograms.items()),
        method=method,
        graph_sha256=sha256_of(onnx),
        contract_digest=contract.digest,
        images=tuple(sorted(digests)),
    )
    return Calibration(table, histograms, len(digests), tuple(skipped))


def _frames(
    dataset: Dataset, digests: list[str], skipped: list[str]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for item in dataset.items:
        try:
            frame, _ = load(item)
        except DataError as error:
            skipped.append(str(error))
            continue
        digests.append(hashlib.sha256(frame.tobytes()).hexdigest())
        yield str(item.image), frame
