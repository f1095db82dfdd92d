"""Which detections hit at IoU 0.5, as pycocotools decides it, without its other 39 judgements.

pycocotools matches every image at ten thresholds in four size ranges; the trials of a gate need
one of each. `Matcher.check` holds the two against each other on real detections.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.data.classes import align, match_classes
from edge.data.items import Dataset, Item
from edge.data.metrics import ImageMatches, evaluate_detections
from edge.detections import Detections
from edge.errors import DataError
from edge.measure.results import ClassResults, by_class

__all__ = ["Matcher"]

Results = dict[str, ClassResults]
Floats = NDArray[np.float64]
_LIMIT = 100
_IOU = 0.5


class Matcher:
    """A dataset in pixels, ready for any number of detectors with the same classes."""

    def __init__(self, dataset: Dataset, classes: tuple[str, ...]) -> None:
        self._dataset, self._classes = dataset, classes
        join = match_classes(dataset.classes, classes)
        empty = [Detections.empty()] * len(dataset)
        self._truth = align(dataset, empty, join, classes)
        self._used = sorted({int(i) for i in join if i >= 0})

    def results(self, found: Sequence[Detections], images: Sequence[int] | None = None) -> Results:
        """As `by_class` of `evaluate_detections`' matches, of all images or of those given."""
        truth = self._truth if images is None else [self._truth[i] for i in images]
        matches = [
            _match(image, self._classes[k], item, one, k)
            for image, (item, one) in enumerate(zip(truth, found, strict=True))
            for k in self._used
        ]
        return by_class(matches, len(truth))

    def check(self, found: list[Detections]) -> None:
        """Refuse to go on where pycocotools judges these detections otherwise.

        Raises:
            DataError: it does.
        """
        metrics = evaluate_detections(self._dataset, found, self._classes)
        theirs, mine = by_class(metrics.matches, len(self._dataset)), self.results(found)
        same = set(theirs) == set(mine) and all(
            np.array_equal(getattr(theirs[name], key), getattr(mine[name], key))
            for name in theirs
            for key in ("image", "score", "hit", "boxes")
        )
        if not same:
            raise DataError(f"{self._dataset.source}: pycocotools judges these images otherwise")


def _match(image: int, name: str, item: Item, found: Detections, label: int) -> ImageMatches:
    mine = found[found.class_id == label]
    mine = mine[np.argsort(-mine.score, kind="stable")][:_LIMIT]
    wanted = np.flatnonzero(item.class_id == label)
    spared = (item.ignore | item.crowd)[wanted]
    # An object that must be found comes before one that need not.
    wanted, spared = wanted[np.argsort(spared, kind="stable")], np.sort(spared, kind="stable")
    crowd = item.crowd[wanted]
    iou = _iou(mine.xyxy, item.xyxy[wanted], crowd)
    hit, ignored, taken = (np.zeros(n, np.bool_) for n in (len(mine), len(mine), len(wanted)))
    for row in np.flatnonzero((iou >= _IOU).any(axis=1)):
        best, chosen = _IOU, -1
        for at in np.flatnonzero(iou[row] >= _IOU):
            if taken[at] and not crowd[at]:
                continue
            if chosen >= 0 and spared[at] and not spared[chosen]:
                break
            if iou[row, at] >= best:
                best, chosen = float(iou[row, at]), int(at)
        if chosen >= 0:
            taken[chosen] = hit[row] = True
            ignored[row] = spared[chosen]
    return ImageMatches(
        image,
        name,
        mine.score.astype(np.float64),
        hit[None],
        ignored[None],
        int(np.count_nonzero(~spared)),
    )


def _iou(
    found: NDArray[np.float32], wanted: NDArray[np.float32], crowd: NDArray[np.bool_]
) -> Floats:
    """(D, G); of a crowd, how much of the detection lies in it."""
    a, b = (_corner_and_sides(boxes) for boxes in (found, wanted))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    inter = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = (x[:, 2] * x[:, 3] for x in (a, b))
    union = np.where(crowd[None], area_a[:, None], area_a[:, None] + area_b[None] - inter)
    iou: Floats = np.divide(inter, union, out=np.zeros_like(inter), where=inter > 0)
    return iou


def _corner_and_sides(xyxy: NDArray[np.float32]) -> Floats:
    sides = np.clip(xyxy[:, 2:] - xyxy[:, :2], 0, None)
    return np.concatenate((xyxy[:, :2], sides), axis=1).astype(np.float64)
