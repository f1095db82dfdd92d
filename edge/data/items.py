"""What a labelled image is, and the rules that its boxes must pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError

__all__ = [
    "EVERY_CLASS",
    "NO_IMAGE",
    "NO_LABELS",
    "Dataset",
    "Item",
    "Label",
    "Problem",
    "images_in",
    "make_item",
    "thin",
]

EVERY_CLASS = -1
# What is amiss with a whole image, and what it means where it happens often.
NO_LABELS = "image without a label file"
NO_IMAGE = "label file without an image"
_OF_IMAGES = {
    NO_LABELS: "they count as showing nothing; label them, or check the names of the files",
    NO_IMAGE: "check the names of the files",
    "image missing": "the figures rest on the others; copy the images",
    "picture is missing": "the figures rest on the others; copy the images",
}
_ABSENT = (NO_IMAGE, "image missing", "picture is missing")
_DOUBTFUL = 0.1
Kind = Literal["yolo", "voc", "coco", "kitti", "images", "scenes"]
_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
# Farther from the picture's corner than this no label can be meant; squares stay finite numbers.
_MOST_PX, _MOST_FRACTION = 1e6, 1e3
# Labels are rounded: what sticks out by less than this is no fault of the label.
_TOLERANCE_PX, _TOLERANCE_FRACTION = 1.0, 1e-3


class Label(NamedTuple):
    """One box as a file states it.

    `area` None means width times height; `where` is the file and line that an error names.
    """

    class_id: int
    xyxy: tuple[float, float, float, float]
    where: str
    area: float | None = None
    crowd: bool = False
    ignore: bool = False


class Problem(NamedTuple):
    """A label that was changed or dropped, or an image that was left out: why, and where."""

    reason: str
    where: str


@dataclass(frozen=True, eq=False)
class Item:
    """One image and its N boxes.

    Attributes:
        image: the file.
        xyxy: (N, 4) float32, pixels of the image; fractions of its sides if `fraction`.
        class_id: (N,) int32, index into the dataset's classes, or `EVERY_CLASS`.
        crowd: (N,) bool, a region: detections inside it are neither right nor wrong.
        ignore: (N,) bool, one object that need not be found (VOC's `difficult`).
        area: (N,) float32, of the object, in the square of the boxes' unit.
        hw: the size that the annotation states, where it does.
        fraction: whether boxes still wait for the image's size.
        seed: of a scene of the built-in world, whose boxes are known once it is rendered.
    """

    image: Path
    xyxy: NDArray[np.float32]
    class_id: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    area: NDArray[np.float32]
    hw: tuple[int, int] | None = None
    fraction: bool = False
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.class_id)

    def in_pixels(self, hw: tuple[int, int]) -> Item:
        """The same item in pixels of an image of `hw` (height, width).

        Raises:
            DataError: the annotation was made for an image of another size.
        """
        if self.hw is not None and self.hw != hw:
            raise DataError(
                f"{self.image}: {hw[1]}x{hw[0]} pixels, but its annotation was made for "
                f"{self.hw[1]}x{self.hw[0]}; label the image that is there"
            )
        if not self.fraction:
            return replace(self, hw=hw)
        height, width = hw
        sides = np.array((width, height, width, height), np.float32)
        return replace(
            self, xyxy=self.xyxy * sides, area=self.area * (width * height), hw=hw, fraction=False
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one origin.

    Attributes:
        name: for reports.
        kind: of the labels; `images` has none.
        classes: names by class_id; the decimals "0", "1", ... where the labels have no names.
        items: in the order of the file names (or of the annotation file).
        source: what was opened.
        problems: labels and images that a rule changed or dropped.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    source: str
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def dropped(self) -> dict[str, int]:
        """How often each rule had to change or drop something."""
        return dict(Counter(problem.reason for problem in self.problems))

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each way in which more than one image in ten is not as labels suppose."""
        found = []
        for reason, count in self.dropped.items():
            whole = len(self) + (count if reason in _ABSENT else 0)
            if reason in _OF_IMAGES and count > _DOUBTFUL * whole:
                example = next(one.where for one in self.problems if one.reason == reason)
                found.append(
                    f"{count} of {whole}: {reason}, such as {example}; {_OF_IMAGES[reason]}"
                )
        return tuple(found)


def images_in(folder: Path) -> list[Path]:
    """The image files at any depth below `folder`, by name; hidden files are passed over.

    Raises:
        DataError: there is none.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )
    if not found:
        raise DataError(f"{folder}: no images in it ({', '.join(sorted(_SUFFIXES))})")
    return found


def thin(values: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` of `values`, spread evenly: folders are often sorted by series or class."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it takes a positive number of images")
    if limit is None or limit >= len(values):
        return list(values)
    return [values[i * len(values) // limit] for i in range(limit)]


def make_item(
    image: Path,
    labels: Sequence[Label],
    hw: tuple[int, int] | None = None,
    fraction: bool = False,
) -> tuple[Item, list[Problem]]:
    """Check the labels of one image, and return what was changed beside the item.

    What has no area or lies outside the image is dropped, what sticks out is clipped.

    Raises:
        DataError: a number that cannot be meant.
    """
    high = (1.0, 1.0) if fraction else (hw[1], hw[0]) if hw else (np.inf, np.inf)
    kept: list[Label] = []
    problems: list[Problem] = []
    for label in labels:
        _check_numbers(label, _MOST_FRACTION if fraction else _MOST_PX)
        checked, reason = _fit(label, high, _TOLERANCE_FRACTION if fraction else _TOLERANCE_PX)
        if reason:
            problems.append(Problem(reason, label.where))
        if checked:
            kept.append(checked)
    return _item(image, kept, hw, fraction), problems


def _check_numbers(label: Label, most: float) -> None:
    if not all(abs(side) <= most for side in label.xyxy):
        raise DataError(
            f"{label.where}: a coordinate is not a finite number, or beyond {most:g}; mend or "
            "delete it"
        )
    if label.area is not None and not 0 <= label.area <= _MOST_PX**2:
        raise DataError(f"{label.where}: area {label.area:g} cannot be; mend or delete it")


def _fit(
    label: Label, high: tuple[float, float], tolerance: float
) -> tuple[Label | None, str | None]:
    """The label clipped to the image, or None, and the rule that changed or dropped it."""
    x1, y1, x2, y2 = label.xyxy
    if x2 <= x1 or y2 <= y1:
        return None, "box without area"
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, high[0]), min(y2, high[1]))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return None, "box outside the image"
    if max(abs(new - old) for new, old in zip(clipped, label.xyxy, strict=True)) <= tolerance:
        return label, None
    share = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]) / ((x2 - x1) * (y2 - y1))
    area = None if label.area is None else label.area * share
    return label._replace(xyxy=clipped, area=area), "box clipped to the image"


def _item(image: Path, labels: list[Label], hw: tuple[int, int] | None, fraction: bool) -> Item:
    xyxy = np.array([label.xyxy for label in labels], np.float32).reshape(-1, 4)
    own_area = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
    stated = [np.nan if label.area is None else label.area for label in labels]
    return Item(
        image=image,
        xyxy=xyxy,
        class_id=np.array([label.class_id for label in labels], np.int32),
        crowd=np.array([label.crowd for label in labels], np.bool_),
        ignore=np.array([label.ignore for label in labels], np.bool_),
        area=np.where(np.isnan(stated), own_area, stated).astype(np.float32),
        hw=hw,
        fraction=fraction,
    )
