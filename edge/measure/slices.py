"""Two artifacts on the same images, slice by slice: all, by size of the objects, by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge.data.datasets import Dataset
from edge.data.items import Item
from edge.data.metrics import ImageMatches, evaluate_detections
from edge.detections import Detections
from edge.errors import DataError
from edge.measure.results import ClassResults, by_class
from edge.measure.scores import best_threshold, f1_by_class, f1_curve, score_histogram, score_shift
from edge.measure.statistics import (
    average_precision,
    difference_spread,
    mean_precision,
    quantile,
    resample,
)

__all__ = [
    "SIZES",
    "BestThreshold",
    "ScoreChange",
    "Slice",
    "SliceComparison",
    "compare_slices",
    "sized",
]

# COCO's ranges of object areas, square pixels: https://cocodataset.org/#detection-eval
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_LIMIT = 100
_DRAWS = 500
_NORMAL = 1.96
Results = dict[str, ClassResults]


@dataclass(frozen=True)
class Slice:
    """mAP@.5 of two detectors on one part of the objects.

    Attributes:
        before, now: of the two, 0..1.
        difference: now - before.
        interval: 95 % interval of the difference, within what AP can change by.
        objects: that had to be found.
    """

    before: float
    now: float
    difference: float
    interval: tuple[float, float]
    objects: int = 0


@dataclass(frozen=True)
class BestThreshold:
    """The score threshold at which a detector's F1 is best.

    Attributes:
        threshold: of the score.
        f1: of all classes together, there.
        f1_by_class: of each class that has objects, there.
    """

    threshold: float
    f1: float
    f1_by_class: dict[str, float]


@dataclass(frozen=True)
class ScoreChange:
    """How scores moved from one detector to another.

    Attributes:
        shift: median change over the boxes that both draw; None without any.
        histogram: detections by score, in 20 steps of 0..1, of `before` and `now`.
        before, now: None where nothing is found at any threshold.
    """

    shift: float | None
    histogram: dict[str, list[int]]
    before: BestThreshold | None
    now: BestThreshold | None

    def to_json(self) -> dict[str, Any]:
        """JSON values; a side that found nothing is left out."""
        sides = {"before": self.before, "now": self.now}
        found = {name: side for name, side in sides.items() if side is not None}
        return {"shift": self.shift, "histogram": self.histogram, **found}


@dataclass(frozen=True)
class SliceComparison:
    """Two detectors on the same images.

    Attributes:
        slices: by name: `all`, `small`, `medium`, `large`, and `class NAME`.
        scores: how scores moved.
    """

    slices: dict[str, Slice]
    scores: ScoreChange


def compare_slices(
    dataset: Dataset,
    before: Sequence[Detections],
    now: Sequence[Detections],
    classes: Sequence[str],
) -> SliceComparison:
    """Compare mAP@.5 of two detectors on each slice, and their scores.

    Args:
        dataset: in pixels; both sides ran over its items.
    """
    names = tuple(classes)
    matches = [evaluate_detections(dataset, list(side), names).matches for side in (before, now)]
    whole = [by_class(found, len(dataset)) for found in matches]
    slices = {"all": _difference(*whole)}
    for size, (low, high) in SIZES.items():
        sides = [sized(dataset, side, names, low, high) for side in (before, now)]
        if sides[0] and sides[1]:
            slices[size] = _difference(*sides)
    for name in sorted(set(whole[0]) & set(whole[1])):
        slices[f"class {name}"] = _difference(*({name: side[name]} for side in whole))
    histogram = {"before": score_histogram(before), "now": score_histogram(now)}
    best = [_best_threshold(found) for found in matches]
    scores = ScoreChange(score_shift(before, now), histogram, best[0], best[1])
    return SliceComparison(slices, scores)


def _difference(before: Results, now: Results) -> Slice:
    names = [name for name in before if name in now]
    images = len(before[names[0]].boxes)
    weights = np.vstack([np.ones((1, images)), resample(images, _DRAWS)])
    if len(names) == 1:
        sides = [average_precision(side[names[0]], weights) for side in (before, now)]
    else:
        sides = [mean_precision({n: side[n] for n in names}, weights) for side in (before, now)]
    gained = sides[1] - sides[0]
    error, freedom = difference_spread(
        {name: before[name] for name in names}, {name: now[name] for name in names}, gained[1:]
    )
    at, first = float(gained[0]), float(sides[0][0])
    reach = error * (_NORMAL if freedom == np.inf else quantile(0.975, freedom))
    # Precision ends at 0 and at 1, and so does its change.
    low, high = max(at - reach, -first), min(at + reach, 1 - first)
    return Slice(
        before=round(first, 6),
        now=round(float(sides[1][0]), 6),
        difference=round(at, 6),
        interval=(round(low, 6), round(high, 6)),
        objects=sum(int(before[name].boxes.sum()) for name in names),
    )


def _best_threshold(matches: Sequence[ImageMatches]) -> BestThreshold | None:
    curve = f1_curve(matches)
    if not curve.f1.any():
        return None
    score = best_threshold(curve)
    classes = f1_by_class(matches).items()
    return BestThreshold(
        score,
        round(curve.at(score), 5),
        {name: round(float(one.at(score)), 5) for name, one in classes},
    )


def sized(
    dataset: Dataset,
    detections: Sequence[Detections],
    classes: tuple[str, ...],
    low: float,
    high: float,
) -> Results:
    """Results for objects of `low` to `high` square pixels, as COCO judges a size range.

    Other objects need not be found, and a detection of another size that found nothing is no
    false alarm. Empty where no object has such a size.
    """
    chosen = replace(dataset, items=tuple(_only(item, low, high) for item in dataset.items))
    if not any(np.any(~(item.ignore | item.crowd)) for item in chosen.items):
        return {}
    try:
        matches = evaluate_detections(chosen, list(detections), classes, _LIMIT).matches
    except DataError:
        return {}
    number = {name: index for index, name in enumerate(classes)}
    kept = [
        _ignore_others(one, detections[one.image], number[one.name], low, high) for one in matches
    ]
    return by_class(kept, len(dataset))


def _only(item: Item, low: float, high: float) -> Item:
    return replace(item, ignore=item.ignore | (item.area < low) | (item.area > high))


def _ignore_others(
    one: ImageMatches, found: Detections, class_id: int, low: float, high: float
) -> ImageMatches:
    mine = found[found.class_id == class_id]
    mine = mine[np.argsort(-mine.score, kind="stable")][:_LIMIT]
    sides = np.clip(mine.xyxy[:, 2:] - mine.xyxy[:, :2], 0, None).astype(np.float64)
    area = sides[:, 0] * sides[:, 1]
    return replace(one, ignored=one.ignored | (~one.matched & ((area < low) | (area > high))))
