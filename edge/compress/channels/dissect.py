"""Class dissection: which feature maps speak up for the classes that are kept.

A map's mean m and variance v over images of these classes alone give its score m²/v + log v: a
map that is silent or the same everywhere tells nothing about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge.compress.channels.importance import Importance
from edge.compress.channels.profile import Moments
from edge.data.classes import match_classes
from edge.data.datasets import Dataset, Item
from edge.data.items import EVERY_CLASS
from edge.errors import DataError

__all__ = ["of_classes", "only_classes", "scores"]

# A variance below this is rounding: such a map is constant and tells nothing.
_CONSTANT = 1e-12


def scores(moments: dict[str, Moments]) -> Importance:
    """m²/v + log v of every feature map, by the path of its convolution; constants get -inf."""
    return {path: _score(one.mean, one.variance) for path, one in moments.items()}


def _score(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    safe = np.maximum(variance, _CONSTANT)
    return np.where(variance > _CONSTANT, mean * mean / safe + np.log(safe), -np.inf)


def of_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Images with at least one of `classes`, and of their boxes only those.

    Crowds and regions of every class stay: nothing inside them is right or wrong.

    Raises:
        DataError: there is no such image.
    """
    join = match_classes(dataset.classes, classes)
    items = [_narrowed(item, join) for item in dataset.items]
    kept = tuple(item for item in items if (item.class_id != EVERY_CLASS).any())
    if not kept:
        raise DataError(f"{dataset.source}: no image with {', '.join(classes)}")
    # KITTI's rule for neighbouring classes needs names that are gone.
    kind = "yolo" if dataset.kind == "kitti" else dataset.kind
    return replace(dataset, kind=kind, classes=tuple(classes), items=kept)


def only_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Images that hold `classes` and no others.

    Raises:
        DataError: there is no such image.
    """
    join = match_classes(dataset.classes, classes)
    pure = tuple(
        item
        for item in dataset.items
        if len(item) and (join[item.class_id[item.class_id != EVERY_CLASS]] >= 0).all()
    )
    if not pure:
        raise DataError(
            f"{dataset.source}: no image holds only {', '.join(classes)}; give images that do"
        )
    return of_classes(replace(dataset, items=pure), classes)


def _narrowed(item: Item, join: NDArray[np.int32]) -> Item:
    every = item.class_id == EVERY_CLASS
    pick = np.flatnonzero(every | (join[np.where(every, 0, item.class_id)] >= 0))
    class_id = np.where(every, EVERY_CLASS, join[np.where(every, 0, item.class_id)])[pick]
    return replace(
        item,
        xyxy=item.xyxy[pick],
        class_id=class_id.astype(np.int32),
        crowd=item.crowd[pick],
        ignore=item.ignore[pick],
        area=item.area[pick],
    )
