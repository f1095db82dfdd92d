"""From a set of images to a calibration table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.collect import collect
from calibration.equalise import find_gains
from calibration.histogram import Histogram
from calibration.ranges import ChannelRange, channel_ranges
from calibration.table import CalibrationTable
from calibration.threshold import threshold
from edge import __version__
from edge.artifact import read_manifest
from edge.data.datasets import open_dataset
from edge.data.distinct import Seen, pictures
from edge.data.items import Dataset, thin
from edge.errors import CalibrationError
from edge.files import sha256_of
from edge.optional import require
from edge.runtime.ops_cpu import Preprocessor
from edge.spec import InputContract

__all__ = [
    "IMAGES",
    "SCENES",
    "Calibration",
    "calibrate",
    "calibrate_dataset",
    "check_readable",
    "inputs_of",
    "network_inputs",
]

# What the README's table of INT8 accuracy was measured with.
IMAGES = 200
# Scenes of the built-in world that no evaluation renders.
SCENES = "scenes://?seed=500000&count=400"
# Peaks of single channels steer the gains only; the scales come from all images.
_RANGE_IMAGES = 64
Array = NDArray[np.float32]


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
    equalise: bool = True,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Calibration:
    """Run an FP32 graph over images and choose a threshold for each convolution's input.

    Args:
        onnx: FP32 ONNX file that edge wrote.
        data: folder of images, labelled set, or `scenes://`, as `open_dataset` takes it.
        images: take at most so many, spread evenly over the set.
        method: mse, percentile, entropy or minmax.
        equalise: give a tensor's channels like ranges first, where that changes no result.
        progress: called with (done, of).
        threads: of onnxruntime; all cores by default.

    Raises:
        CalibrationError: no image could be read, or an activation is not finite.
        DataError: `data` is not there.
    """
    dataset = open_dataset(data, limit=images)
    return calibrate_dataset(
        onnx, dataset, method=method, equalise=equalise, progress=progress, threads=threads
    )


def calibrate_dataset(
    onnx: str | Path,
    dataset: Dataset,
    *,
    method: str = "mse",
    equalise: bool = True,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Calibration:
    """As `calibrate`, over all images of an opened set."""
    onnx = Path(onnx)
    contract = read_manifest(onnx).spec.contract
    seen = Seen()
    count = len(dataset.items)
    try:
        ranges, gains = _equalised(onnx, dataset, contract, threads) if equalise else ({}, {})
        histograms = collect(
            onnx,
            pictures(dataset, seen),
            gains=gains,
            threads=threads,
            progress=progress and (lambda done: progress(done, count)),
        )
    except CalibrationError:
        if seen.digests or not seen.skipped:
            raise
        raise _none_readable(dataset, seen) from None
    table = CalibrationTable(
        amax=tuple((name, threshold(found, method)) for name, found in histograms.items()),
        method=method,
        graph_sha256=sha256_of(onnx),
        contract_digest=contract.digest,
        images=tuple(sorted(seen.digests)),
        gains=tuple((name, tuple(map(_short, gain.tolist()))) for name, gain in gains.items()),
        low=tuple((name, _low(one, gains.get(name))) for name, one in ranges.items()),
        hashes=tuple(sorted(seen.hashes)),
        recipe=("equalise",) if equalise else (),
        made_by=f"edge {__version__}",
    )
    return Calibration(table, histograms, len(seen.digests), tuple(seen.skipped))


def check_readable(data: str | Path, images: int = IMAGES) -> None:
    """Read the first usable image of what `calibrate` would take: a typo shows before the work.

    Raises:
        CalibrationError: no image can be calibrated on.
        DataError: `data` is not there.
    """
    dataset, seen = open_dataset(data, limit=images), Seen()
    if next(pictures(dataset, seen), None) is None:
        raise _none_readable(dataset, seen)


def _none_readable(dataset: Dataset, seen: Seen) -> CalibrationError:
    return CalibrationError(
        f"{dataset.source}: none of its {len(dataset.items)} images can be calibrated on; "
        f"the first: {seen.skipped[0]}"
    )


def network_inputs(onnx: str | Path, data: str | Path, images: int) -> Iterator[tuple[str, Array]]:
    """(name, network input) of at most `images` readable images of `data`; input is reused."""
    yield from inputs_of(open_dataset(data, limit=images), read_manifest(onnx).spec.contract)


def inputs_of(dataset: Dataset, contract: InputContract) -> Iterator[tuple[str, Array]]:
    """(name, network input) of each readable image; the input is reused."""
    preprocess = Preprocessor(contract)
    for name, frame in pictures(dataset, Seen()):
        yield name, preprocess(frame)[0]


def _equalised(
    onnx: Path, dataset: Dataset, contract: InputContract, threads: int | None
) -> tuple[dict[str, ChannelRange], dict[str, Array]]:
    """Each tensor's range and, where it can be equalised, its gains, as the table states them."""
    few = replace(dataset, items=tuple(thin(dataset.items, _RANGE_IMAGES)))
    ranges = channel_ranges(onnx, inputs_of(few, contract), threads=threads)
    peaks = {name: one.peaks for name, one in ranges.items()}
    gains = find_gains(require("onnx").load(str(onnx)), peaks)
    rounded = {
        name: np.asarray([_short(g) for g in gain], np.float32) for name, gain in gains.items()
    }
    return ranges, rounded


def _short(value: float) -> float:
    """Five digits: exact as a gain, since what is divided out is what is multiplied in."""
    return float(f"{value:.5g}")


def _low(one: ChannelRange, gain: Array | None) -> float:
    return float((one.low if gain is None else one.low / gain).min())
