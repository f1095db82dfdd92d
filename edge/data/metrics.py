"""Average precision as COCO defines it, by pycocotools: https://cocodataset.org/#detection-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.data.classes import align, match_classes
from edge.data.items import EVERY_CLASS, Dataset, Item
from edge.data.voc_ap import voc_ap, voc_curves, voc_map
from edge.detections import Detections
from edge.optional import require

__all__ = [
    "ClassAccuracy",
    "ImageMatches",
    "Metrics",
    "SizeAccuracy",
    "evaluate_detections",
    "voc_ap",
    "voc_curves",
    "voc_map",
]

SIZES = ("small", "medium", "large")
# An object larger than every size range is ignored by pycocotools, without being a region.
_IGNORED_AREA = 1e11


@dataclass(frozen=True, eq=False)
class ImageMatches:
    """How the D detections of one class in one image fared; the raw material of a bootstrap.

    Attributes:
        image: index into the dataset's items.
        name: of the class.
        score: (D,) best first.
        matched, ignored: (10, D) bool, at IoU 0.50, 0.55, ..., 0.95.
        boxes: objects that had to be found.
    """

    image: int
    name: str
    score: NDArray[np.float64]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    boxes: int


@dataclass(frozen=True)
class ClassAccuracy:
    """Average precision of one class, 0..1, and the number of its objects that had to be found."""

    ap50: float
    ap50_95: float
    boxes: int


@dataclass(frozen=True)
class SizeAccuracy:
    """Mean average precision for objects of one range of sizes, 0..1."""

    map50: float
    map50_95: float


@dataclass(frozen=True, eq=False)
class Metrics:
    """Accuracy over a dataset; all figures 0..1.

    Attributes:
        map50, map50_95: mean over the classes that have boxes.
        by_class: of each class that has boxes.
        by_size: for objects under 32², 96² pixels and above; a size that does not occur is left
            out.
        images: how many.
        left_out: dataset classes that the model does not have, with their boxes.
        matches: per image and class.
    """

    map50: float
    map50_95: float
    by_class: dict[str, ClassAccuracy]
    by_size: dict[str, SizeAccuracy]
    images: int
    left_out: dict[str, int]
    matches: tuple[ImageMatches, ...]


def evaluate_detections(
    dataset: Dataset,
    detections: Sequence[Detections],
    classes: Sequence[str] | None = None,
    limit: int = 100,
) -> Metrics:
    """COCO average precision of `detections`, one for each item of `dataset`, in the same order.

    Args:
        dataset: items in pixels (`Item.in_pixels`), at least one of them with a box.
        detections: class_id counts in `classes`; classes that the dataset does not label are
            left aside.
        classes: the model's names; by default the dataset's.
        limit: detections per image and class, the best.

    Raises:
        DataError: no boxes, or no class in common.
        MissingDependency: pycocotools is not installed.
    """
    names = tuple(classes) if classes is not None else dataset.classes
    join = match_classes(dataset.classes, names)
    truth = align(dataset, detections, join, names)
    used = sorted({int(i) for i in join if i >= 0})
    ran = _run(_truth(truth, used), _found(detections, used), limit)
    precision = ran.eval["precision"][..., 0]
    return Metrics(
        map50=_mean(precision[0, :, :, 0]),
        map50_95=_mean(precision[:, :, :, 0]),
        by_class=_by_class(precision[..., 0], [names[i] for i in used], truth, used),
        by_size=_by_size(precision),
        images=len(dataset),
        left_out=_left_out(dataset, join),
        matches=_matches(ran, names),
    )


def _truth(truth: list[Item], used: list[int]) -> dict[str, Any]:
    annotations = []
    for image, item in enumerate(truth):
        boxes = np.concatenate((item.xyxy[:, :2], item.xyxy[:, 2:] - item.xyxy[:, :2]), axis=1)
        area = np.where(item.ignore, _IGNORED_AREA, item.area)
        columns = (boxes, area, item.crowd, item.class_id)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        annotations += [
            {"image_id": image, "bbox": b, "area": a, "iscrowd": int(c), "category_id": k}
            for b, a, c, k in rows
        ]
    return _document(annotations, len(truth), used)


def _found(detections: Sequence[Detections], used: list[int]) -> dict[str, Any]:
    annotations = []
    for image, found in enumerate(detections):
        found = found[np.isin(found.class_id, used)]
        sides = np.clip(found.xyxy[:, 2:] - found.xyxy[:, :2], 0, None)
        boxes = np.concatenate((found.xyxy[:, :2], sides), axis=1).tolist()
        rows = zip(boxes, found.score.tolist(), found.class_id.tolist(), strict=True)
        annotations += [
            {"image_id": image, "bbox": b, "area": b[2] * b[3], "score": s, "category_id": k}
            for b, s, k in rows
        ]
    return _document(annotations, len(detections), used)


def _document(annotations: list[dict[str, Any]], images: int, used: list[int]) -> dict[str, Any]:
    # pycocotools takes id 0 for "no match".
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    return {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": i} for i in used],
        "annotations": annotations,
    }


def _run(truth: dict[str, Any], found: dict[str, Any], limit: int) -> Any:
    coco, cocoeval = require("pycocotools.coco"), require("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for document in (truth, found):
            side = coco.COCO()
            side.dataset = document
            side.createIndex()
            sides.append(side)
        ran = cocoeval.COCOeval(*sides, iouType="bbox")
        ran.params.maxDets = [limit]
        ran.evaluate()
        ran.accumulate()
    return ran


def _mean(precision: NDArray[np.float64]) -> float:
    """The mean without the -1 of classes that have no boxes, which some class has."""
    # pycocotools adds an epsilon to the precision: without rounding nothing ever reaches 1.
    return round(float(precision[precision > -1].mean()), 6)


def _by_class(
    precision: NDArray[np.float64], names: list[str], truth: list[Item], used: list[int]
) -> dict[str, ClassAccuracy]:
    wanted = np.concatenate([item.class_id[~item.crowd & ~item.ignore] for item in truth])
    return {
        name: ClassAccuracy(
            ap50=_mean(precision[0, :, k]),
            ap50_95=_mean(precision[:, :, k]),
            boxes=int(np.count_nonzero(wanted == used[k])),
        )
        for k, name in enumerate(names)
        if (wanted == used[k]).any()
    }


def _by_size(precision: NDArray[np.float64]) -> dict[str, SizeAccuracy]:
    return {
        size: SizeAccuracy(_mean(precision[0, :, :, i]), _mean(precision[..., i]))
        for i, size in enumerate(SIZES, 1)
        if (precision[..., i] > -1).any()
    }


def _left_out(dataset: Dataset, join: NDArray[np.int32]) -> dict[str, int]:
    every = np.concatenate([item.class_id for item in dataset.items])
    counts = np.bincount(every[every != EVERY_CLASS], minlength=len(join))
    return {
        name: int(counts[i]) for i, name in enumerate(dataset.classes) if join[i] < 0 and counts[i]
    }


def _matches(ran: Any, names: tuple[str, ...]) -> tuple[ImageMatches, ...]:
    whole = ran.params.areaRng[0]
    return tuple(
        ImageMatches(
            image=int(one["image_id"]),
            name=names[one["category_id"]],
            score=np.asarray(one["dtScores"], np.float64),
            matched=one["dtMatches"] > 0,
            ignored=np.asarray(one["dtIgnore"], np.bool_),
            boxes=int(np.count_nonzero(one["gtIgnore"] == 0)),
        )
        for one in ran.evalImgs
        if one is not None and one["aRng"] == whole
    )
