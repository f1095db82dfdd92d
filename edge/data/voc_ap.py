"""Average precision as Pascal VOC defines it.

Everingham et al., IJCV 88 (2010), section 4.2: 11 points; IJCV 111 (2015): the area.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.data.classes import align, match_classes
from edge.data.items import Dataset
from edge.detections import Detections, iou_matrix

__all__ = ["Curve", "Method", "voc_ap", "voc_curves", "voc_map"]

Method = Literal["area", "11-point"]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def voc_map(
    dataset: Dataset,
    detections: Sequence[Detections],
    classes: Sequence[str] | None = None,
    iou: float = 0.5,
    method: Method = "area",
) -> dict[str, float]:
    """Pascal VOC average precision by class name; the mean of its values is VOC's mAP.

    Arguments and errors as `evaluate_detections`.
    """
    curves = voc_curves(dataset, detections, classes, iou)
    return {name: voc_ap(*curve, method=method) for name, curve in curves.items()}


def voc_curves(
    dataset: Dataset,
    detections: Sequence[Detections],
    classes: Sequence[str] | None = None,
    iou: float = 0.5,
) -> dict[str, Curve]:
    """Recall and precision (D,) over the class's D detections, best first, by class name.

    A detection is right if the object that it overlaps most is of its class, overlaps by `iou`
    or more and is not yet taken; one on an object that need not be found does not count.
    """
    names = tuple(classes) if classes is not None else dataset.classes
    truth = align(dataset, detections, match_classes(dataset.classes, names), names)
    wanted: Counter[int] = Counter()
    score: defaultdict[int, list[NDArray[np.float32]]] = defaultdict(list)
    hits: defaultdict[int, list[NDArray[np.float64]]] = defaultdict(list)
    for item, found in zip(truth, detections, strict=True):
        must = ~(item.ignore | item.crowd)
        wanted.update(item.class_id[must].tolist())
        for class_id in np.unique(found.class_id).tolist():
            mine = found[found.class_id == class_id]
            mine = mine[np.argsort(-mine.score, kind="stable")]
            theirs = item.class_id == class_id
            score[class_id].append(mine.score)
            overlap = iou_matrix(mine.xyxy, item.xyxy[theirs])
            hits[class_id].append(_hits(overlap, must[theirs], iou))
    return {names[i]: _curve(score[i], hits[i], wanted[i]) for i in sorted(wanted)}


def voc_ap(
    recall: NDArray[np.floating],
    precision: NDArray[np.floating],
    method: Method = "area",
) -> float:
    """Average precision from (D,) recall, which never falls, and (D,) precision.

    `11-point` is VOC 2007's mean of the best precision at recalls 0, 0.1, ..., 1; `area`
    the exact area under the curve's upper envelope (since 2010).
    """
    recall, precision = np.asarray(recall, np.float64), np.asarray(precision, np.float64)
    if method == "11-point":
        # A hair of slack: 0.1 * 3 and 3 / 10 are not one number.
        best = [precision[recall >= t - 1e-9].max(initial=0.0) for t in np.linspace(0, 1, 11)]
        return float(np.mean(best))
    if method != "area":
        raise ValueError(f"method is {method!r}; known: area, 11-point")
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _curve(score: list[NDArray[np.float32]], hits: list[NDArray[np.float64]], wanted: int) -> Curve:
    if not score:
        return np.zeros(0), np.zeros(0)
    hit = np.concatenate(hits)[np.argsort(-np.concatenate(score), kind="stable")]
    hit = hit[~np.isnan(hit)]
    right = np.cumsum(hit)
    return right / wanted, right / np.arange(1, len(hit) + 1)


def _hits(overlap: NDArray[np.float32], must: NDArray[np.bool_], iou: float) -> NDArray[np.float64]:
    """(D,) 1 for right, 0 for wrong, NaN where the object need not be found."""
    hits = np.zeros(len(overlap))
    if not len(must):
        return hits
    taken = np.zeros(len(must), np.bool_)
    for i, best in enumerate(overlap.argmax(axis=1)):
        if overlap[i, best] < iou:
            continue
        if not must[best]:
            hits[i] = np.nan
        elif not taken[best]:
            hits[i], taken[best] = 1, True
    return hits
