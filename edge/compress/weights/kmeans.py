"""k-means in one dimension: centres of a layer's weights, from several starts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edge.compress.options import Start
from edge.errors import CompressionError

__all__ = ["kmeans_1d"]

Values = NDArray[np.float64]
_BINS = 768


def kmeans_1d(
    values: NDArray[Any],
    count: int,
    start: Start = "linear",
    seed: int = 0,
    rounds: int = 200,
    centres: Values | None = None,
) -> Values:
    """Return at most `count` centres of `values` (N,), ascending, after Lloyd's iterations.

    Args:
        start: `linear` spreads the first centres over the range, `density` over the ranks,
            `random` draws values; `optimal` takes the best centres of a histogram.
        seed: of `random`.
        rounds: stop after this many iterations even if centres still move.
        centres: start from these instead.

    Raises:
        CompressionError: no values, no centres wanted, or an unknown start.
    """
    if not len(values) or count < 1 or start not in _STARTS:
        raise CompressionError(
            f"{count} centres ({start}) of {len(values)} values cannot be computed"
        )
    ordered = np.sort(np.asarray(values, np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    if centres is None:
        centres = _STARTS[start](ordered, count, np.random.default_rng(seed))
    centres = np.unique(centres)
    for _ in range(rounds):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2, side="right")
        edges = np.concatenate([[0], edges, [len(ordered)]])
        size = np.diff(edges)
        moved = (np.diff(sums[edges]) / np.maximum(size, 1))[size > 0]
        if len(moved) == len(centres) and (moved == centres).all():
            break
        centres = np.unique(moved)
    return centres


def _linear(ordered: Values, count: int, _: Generator) -> Values:
    return np.linspace(ordered[0], ordered[-1], count)


def _density(ordered: Values, count: int, _: Generator) -> Values:
    return np.asarray(ordered[((np.arange(count) + 0.5) * len(ordered) / count).astype(int)])


def _random(ordered: Values, count: int, rng: Generator) -> Values:
    different = np.unique(ordered)
    return rng.choice(different, min(count, len(different)), replace=False)


def _optimal(ordered: Values, count: int, _: Generator) -> Values:
    """Return the best centres of the values' histogram (H. Wang, M. Song, The R Journal 3/2011).

    Dynamic programming finds them; they are exact where no bin holds two different values.
    """
    points, weight = _histogram(ordered)
    sums = [np.concatenate([[0.0], np.cumsum(weight * points**power)]) for power in range(3)]
    # cost[a, b]: squared error of the points a to b - 1 about their mean
    size, total, squares = (each[None, :] - each[:, None] for each in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(size > 0, np.maximum(squares - total**2 / size, 0), np.inf)
    best, cuts = cost[0], []
    for _one in range(min(count, len(points)) - 1):
        table = best[:, None] + cost
        cuts.append(table.argmin(axis=0))
        best = table.min(axis=0)
    stops = [len(points)]
    for cut in reversed(cuts):
        stops.append(int(cut[stops[-1]]))
    edges = np.array([0, *reversed(stops)])
    return np.asarray(np.diff(sums[1][edges]) / np.diff(sums[0][edges]))


def _histogram(ordered: Values) -> tuple[Values, Values]:
    """Return the different values and their counts; means of even bins if there are many."""
    points, count = np.unique(ordered, return_counts=True)
    if len(points) <= _BINS:
        return points, count.astype(np.float64)
    edges = np.linspace(points[0], points[-1], _BINS + 1)
    weight = np.histogram(ordered, edges)[0].astype(np.float64)
    total = np.histogram(ordered, edges, weights=ordered)[0]
    return total[weight > 0] / weight[weight > 0], weight[weight > 0]


_STARTS = {"linear": _linear, "density": _density, "random": _random, "optimal": _optimal}
