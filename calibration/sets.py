"""Choosing calibration images: few that reach every range, show every class and are unlike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.collect import activations, conv_inputs
from calibration.graph import Graph
from edge.errors import CalibrationError
from edge.runtime.ops_cpu import Decoder
from edge.spec import ModelSpec

__all__ = ["Coverage", "Features", "choose", "coverage", "measure_features"]

Array = NDArray[np.float32]
# Below it a class is noise of the network, above it the class counts in part.
_SCORE = 0.05


@dataclass(frozen=True, eq=False)
class Features:
    """What each of N images does to the network.

    Attributes:
        names: of the images.
        peaks: largest |x| of each tensor that convolutions read, (N, tensors).
        pooled: mean of each channel of each of these tensors, (N, channels).
        classes: best score of each class, (N, classes), 0..1.
    """

    names: tuple[str, ...]
    peaks: Array
    pooled: Array
    classes: Array


@dataclass(frozen=True)
class Coverage:
    """What a choice has of all its candidates, 0..1 each.

    Attributes:
        ranges: mean over the tensors of the largest value in the choice to that in all.
        classes: the same of the classes' best scores.
        likeness: mean likeness of each image to the nearest that was chosen.
    """

    ranges: float
    classes: float
    likeness: float


def measure_features(
    graph: Graph | str | Path,
    arrays: Iterable[tuple[str, Array]],
    *,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
) -> Features:
    """Run the FP32 graph over (name, network input) pairs and note what each does to it.

    Raises:
        CalibrationError: no image, or an activation that is not finite.
    """
    graph = Graph.open(graph)
    spec = graph.manifest.spec
    tensors = conv_inputs(graph.model)
    heads = list(spec.tensors)
    decode = Decoder(spec, multi_label=True)
    rows: list[tuple[str, list[float], Array, Array]] = []
    for name, values in activations(
        graph, list(dict.fromkeys([*tensors, *heads])), arrays, threads
    ):
        known = dict(values)
        found = [known[tensor] for tensor in tensors]
        peaks = [float(max(value.max(), -value.min())) for value in found]
        pooled = np.concatenate([value.mean(axis=(0, 2, 3)) for value in found])
        scores = _scores(spec, decode, [known[head] for head in heads])
        rows.append((name, peaks, pooled, scores))
        if progress:
            progress(len(rows))
    if not rows:
        raise CalibrationError(f"{graph}: no image to choose from")
    names, peak_rows, pooled_rows, class_rows = zip(*rows, strict=True)
    return Features(
        names, np.array(peak_rows, np.float32), np.stack(pooled_rows), np.stack(class_rows)
    )


def _scores(spec: ModelSpec, decode: Decoder, heads: list[Array]) -> Array:
    found = decode(heads, _SCORE)
    scores = np.zeros(len(spec.classes), np.float32)
    np.maximum.at(scores, found.class_id, found.score)
    return scores


def choose(features: Features, count: int) -> list[int]:
    """Return the indices of `count` pictures, best first, or of all where there are no more.

    Greedy for the sum of three coverages, in each of which what one image adds can only shrink as
    others join, so that the greedy choice has 63 % of the best one's value or more (Nemhauser,
    Wolsey and Fisher, 1978): ranges, classes, and likeness (facility location).

    Raises:
        ValueError: `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it takes a positive number of images")
    parts = _parts(features)
    reached = [np.zeros(part.shape[1], np.float32) for part in parts]
    left = list(range(len(features.names)))
    chosen: list[int] = []
    while left and len(chosen) < count:
        gains = [
            np.maximum(part[left] - have, 0).sum(axis=1)
            for part, have in zip(parts, reached, strict=True)
        ]
        best = left.pop(int(np.argmax(np.sum(gains, axis=0))))
        chosen.append(best)
        reached = [np.maximum(have, part[best]) for part, have in zip(parts, reached, strict=True)]
    return chosen


def coverage(features: Features, chosen: list[int]) -> Coverage:
    """Return how much of all pictures those at indices `chosen` cover."""
    ranges, classes, likeness = (float(p[chosen].max(axis=0).sum()) for p in _parts(features))
    return Coverage(ranges, classes, likeness)


def _parts(features: Features) -> list[Array]:
    """Return three (N, columns) arrays of what each picture covers; each sums to 1 at best."""
    return [_of_most(features.peaks), _of_most(features.classes), _likeness(features.pooled)]


def _of_most(values: Array) -> Array:
    """Return each value as a share of the largest in its column; empty columns are left out."""
    most = values.max(axis=0)
    used = most > 0
    if not used.any():
        return np.ones((len(values), 1), np.float32)
    return np.asarray(values[:, used] / most[used] / used.sum(), np.float32)


def _likeness(pooled: Array) -> Array:
    """Return how alike two pictures are, (N, N): the cosine of their centred channel means."""
    centred = (pooled - pooled.mean(axis=0)) / (pooled.std(axis=0) + 1e-12)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.maximum(length, 1e-12)
    like = np.clip((1 + unit @ unit.T) / 2, 0, 1)
    np.fill_diagonal(like, 1.0)
    return np.asarray(like / len(like), np.float32)
