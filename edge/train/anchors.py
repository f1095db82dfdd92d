"""Anchor sizes from the boxes of a data set: `edge anchors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import Dataset, load, open_dataset
from edge.data.items import Item
from edge.errors import DataError
from edge.letterbox import Letterbox
from edge.reporting import track
from edge.spec import InputContract
from edge.train.options import AnchorOptions
from edge.train.pictures import checked

__all__ = [
    "DISTANCES",
    "Anchor",
    "AnchorResult",
    "box_sizes",
    "find_anchors",
    "kmeans_anchors",
    "mean_iou",
    "shape_iou",
]

DISTANCES = ("iou", "euclidean")
Sizes = NDArray[np.float64]
_CURVE_END = 15


@dataclass(frozen=True)
class Anchor:
    """One anchor size.

    Attributes:
        wh: width and height, pixels of the network's input.
        boxes: number of boxes that it fits best.
        mean_iou: mean IoU with them; None where there are none.
    """

    wh: tuple[float, float]
    boxes: int
    mean_iou: float | None


@dataclass(frozen=True)
class AnchorResult:
    """The anchors that fit a data set.

    Attributes:
        data: the data set.
        images, boxes: number of its pictures and of the boxes that count.
        hw, resize, distance, seed: as in `AnchorOptions`.
        mean_iou: mean over the boxes of the IoU with the anchor that fits each best.
        anchors: small to large by area.
        dropped: number of labels that were left out, by reason.
        curve: (number of anchors, mean IoU); None where it was not asked for.
    """

    data: str
    images: int
    boxes: int
    hw: tuple[int, int]
    resize: str
    distance: str
    seed: int
    mean_iou: float
    anchors: tuple[Anchor, ...]
    dropped: Mapping[str, int]
    curve: tuple[tuple[int, float], ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result by its keys in JSON; without a curve the key is missing."""
        fields = vars(self)
        return {key: fields[key] for key in fields if key != "curve" or self.curve is not None}


def find_anchors(
    data: str | Path, options: AnchorOptions | None = None, *, with_curve: bool = False
) -> AnchorResult:
    """Cluster the boxes of `data`, in pixels of the input, and measure how well they fit.

    Args:
        data: labelled pictures, as `open_dataset` takes them.
        with_curve: also cluster into 1, 2, ... anchors.

    Raises:
        DataError: there are no labels, no such class, or fewer different boxes than anchors.
    """
    options = options or AnchorOptions()
    dataset = open_dataset(data, limit=options.images)
    if dataset.kind == "images":
        raise DataError(f"{data}: images without labels; there are no boxes to cluster")
    numbers = _class_numbers(dataset, options.classes)
    sizes = box_sizes(dataset, InputContract(options.hw, options.resize), numbers)
    chosen = _clusters(sizes, options.k, options, dataset)
    return AnchorResult(
        data=dataset.source,
        images=len(dataset),
        boxes=len(sizes),
        hw=options.hw,
        resize=options.resize,
        distance=options.distance,
        seed=options.seed,
        mean_iou=round(mean_iou(sizes, chosen), 6),
        anchors=_described(sizes, chosen),
        dropped=dataset.dropped,
        curve=_curve(sizes, options, dataset) if with_curve else None,
    )


def _class_numbers(dataset: Dataset, classes: Sequence[str]) -> list[int]:
    for name in classes:
        if name not in dataset.classes:
            known = ", ".join(dataset.classes)
            raise DataError(f"{dataset.source}: no class {name!r}; it has {known}")
    return [dataset.classes.index(name) for name in classes]


def _clusters(sizes: Sizes, count: int, options: AnchorOptions, dataset: Dataset) -> Sizes:
    try:
        return kmeans_anchors(sizes, count, options.seed, distance=options.distance)
    except ValueError as error:
        raise DataError(f"{dataset.source}: {len(sizes)} boxes: {error}") from error


def _described(sizes: Sizes, chosen: Sizes) -> tuple[Anchor, ...]:
    fits = shape_iou(sizes, chosen)
    best = fits.argmax(axis=1)
    return tuple(
        Anchor(
            (round(float(width), 2), round(float(height), 2)),
            int((best == k).sum()),
            round(float(fits[best == k, k].mean()), 6) if (best == k).any() else None,
        )
        for k, (width, height) in enumerate(chosen)
    )


def _curve(sizes: Sizes, options: AnchorOptions, dataset: Dataset) -> tuple[tuple[int, float], ...]:
    end = min(max(options.largest or _CURVE_END, options.k), len(np.unique(sizes, axis=0)))
    return tuple(
        (k, round(mean_iou(sizes, _clusters(sizes, k, options, dataset)), 6))
        for k in track(range(1, end + 1), "clustering", end)
    )


def shape_iou(a: NDArray[Any], b: NDArray[Any]) -> Sizes:
    """Return the IoU of sizes (N, 2) with sizes (M, 2) around one centre: (N, M)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    inter = np.minimum(a[:, None], b[None]).prod(axis=2)
    return np.asarray(inter / (a.prod(axis=1)[:, None] + b.prod(axis=1)[None] - inter))


def mean_iou(sizes: NDArray[Any], anchors: NDArray[Any]) -> float:
    """Return the mean over `sizes` (N, 2) of the IoU with the anchor that fits each best."""
    return float(shape_iou(sizes, anchors).max(axis=1).mean())


def kmeans_anchors(
    sizes: NDArray[Any],
    count: int,
    seed: int = 0,
    rounds: int = 100,
    distance: Literal["iou", "euclidean"] = "iou",
    start: NDArray[Any] | None = None,
) -> Sizes:
    """Return the `count` (width, height) pairs that fit `sizes` (N, 2) best, by rising area.

    k-means, whose centres move to the mean. A centre that no size is nearest to moves to the size
    that fits its own centre worst, so that no anchor is wasted.

    Args:
        sizes: pixels.
        count: number of anchors.
        seed: seed of the sizes to start from.
        rounds: largest number of rounds.
        distance: 1 - IoU (YOLOv2, arXiv:1612.08242), or Euclidean.
        start: centres (count, 2) to start from, in place of drawn ones.

    Raises:
        ValueError: there are fewer different sizes than anchors, or sizes without area.
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
    """Return the nearest centre of each size, after every centre was given at least one."""
    nearest = apart.argmin(axis=1)
    worst_first = list(apart.min(axis=1).argsort()[::-1])
    held = np.bincount(nearest, minlength=count)
    for empty in np.flatnonzero(held == 0).tolist():
        moved = next(size for size in worst_first if held[nearest[size]] > 1)
        held[nearest[moved]] -= 1
        nearest[moved], held[empty] = empty, 1
    return np.asarray(nearest)


def box_sizes(dataset: Dataset, contract: InputContract, classes: Sequence[int] = ()) -> Sizes:
    """Return width and height (N, 2) of every object in pixels of the network's input.

    Images are read only where their annotation does not state the size. Regions and boxes under a
    pixel are left out.

    Args:
        dataset: labelled.
        contract: how images become the input.
        classes: class numbers of the data set that count; without them all.

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
