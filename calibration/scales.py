"""Clipping thresholds and channel gains of an FP32 graph, measured on pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.collect import collect
from calibration.equalise import find_gains
from calibration.graph import Graph
from calibration.histogram import Histogram
from calibration.ranges import ChannelRange, channel_ranges
from calibration.recipe import IMAGES
from calibration.table import CalibrationTable
from calibration.threshold import threshold
from edge import __version__
from edge.data.datasets import open_dataset
from edge.data.distinct import Seen, digest, pictures
from edge.data.items import Dataset, thin
from edge.errors import CalibrationError, DataError
from edge.runtime.ops_cpu import Preprocessor
from edge.spec import InputContract

__all__ = [
    "SCENES",
    "Calibration",
    "calibration_inputs",
    "check_readable",
    "inputs_of",
    "measure_scales",
    "network_inputs",
]

# Scenes of the built-in world that no evaluation renders.
SCENES = "scenes://?seed=500000&count=400"
# Peaks of single channels steer the gains only; the scales come from all pictures.
_RANGE_IMAGES = 64
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """What a calibration gave.

    Attributes:
        table: the thresholds.
        histograms: by tensor, from which other methods need no second run; empty where a table
            was taken as it was.
        used: number of pictures.
        skipped: one line for each picture that could not be read.
    """

    table: CalibrationTable
    histograms: dict[str, Histogram]
    used: int
    skipped: tuple[str, ...]


def measure_scales(
    graph: Graph | str | Path,
    dataset: Dataset,
    *,
    method: str = "mse",
    equalise: bool = True,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Calibration:
    """Run an FP32 graph over pictures and choose a threshold for each convolution's input.

    This is the first step of `calibration.pipeline.calibrate`; biases and rounding come after it.

    Args:
        graph: FP32 ONNX file that edge wrote.
        dataset: the pictures.
        method: mse, percentile, entropy or minmax.
        equalise: give the channels of a tensor equal ranges first, where that changes no result.
        progress: called with (done, of).
        threads: of onnxruntime; all cores by default.

    Raises:
        CalibrationError: no picture could be read, or an activation is not finite.
    """
    graph = Graph.open(graph)
    contract = graph.manifest.spec.contract
    seen = Seen()
    count = len(dataset.items)
    try:
        ranges, gains = _equalised(graph, dataset, contract, threads) if equalise else ({}, {})
        histograms = collect(
            graph,
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
        graph_sha256=graph.sha256,
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
    """Read the first usable picture of `data`, so that a typo shows before the work begins.

    Raises:
        CalibrationError: no picture can be calibrated on.
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


def network_inputs(
    graph: Graph | str | Path, data: str | Path, images: int
) -> Iterator[tuple[str, Array]]:
    """Yield (name, network input) of at most `images` readable pictures; the input is reused."""
    contract = Graph.open(graph).manifest.spec.contract
    yield from inputs_of(open_dataset(data, limit=images), contract)


def calibration_inputs(
    graph: Graph | str | Path, table: CalibrationTable, count: int
) -> list[Array]:
    """Return network inputs of at most `count` of the pictures that `table` was made from.

    Raises:
        DataError: the table does not say where they are, or they are not there any more.
    """
    if not table.data:
        raise DataError("the table does not say which pictures it was made from")
    dataset = open_dataset(table.data, limit=table.asked or None)
    known = frozenset(table.images)
    preprocess = Preprocessor(Graph.open(graph).manifest.spec.contract)
    few = replace(dataset, items=tuple(thin(dataset.items, count)))
    found = [
        preprocess(frame)[0].copy() for _, frame in pictures(few, Seen()) if digest(frame) in known
    ]
    if not found:
        raise DataError(f"{table.data}: no longer holds the pictures that the table was made from")
    return found


def inputs_of(dataset: Dataset, contract: InputContract) -> Iterator[tuple[str, Array]]:
    """Yield (name, network input) of each readable picture; the input is reused."""
    preprocess = Preprocessor(contract)
    for name, frame in pictures(dataset, Seen()):
        yield name, preprocess(frame)[0]


def _equalised(
    graph: Graph, dataset: Dataset, contract: InputContract, threads: int | None
) -> tuple[dict[str, ChannelRange], dict[str, Array]]:
    """The range of each tensor and, where it can be equalised, its gains as the table has them."""
    few = replace(dataset, items=tuple(thin(dataset.items, _RANGE_IMAGES)))
    ranges = channel_ranges(graph, inputs_of(few, contract), threads=threads)
    gains = find_gains(graph.model, {name: one.peaks for name, one in ranges.items()})
    rounded = {
        name: np.asarray([_short(g) for g in gain], np.float32) for name, gain in gains.items()
    }
    return ranges, rounded


def _short(value: float) -> float:
    """Round to five digits, which is exact for a gain: the same value is divided and multiplied."""
    return float(f"{value:.5g}")


def _low(one: ChannelRange, gain: Array | None) -> float:
    return float((one.low if gain is None else one.low / gain).min())
