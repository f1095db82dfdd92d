"""Anchor sizes from the boxes of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import Dataset, load
from edge.data.items import Item
from edge.letterbox import Letterbox
from edge.spec import InputContract
from edge.train.pictures import checked

__all__ = ["DISTANCES", "box_sizes", "kmeans_anchors", "mean_iou", "shape_iou"]

DISTANCES = ("iou", "euclidean")
Sizes = NDArray[np.float64]


def shape_iou(a: NDArray[Any], b: NDArray[Any]) -> Sizes:
    """IoU of sizes (N, 2) with sizes (M, 2) laid on one centre: (N, M)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    inter = np.minimum(a[:, None], b[None]).prod(axis=2)
    return np.asarray(inter / (a.prod(axis=1)[:, None] + b.prod(axis=1)[None] - inter))


def mean_iou(sizes: NDArray[Any], anchors: NDArray[Any]) -> float:
    """The mean over `sizes` (N, 2) of the IoU with the anchor that fits each best."""
    return float(shape_iou(sizes, anchors).max(axis=1).mean())


def kmeans_anchors(
    sizes: NDArray[Any],
    count: int,
    seed: int = 0,
    rounds: int = 100,
    distance: Literal["iou", "euclidean"] = "iou",
    start: NDArray[Any] | None = None,
) -> Sizes:
    """`count` (width, height) pairs, small to large by area, that fit `sizes` (N, 2) best.

    k-means, centres moved to the mean. A centre that no size is nearest to moves to the size that
    fits its own centre worst, so that no anchor is wasted.

    Args:
        sizes: pixels.
        count: of anchors.
        seed: draws the sizes to start from.
        rounds: at most so many.
        distance: 1 - IoU (YOLOv2, arXiv:1612.08242), or Euclidean.
        start: centres (count, 2) to start from, in place of drawn ones.

    Raises:
        ValueError: fewer different sizes than anchors, or sizes without area.
    """
    sizes = np.asarray(sizes, np.float64)
    different = np.unique(sizes, axis=0)
    if len(different) < count or count < 1 or (sizes <= 0).any():
        raise ValueError(f"{count} anchors take at least as many different sizes, all positive")
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}; known: {', '.join(DISTANCES)}")
    rng = np.random.default_rng(seed)
    drawn = different[rng.choice(len(different), count, replace=False)]
    centres = drawn if start is None else np.array(start, np.float64)
    nearest = np.full(len(sizes), -1)
    for _ in range(rounds):
        apart = _distances(sizes, centres, distance)
        now = _without_empty(apart, count)
        if (now == nearest).all():
            break
        nearest = now
        for index in range(count):
            centres[index] = sizes[nearest == index].mean(axis=0)
    return np.asarray(centres[centres.prod(axis=1).argsort()])


def _distances(sizes: Sizes, centres: Sizes, distance: str) -> Sizes:
    if distance == "iou":
        return 1 - shape_iou(sizes, centres)
    return np.asarray(np.square(sizes[:, None] - centres[None]).sum(axis=2))


def _without_empty(apart: Sizes, count: int) -> NDArray[np.intp]:
    """The nearest centre of each size, every centre given one."""
    nearest = apart.argmin(axis=1)
    worst_first = list(apart.min(axis=1).argsort()[::-1])
    held = np.bincount(nearest, minlength=count)
    for empty in np.flatnonzero(held == 0).tolist():
        moved = next(size for size in worst_first if held[nearest[size]] > 1)
        held[nearest[moved]] -= 1
        nearest[moved], held[empty] = empty, 1
    return np.asarray(nearest)


def box_sizes(dataset: Dataset, contract: InputContract, classes: Sequence[int] = ()) -> Sizes:
    """Width and height (N, 2) of every object in pixels of the network's input.

    Images are read only where their annotation does not state the size. Regions and boxes under a
    pixel are left out.

    Args:
        dataset: labelled.
        contract: how images become the input.
        classes: class numbers of the data set that count; none: all.

    Raises:
        DataError: an image cannot be read.
    """
    found = [np.empty((0, 2))]
    for item in dataset.items:
        placed = item.in_pixels(item.hw) if item.hw is not None else load(item)[1]
        found.append(_sizes_of(checked(placed)[0], contract, classes))
    return np.concatenate(found)


def _sizes_of(item: Item, contract: InputContract, classes: Sequence[int]) -> Sizes:
    if item.hw is None:
        raise ValueError(f"{item.image}: its size is not known")
    fit = Letterbox.fit(item.hw, contract)
    sizes = (item.xyxy[:, 2:] - item.xyxy[:, :2]) * fit.scale_xy
    counts = ~item.crowd & (item.class_id >= 0) & (sizes >= 1).all(axis=1)
    if classes:
        counts &= np.isin(item.class_id, classes)
    return np.asarray(sizes[counts], np.float64)
