"""Pictures for training: near the input's size, with boxes of the model's classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.classes import match_classes
from edge.data.datasets import Dataset, Item, load
from edge.data.items import Label, Problem, make_item
from edge.errors import DataError
from edge.letterbox import Letterbox
from edge.spec import InputContract, ModelSpec
from edge.train.augment import IGNORE, Labelled

__all__ = ["Pictures", "checked", "labelled_boxes", "read_pictures"]

# Augmentation enlarges by this factor; a higher resolution is never needed.
_LARGER = 1.5


class Pictures(Sequence[Labelled]):
    """Pictures by number; those for which memory did not suffice are read again each time."""

    def __init__(
        self, kept: Sequence[Labelled | Item], read: Callable[[Item], Labelled], classes: int
    ) -> None:
        self._kept, self._read, self.classes = kept, read, classes

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Labelled: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Labelled | Pictures:
        if isinstance(index, slice):
            return Pictures(self._kept[index], self._read, self.classes)
        one = self._kept[index]
        return one if isinstance(one, Labelled) else self._read(one)


@dataclass(frozen=True)
class _Reader:
    """Turns an item into a picture; `join` has the model's class of each of the data set's."""

    contract: InputContract
    join: NDArray[np.int32]

    def __call__(self, item: Item) -> Labelled:
        frame, labelled = load(item)
        return self.prepare(frame, checked(labelled)[0])

    def prepare(self, frame: NDArray[np.uint8], item: Item) -> Labelled:
        height, width = frame.shape[:2]
        fit = Letterbox.fit((height, width), self.contract)
        scale = np.minimum(np.array(fit.scale_xy) * _LARGER, 1.0)
        if self.contract.resize == "letterbox":
            scale[:] = scale.min()
        else:
            # Stretched here, so that augmentation need not know of it.
            scale = np.array(fit.scale_xy) * min(_LARGER, 1 / min(fit.scale_xy))
        size = [max(1, round(side)) for side in (width, height) * scale]
        if size != [width, height]:
            smaller = size[0] * size[1] < width * height
            how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            frame = np.asarray(cv2.resize(frame, size, interpolation=how), np.uint8)
        fitted = replace(item, xyxy=item.xyxy * np.tile((size[0] / width, size[1] / height), 2))
        return Labelled(frame, labelled_boxes(fitted, self.join))


def labelled_boxes(item: Item, join: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return boxes (M, 5) of label and corners; what need not be found becomes a region to ignore.

    Args:
        item: in pixels.
        join: the model's class of each of the data set's; -1 for background.
    """
    label = np.where(item.class_id >= 0, join[item.class_id], -1)
    unknown = (item.class_id >= 0) & (label < 0)
    label = np.where(item.crowd | item.ignore, IGNORE, label)
    return np.column_stack((label, item.xyxy))[~unknown].astype(np.float32)


def checked(item: Item) -> tuple[Item, list[Problem]]:
    """Check an item's boxes, in pixels of its image, by the rules of `make_item` once more.

    A format that does not state the size of an image could not check them before.
    """
    if item.hw is None:
        raise ValueError(f"{item.image}: its boxes are not in pixels of a known size yet")
    made, problems, keep = [], [], []
    for number, box in enumerate(item.xyxy.tolist()):
        label = Label(0, tuple(box), f"{item.image}: box {number + 1}")
        one, found = make_item(item.image, [label], item.hw)
        problems += found
        if len(one):
            made.append(one.xyxy[0])
            keep.append(number)
    xyxy = np.array(made, np.float32).reshape(-1, 4)
    kept = replace(
        item,
        xyxy=xyxy,
        class_id=item.class_id[keep],
        crowd=item.crowd[keep],
        ignore=item.ignore[keep],
        area=item.area[keep],
    )
    return kept, problems


def read_pictures(
    dataset: Dataset,
    spec: ModelSpec,
    *,
    keep_mib: int = 4096,
    follow: Callable[[Iterable[Item]], Iterable[Item]] = iter,
    seen: Callable[[Item, NDArray[np.uint8]], None] | None = None,
) -> tuple[Pictures, tuple[Problem, ...], tuple[Item, ...]]:
    """Read every picture once, so that a bad one is known before training.

    Args:
        dataset: labelled pictures; classes that the model does not have are background.
        spec: the model.
        keep_mib: memory for pictures in MiB; the others are read again whenever they are needed.
        follow: shows progress over the items.
        seen: gets each item and its picture as it was read.

    Returns:
        The pictures, the labels and images that were changed or left out (those of the data set
        itself first), and the items in pixels, one for each picture.

    Raises:
        DataError: there are no labels, no class in common, or no picture with a usable box.
    """
    if dataset.kind == "images":
        raise DataError(f"{dataset.source}: images without labels; there is nothing to learn")
    reader = _Reader(spec.contract, match_classes(dataset.classes, spec.classes))
    problems, kept, items = list(dataset.problems), list[Labelled | Item](), list[Item]()
    room, boxes = keep_mib * 2**20, 0
    for item in follow(dataset.items):
        try:
            frame, labelled = load(item)
        except DataError as error:
            problems.append(Problem("image left out", str(error)))
            continue
        if seen is not None:
            seen(item, frame)
        good, found = checked(labelled)
        problems += found
        picture = reader.prepare(frame, good)
        room -= picture.image.nbytes
        kept.append(picture if room > 0 else item)
        items.append(good)
        boxes += int((picture.boxes[:, 0] >= 0).sum())
    if not boxes:
        raise DataError(
            f"{dataset.source}: no box of a class of {spec.name} in {len(kept)} pictures; "
            "look at the labels and the class names"
        )
    return Pictures(kept, reader, len(spec.classes)), tuple(problems), tuple(items)
