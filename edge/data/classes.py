"""Joining a dataset's classes with a model's, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge.data.items import EVERY_CLASS, Dataset, Item
from edge.detections import Detections
from edge.errors import DataError

__all__ = ["align", "match_classes"]

# VOC's and Darknet's names for classes that COCO calls otherwise, both after `_canonical`.
_SYNONYMS = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
}
# Detections of one class that hit its neighbour are not held against it
# (KITTI's evaluate_object.cpp: Van beside Car, Person_sitting beside Pedestrian).
_KITTI_NEIGHBOURS = {"Van": "car", "Person_sitting": "pedestrian"}


def match_classes(
    dataset_classes: Sequence[str], model_classes: Sequence[str]
) -> NDArray[np.int32]:
    """For each class of the dataset the model's index of the same name, or -1.

    Case, spaces, `_` and `-` do not count, and VOC's names equal COCO's. Classes without names
    ("0", "1", ...) are joined by number.

    Raises:
        DataError: nothing can be joined.
    """
    if [str(i) for i in range(len(dataset_classes))] == list(dataset_classes):
        found = [i if i < len(model_classes) else -1 for i in range(len(dataset_classes))]
        if -1 in found:
            raise DataError(
                f"labels have {len(dataset_classes)} class numbers and no names, the model "
                f"{len(model_classes)} classes; put a *.names file beside the labels"
            )
        return np.array(found, np.int32)
    index = {_canonical(name): i for i, name in reversed(list(enumerate(model_classes)))}
    joined = [index.get(_canonical(name), -1) for name in dataset_classes]
    if dataset_classes and max(joined) < 0:
        raise DataError(
            f"dataset and model share no class: {', '.join(dataset_classes[:5])} ... against "
            f"{', '.join(model_classes[:5])} ..."
        )
    return np.array(joined, np.int32)


def _canonical(name: str) -> str:
    plain = "".join(name.lower().replace("_", " ").replace("-", " ").split())
    return _SYNONYMS.get(plain, plain)


def align(
    dataset: Dataset,
    detections: Sequence[Detections],
    join: NDArray[np.int32],
    names: tuple[str, ...],
) -> list[Item]:
    """The dataset's boxes with the model's class numbers; what the model does not know goes."""
    if len(detections) != len(dataset):
        raise ValueError(f"{len(detections)} detections for {len(dataset)} images")
    if any(item.fraction for item in dataset.items):
        raise ValueError("boxes are fractions of the image; call Item.in_pixels first")
    neighbour = np.full(len(join), -1, np.int32)
    if dataset.kind == "kitti":
        lower = [name.lower() for name in names]
        for name, beside in _KITTI_NEIGHBOURS.items():
            if beside in lower:
                neighbour[dataset.classes.index(name)] = lower.index(beside)
    used = np.unique(join[join >= 0])
    truth = [_align_item(item, join, neighbour, used) for item in dataset.items]
    if not any((~item.crowd & ~item.ignore).any() for item in truth):
        raise DataError(f"{dataset.source}: no box of a class that the model has")
    return truth


def _align_item(
    item: Item, join: NDArray[np.int32], neighbour: NDArray[np.int32], used: NDArray[np.int32]
) -> Item:
    own = np.flatnonzero(item.class_id != EVERY_CLASS)
    known = own[join[item.class_id[own]] >= 0]
    rest = own[join[item.class_id[own]] < 0]
    beside = rest[neighbour[item.class_id[rest]] >= 0]
    every = np.repeat(np.flatnonzero(item.class_id == EVERY_CLASS), len(used))
    pick = np.concatenate((known, beside, every))
    class_id = np.concatenate(
        (
            join[item.class_id[known]],
            neighbour[item.class_id[beside]],
            np.tile(used, len(every) // max(1, len(used))),
        )
    )
    return replace(
        item,
        xyxy=item.xyxy[pick],
        class_id=class_id.astype(np.int32),
        crowd=item.crowd[pick],
        ignore=item.ignore[pick] | np.isin(pick, beside),
        area=item.area[pick],
    )
