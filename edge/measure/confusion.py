"""What a detector gets right and what it takes for what, at one score threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.data.classes import align, match_classes
from edge.data.items import Dataset, Item
from edge.detections import Detections, iou_matrix

__all__ = ["ClassPoint", "Confusion", "OperatingPoint", "operating_point", "wrong_names"]

_IOU = 0.5
# Where more than this share of well-placed boxes has another class, the names are wrong, not the
# network.
_WRONG, _LEAST = 0.5, 10


@dataclass(frozen=True)
class ClassPoint:
    """Precision, recall and their harmonic mean F1, 0..1; precision is None without detections."""

    precision: float | None
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """How often objects of one class were found as another one.

    Attributes:
        truth: class of the objects; None: there was no object.
        found: class of the detections; None: nothing was found there.
    """

    truth: str | None
    found: str | None
    count: int


@dataclass(frozen=True)
class OperatingPoint:
    """A detector at one threshold, at IoU 0.5.

    Attributes:
        threshold: detections with higher scores count.
        precision, recall, f1: of all classes together.
        by_class: of each class that has objects or detections.
        confusion: the confusion matrix, entry by entry, the most frequent first; pairs that do
            not occur are left out, and what is right has one class twice.
    """

    threshold: float
    precision: float | None
    recall: float
    f1: float
    by_class: dict[str, ClassPoint]
    confusion: tuple[Confusion, ...]


def operating_point(
    dataset: Dataset, detections: Sequence[Detections], classes: Sequence[str], threshold: float
) -> OperatingPoint:
    """Count what is right and what is taken for what.

    An object first takes the best detection of its own class. What is left on both sides is then
    paired by place alone: that is confusion of classes. Objects that need not be found, and
    detections on them, do not count.

    Args:
        dataset: in pixels; its items have the detections in the same order.

    Raises:
        DataError: no boxes, or no class in common.
    """
    names = tuple(classes)
    truth = align(dataset, detections, match_classes(dataset.classes, names), names)
    pairs: Counter[tuple[int, int]] = Counter()
    # What the labels do not have is neither right nor wrong.
    labelled = [i for i in match_classes(dataset.classes, names).tolist() if i >= 0]
    for item, found in zip(truth, detections, strict=True):
        counts = (found.score > threshold) & np.isin(found.class_id, labelled)
        pairs.update(_pairs(item, found[counts]))
    wanted: Counter[int] = Counter()
    shown: Counter[int] = Counter()
    for (known, seen), count in pairs.items():
        wanted[known] += count if known >= 0 else 0
        shown[seen] += count if seen >= 0 else 0
    right = {index: pairs[index, index] for index in {*wanted, *shown} if index >= 0}
    whole = _point(sum(right.values()), sum(shown.values()), sum(wanted.values()))
    by_class = {names[i]: _point(right[i], shown[i], wanted[i]) for i in sorted(right)}

    def name(index: int) -> str | None:
        return names[index] if index >= 0 else None

    confusion = tuple(
        Confusion(name(known), name(seen), count) for (known, seen), count in pairs.most_common()
    )
    return OperatingPoint(threshold, whole.precision, whole.recall, whole.f1, by_class, confusion)


def _point(right: int, shown: int, wanted: int) -> ClassPoint:
    return ClassPoint(
        precision=round(right / shown, 5) if shown else None,
        recall=round(right / wanted, 5) if wanted else 0.0,
        f1=round(2 * right / max(shown + wanted, 1), 5),
    )


def _pairs(item: Item, found: Detections) -> list[tuple[int, int]]:
    """(class of the object, class of the detection) of one image; -1 for none."""
    must = ~(item.ignore | item.crowd)
    found = found[np.argsort(-found.score, kind="stable")]
    overlap = iou_matrix(found.xyxy, item.xyxy)
    same = found.class_id[:, None] == item.class_id[None, :]
    free = np.ones(len(found), np.bool_)
    open_ = must.copy()
    paired: list[tuple[int, int]] = []
    for close in (np.where(same, overlap, 0), overlap):
        for row in np.flatnonzero(free):
            candidates = np.where(open_, close[row], 0)
            best = int(candidates.argmax()) if len(candidates) else 0
            if len(candidates) and candidates[best] >= _IOU:
                paired.append((int(item.class_id[best]), int(found.class_id[row])))
                free[row] = open_[best] = False
    excused = _on_ignored(item, found, overlap, must)
    paired += [(-1, int(c)) for c in found.class_id[free & ~excused]]
    return paired + [(int(c), -1) for c in item.class_id[open_]]


def _on_ignored(
    item: Item, found: Detections, overlap: NDArray[np.float32], must: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which detections lie on an object that need not be found, or inside a region."""
    if must.all():
        return np.zeros(len(found), np.bool_)
    low = np.maximum(found.xyxy[:, None, :2], item.xyxy[None, :, :2])
    high = np.minimum(found.xyxy[:, None, 2:], item.xyxy[None, :, 2:])
    inside = np.prod(np.clip(high - low, 0, None), axis=2)
    area = np.prod(np.clip(found.xyxy[:, 2:] - found.xyxy[:, :2], 1e-6, None), axis=1)
    in_region = (inside / area[:, None] >= _IOU) & item.crowd
    return np.asarray(((overlap >= _IOU) & item.ignore | in_region).any(axis=1))


def wrong_names(point: OperatingPoint) -> str | None:
    """A line where most boxes that are right in place have another class; else None."""
    placed = [one for one in point.confusion if one.truth is not None and one.found is not None]
    whole = sum(one.count for one in placed)
    wrong = [one for one in placed if one.truth != one.found]
    count = sum(one.count for one in wrong)
    if whole < _LEAST or count <= _WRONG * whole:
        return None
    most = wrong[0]
    return (
        f"{count} of {whole} boxes are right in place and wrong in class, most often {most.truth} "
        f"found as {most.found}: check the order of the class names (--names) of the model and of "
        "the labels"
    )
