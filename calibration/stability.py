"""How far the scales depend on which pictures, and how many, were taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.collect import collect
from calibration.graph import Graph
from calibration.histogram import Histogram
from calibration.table import CalibrationTable
from calibration.threshold import METHODS, noise, threshold
from edge.data.distinct import Seen, pictures
from edge.data.items import Dataset
from edge.errors import CalibrationError

__all__ = ["GROUPS", "Point", "Stability", "collect_groups", "measure_stability", "stability_of"]

Group = Mapping[str, Histogram]
# Histograms are kept by group, not by image: memory is bounded whatever the number of images.
GROUPS = 12
_RESAMPLES = 12
_ORDERS = 3
# A step of the curve that gains less than this is no gain.
_ENOUGH_DB = 0.05


@dataclass(frozen=True)
class Point:
    """Scales of so many images against those of all.

    Attributes:
        images: how many.
        shift: mean over the tensors of |amax / amax of all - 1|.
        loss_db: noise on all images above what the scales of all images leave, mean over tensors.
    """

    images: int
    shift: float
    loss_db: float


@dataclass(frozen=True)
class Stability:
    """What a bootstrap and a curve say.

    Attributes:
        images: used.
        spread: by tensor, standard deviation of amax over bootstrap sets, as a share of amax.
        curve: from few images to all.
        enough: images from which on more gain less than 0.05 dB; None where even the last did.
    """

    images: int
    spread: dict[str, float]
    curve: tuple[Point, ...]
    enough: int | None

    def to_json(self) -> dict[str, Any]:
        """The figures as `edge calibrate --json` writes them."""
        curve = [asdict(point) for point in self.curve]
        return {
            "images": self.images,
            "enough": self.enough,
            "spread": self.spread,
            "curve": curve,
        }


def measure_stability(
    graph: Graph | str | Path,
    dataset: Dataset,
    table: CalibrationTable,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Stability:
    """Measure how far the scales of `table` depend on which pictures of `dataset` are taken.

    Raises:
        CalibrationError: as `collect_groups`.
    """
    gains = {name: np.asarray(gain, np.float32) for name, gain in table.gains}
    groups, sizes = collect_groups(graph, dataset, gains, progress=progress, threads=threads)
    return stability_of(groups, sizes, table.method if table.method in METHODS else "mse")


def collect_groups(
    graph: Graph | str | Path,
    dataset: Dataset,
    gains: Mapping[str, NDArray[np.float32]],
    *,
    groups: int = GROUPS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> tuple[list[Group], list[int]]:
    """Return histograms of random groups of the pictures, and how many are in each group.

    Raises:
        CalibrationError: fewer than four images, or an activation that is not finite.
    """
    if len(dataset) < 4:
        raise CalibrationError(
            f"{dataset.source}: {len(dataset)} images; stability takes four or more"
        )
    graph = Graph.open(graph)
    order = np.random.default_rng(seed).permutation(len(dataset))
    found: list[Group] = []
    sizes: list[int] = []
    for indices in np.array_split(order, min(groups, len(dataset) // 2)):
        part = replace(dataset, items=tuple(dataset.items[i] for i in indices))
        seen = Seen()
        found.append(collect(graph, pictures(part, seen), gains=gains, threads=threads))
        sizes.append(len(seen.digests))
        if progress:
            progress(sum(sizes), len(dataset))
    return found, sizes


def stability_of(
    groups: Sequence[Group], sizes: Sequence[int], method: str = "mse", seed: int = 0
) -> Stability:
    """Return how sure the scales are: a bootstrap over the groups, and the curve of growing sets.

    Args:
        groups: histograms by tensor, of disjoint random images.
        sizes: images of each group.
        method: of the thresholds.
    """
    rng = np.random.default_rng(seed)
    whole = _merged(groups, range(len(groups)))
    amax = _thresholds(whole, method)
    drawn = [rng.integers(len(groups), size=len(groups)) for _ in range(_RESAMPLES)]
    resampled = np.array([_thresholds(_merged(groups, one), method) for one in drawn])
    # A set of n groups drawn with replacement has the bootstrap's own variance, n / (n - 1) short.
    correction = np.sqrt(len(groups) / max(len(groups) - 1, 1))
    spread = resampled.std(axis=0) / amax * correction
    curve = _curve(groups, sizes, whole, amax, method, rng)
    return Stability(
        images=sum(sizes),
        spread=dict(zip(whole, map(float, spread), strict=True)),
        curve=curve,
        enough=_enough(curve),
    )


def _merged(groups: Sequence[Group], indices: Sequence[int] | range | NDArray[np.int64]) -> Group:
    return {name: reduce(Histogram.merge, [groups[i][name] for i in indices]) for name in groups[0]}


def _thresholds(histograms: Group, method: str) -> NDArray[np.float64]:
    return np.array([threshold(one, method) for one in histograms.values()])


def _curve(
    groups: Sequence[Group],
    sizes: Sequence[int],
    whole: Group,
    amax: NDArray[np.float64],
    method: str,
    rng: np.random.Generator,
) -> tuple[Point, ...]:
    least = _noise(whole, amax)
    counts = sorted({1, 2, 3, *range(4, len(groups), 2), len(groups)} & {*range(len(groups) + 1)})
    orders = [rng.permutation(len(groups)) for _ in range(_ORDERS)]
    points = []
    for count in counts:
        few = [_thresholds(_merged(groups, order[:count]), method) for order in orders]
        images = np.mean([sum(sizes[i] for i in order[:count]) for order in orders])
        shift = np.mean([np.abs(one / amax - 1).mean() for one in few])
        loss = np.mean([_loss_db(_noise(whole, one), least) for one in few])
        points.append(Point(round(float(images)), float(shift), float(loss)))
    return tuple(points)


def _noise(histograms: Group, amax: NDArray[np.float64]) -> NDArray[np.float64]:
    pairs = zip(histograms.values(), amax, strict=True)
    return np.array([noise(one, np.array([limit]))[0] for one, limit in pairs])


def _loss_db(noise_: NDArray[np.float64], least: NDArray[np.float64]) -> float:
    used = (least > 0) & (noise_ > 0)
    return float(np.mean(10 * np.log10(noise_[used] / least[used]))) if used.any() else 0.0


def _enough(curve: Sequence[Point]) -> int | None:
    """Return the first count after which more pictures gain nothing; None if even the last did."""
    for index, point in enumerate(curve[:-1]):
        if all(abs(later.loss_db) < _ENOUGH_DB for later in curve[index:]):
            return point.images
    return None
