"""Questions to a labelled set: what it holds, what it lacks, and which labels look wrong.

Figures that decide whether a set can train, tune or judge a detector: classes, sizes, positions,
light, near-duplicates, pictures that two splits share, and label faults. With a detector, boxes
that it is sure of and nobody labelled are listed as likely missing labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import load, match_classes
from edge.data.distinct import digest
from edge.data.hashes import NEAR, distances, hash_image
from edge.data.items import EVERY_CLASS, Dataset, Item
from edge.detections import Detections, iou_matrix
from edge.errors import DataError
from edge.reporting import track

__all__ = ["DatasetReport", "Fault", "Twins", "find_faults", "report_dataset"]

Frame = NDArray[np.uint8]
Histogram = tuple[tuple[float, ...], tuple[int, ...]]
# Areas of COCO's small and medium objects, pixels squared.
SMALL, MEDIUM = 32**2, 96**2
_GRID = 8
# Sides below this many pixels show nothing that a network could learn.
_TINY_PX = 3.0
# Two labels of one class that overlap this much are one object labelled twice.
_TWICE_IOU = 0.9
_OVERLAP_IOU = 0.5
# A sure box that overlaps no label this much is likely a missing label, one that overlaps a label
# of another class more than the second is likely a wrong class.
_FREE_IOU, _SAME_IOU = 0.3, 0.7
_DARK, _BRIGHT = 50.0, 205.0


@dataclass(frozen=True)
class Fault:
    """A label that looks wrong.

    Attributes:
        kind: `tiny`, `duplicate`, `likely missing`, `likely wrong class`, or the rule by which a
            reader changed or dropped a label (`box without area`, `box outside the image`, ...).
        image: the picture's file, or file and line of the label.
        box: (x1, y1, x2, y2) in pixels of the picture; None where the reader dropped it.
        text: what it is about.
        score: how sure the detector is, 0..1; None where none was asked.
    """

    kind: str
    image: str
    box: tuple[float, float, float, float] | None
    text: str
    score: float | None = None


@dataclass(frozen=True)
class Twins:
    """Two pictures that show the same.

    Attributes:
        first, second: their files; `second` lies in the other split where two were compared.
        exact: whether every pixel is equal; else they are re-encoded, resized or mirrored copies,
            or frames beside each other.
    """

    first: str
    second: str
    exact: bool


@dataclass(frozen=True)
class DatasetReport:
    """What a labelled set holds.

    Attributes:
        source, kind: of the set.
        images, unlabelled, boxes: numbers of pictures, of pictures without a box, and of boxes.
        classes: boxes and pictures by class name.
        sizes: boxes by COCO's areas: `small`, `medium`, `large`.
        sides_px: 5, 25, 50, 75 and 95 % quantiles of the root of a box's area, pixels.
        aspect: the same quantiles of width over height.
        positions: (8, 8) counts of box centres, top row first.
        overlapping: share of boxes that overlap another by more than half, 0..1.
        light: the same quantiles of a picture's mean grey level, 0..255; `dark` and `bright` are
            shares of pictures below 50 and above 205.
        resolutions: pictures by size, `WxH`, the most frequent first.
        sides_histogram, aspect_histogram, light_histogram: edges of the bins, and counts between.
        twins: near-duplicates within the set; `leaks` between it and the other split.
        faults: labels that look wrong, the surest first.
        skipped: pictures that cannot be read, with the reason.
    """

    source: str
    kind: str
    images: int
    unlabelled: int
    boxes: int
    classes: dict[str, dict[str, int]]
    sizes: dict[str, int]
    sides_px: tuple[float, ...]
    aspect: tuple[float, ...]
    positions: tuple[tuple[int, ...], ...]
    overlapping: float
    light: dict[str, Any]
    resolutions: dict[str, int]
    sides_histogram: Histogram
    aspect_histogram: Histogram
    light_histogram: Histogram
    twins: tuple[Twins, ...]
    leaks: tuple[Twins, ...] = ()
    faults: tuple[Fault, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def counted(self) -> dict[str, int]:
        """Faults by kind, the most frequent first."""
        return dict(Counter(fault.kind for fault in self.faults).most_common())


@dataclass
class _Prints:
    """What tells pictures apart: checksum and perceptual hashes, by file."""

    names: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    mirrored: list[str] = field(default_factory=list)

    def add(self, name: str, frame: Frame) -> None:
        self.names.append(name)
        self.digests.append(digest(frame))
        self.hashes.append(hash_image(frame))
        self.mirrored.append(hash_image(np.ascontiguousarray(frame[:, ::-1])))


def report_dataset(
    dataset: Dataset,
    *,
    detect: Callable[[Frame], Detections] | None = None,
    known: Sequence[str] | None = None,
    sure: float = 0.45,
    other: Dataset | None = None,
) -> DatasetReport:
    """Read every picture of `dataset` once and answer the questions about it.

    Args:
        detect: a detector, for labels that are likely missing or wrong.
        known: its classes; those that the set does not have are passed over.
        sure: score from which a box of the detector counts, 0..1.
        other: another split, whose pictures must not be among these.

    Raises:
        DataError: no picture can be read.
    """
    prints, sums = _Prints(), _Sums(dataset.classes)
    faults: list[Fault] = []
    skipped: list[str] = []
    numbers = _numbers(known or dataset.classes, dataset.classes)
    for item in track(dataset.items, "reading", len(dataset)):
        try:
            frame, labels = load(item)
        except DataError as error:
            skipped.append(str(error))
            continue
        prints.add(str(item.image), frame)
        sums.add(labels, frame)
        found = None if detect is None else _renumbered(detect(frame), numbers)
        faults += find_faults(labels, dataset.classes, found, sure)
    if not prints.names:
        raise DataError(f"{dataset.source}: none of its {len(dataset)} pictures can be read")
    faults += [Fault(reason, where, None, reason) for reason, where in dataset.problems]
    return DatasetReport(
        source=dataset.source,
        kind=dataset.kind,
        images=len(prints.names),
        **sums.facts(),
        twins=tuple(_twins(prints)),
        leaks=() if other is None else tuple(_leaks(prints, other, skipped)),
        faults=tuple(sorted(faults, key=lambda fault: -(fault.score or 0))),
        skipped=tuple(skipped),
    )


def _numbers(known: Sequence[str], classes: Sequence[str]) -> NDArray[np.int32]:
    """The set's number of each class of the detector, -1 where the set does not have it."""
    numbers = np.full(len(known), -1, np.int32)
    matched = match_classes(classes, known)
    numbers[matched[matched >= 0]] = np.flatnonzero(matched >= 0)
    return numbers


def _renumbered(found: Detections, numbers: NDArray[np.int32]) -> Detections:
    label = numbers[found.class_id]
    return Detections(found.xyxy, found.score, label)[label >= 0]


class _Sums:
    """Boxes and pictures, added up one picture at a time."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._boxes: Counter[int] = Counter()
        self._images: Counter[int] = Counter()
        self._areas: list[float] = []
        self._aspect: list[float] = []
        self._light: list[float] = []
        self._resolutions: Counter[str] = Counter()
        self._positions = np.zeros((_GRID, _GRID), int)
        self._overlapping = self._unlabelled = 0

    def add(self, item: Item, frame: Frame) -> None:
        height, width = frame.shape[:2]
        self._resolutions[f"{width}x{height}"] += 1
        self._light.append(float(frame.mean()))
        self._unlabelled += not len(item)
        self._boxes.update(item.class_id.tolist())
        self._images.update(set(item.class_id.tolist()))
        sides = item.xyxy[:, 2:] - item.xyxy[:, :2]
        self._areas += sides.prod(axis=1).tolist()
        self._aspect += (sides[:, 0] / np.maximum(sides[:, 1], 1e-6)).tolist()
        centres = (item.xyxy[:, :2] + item.xyxy[:, 2:]) / 2 / (width, height) * _GRID
        for column, row in np.clip(centres.astype(int), 0, _GRID - 1):
            self._positions[row, column] += 1
        if len(item) > 1:
            overlaps = iou_matrix(item.xyxy, item.xyxy)
            np.fill_diagonal(overlaps, 0)
            self._overlapping += int((overlaps.max(axis=1) > _OVERLAP_IOU).sum())

    def facts(self) -> dict[str, Any]:
        areas, light = np.array(self._areas), np.array(self._light)
        small, medium = int((areas < SMALL).sum()), int((areas < MEDIUM).sum())
        names = {EVERY_CLASS: "every class", **dict(enumerate(self._classes))}
        return {
            "unlabelled": self._unlabelled,
            "boxes": len(areas),
            "classes": {
                name: {"boxes": self._boxes[number], "images": self._images[number]}
                for number, name in names.items()
                if number >= 0 or self._boxes[number]
            },
            "sizes": {"small": small, "medium": medium - small, "large": len(areas) - medium},
            "sides_px": _quantiles(np.sqrt(areas)),
            "aspect": _quantiles(np.array(self._aspect)),
            "positions": tuple(map(tuple, self._positions.tolist())),
            "overlapping": self._overlapping / max(len(areas), 1),
            "light": {
                "quantiles": _quantiles(light),
                "dark": float((light < _DARK).mean()),
                "bright": float((light > _BRIGHT).mean()),
            },
            "resolutions": dict(self._resolutions.most_common()),
            "sides_histogram": _histogram(np.sqrt(areas)),
            "aspect_histogram": _histogram(np.clip(self._aspect, 0, 5)),
            "light_histogram": _histogram(light),
        }


def _quantiles(values: NDArray[np.float64]) -> tuple[float, ...]:
    if not len(values):
        return ()
    return tuple(round(float(one), 3) for one in np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)))


def _histogram(values: NDArray[np.float64], bins: int = 24) -> Histogram:
    if not len(values):
        return (), ()
    counts, edges = np.histogram(values, bins)
    return tuple(round(float(edge), 3) for edge in edges), tuple(map(int, counts))


def find_faults(
    item: Item, classes: Sequence[str], found: Detections | None = None, sure: float = 0.45
) -> list[Fault]:
    """Labels of one picture that look wrong.

    Args:
        item: in pixels.
        found: what a detector of the same classes found there.
        sure: score from which its boxes count.
    """
    image, boxes = str(item.image), [tuple(map(float, box)) for box in item.xyxy]
    names = [classes[label] if label >= 0 else "every class" for label in item.class_id]
    faults = [
        Fault("tiny", image, box, f"{name} of {width:.1f} x {height:.1f} pixels")  # type: ignore[arg-type]
        for box, name, (width, height) in zip(
            boxes, names, (item.xyxy[:, 2:] - item.xyxy[:, :2]).tolist(), strict=True
        )
        if min(width, height) < _TINY_PX
    ]
    overlaps = iou_matrix(item.xyxy, item.xyxy)
    same = item.class_id[:, None] == item.class_id[None]
    for one, other in np.argwhere(np.triu(same & (overlaps > _TWICE_IOU), 1)):
        text = f"{names[one]} labelled twice"
        faults.append(Fault("duplicate", image, boxes[other], text))
    if found is not None:
        faults += _doubts(item, image, classes, names, found[found.score >= sure])
    return faults


def _doubts(
    item: Item, image: str, classes: Sequence[str], names: Sequence[str], found: Detections
) -> Iterable[Fault]:
    """What a detector is sure of and the labels do not say."""
    overlaps = iou_matrix(found.xyxy, item.xyxy)
    for i in range(len(found)):
        box = tuple(round(float(side), 1) for side in found.xyxy[i])
        name, score = classes[found.class_id[i]], round(float(found.score[i]), 4)
        best = int(overlaps[i].argmax()) if len(item) else -1
        overlap = float(overlaps[i, best]) if len(item) else 0.0
        if _covered(found.xyxy[i], item):
            continue
        if overlap < _FREE_IOU:
            text = f"{name} without a label"
            yield Fault("likely missing", image, box, text, score)  # type: ignore[arg-type]
        elif overlap > _SAME_IOU and item.class_id[best] not in (found.class_id[i], EVERY_CLASS):
            text = f"labelled {names[best]}, looks like {name}"
            yield Fault("likely wrong class", image, box, text, score)  # type: ignore[arg-type]


def _covered(box: NDArray[np.float32], item: Item) -> bool:
    """Whether `box` lies mostly in a region in which objects need not be labelled one by one."""
    regions = item.xyxy[item.crowd | item.ignore]
    if not len(regions):
        return False
    low, high = np.maximum(box[:2], regions[:, :2]), np.minimum(box[2:], regions[:, 2:])
    inside = np.clip(high - low, 0, None).prod(axis=1)
    return bool((inside > 0.5 * (box[2:] - box[:2]).prod()).any())


def _twins(prints: _Prints) -> list[Twins]:
    """Pairs of pictures that show the same, each picture with the first that it is like."""
    found = []
    for index in range(1, len(prints.names)):
        like = _like(prints.digests[index], (prints.hashes[index],), prints, index)
        if like is not None:
            other, exact = like
            found.append(Twins(prints.names[other], prints.names[index], exact))
    return found


def _leaks(prints: _Prints, other: Dataset, skipped: list[str]) -> list[Twins]:
    found = []
    for item in track(other.items, "comparing", len(other)):
        try:
            frame, _ = load(item)
        except DataError as error:
            skipped.append(str(error))
            continue
        like = _like(digest(frame), (hash_image(frame),), prints, len(prints.names))
        if like is not None:
            found.append(Twins(prints.names[like[0]], str(item.image), like[1]))
    return found


def _like(
    sha256: str, hashes: Sequence[str], prints: _Prints, before: int
) -> tuple[int, bool] | None:
    """Index of the first picture before `before` that is the same or alike, and whether exactly."""
    if sha256 in prints.digests[:before]:
        return prints.digests.index(sha256), True
    for known in (prints.hashes[:before], prints.mirrored[:before]):
        bits = distances(hashes, known).min(axis=0) if known else np.zeros(0)
        if len(bits) and bits.min() <= NEAR:
            return int(bits.argmin()), False
    return None
