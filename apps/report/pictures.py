"""The images on which an artifact lost most, beside the labels or its reference."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import Dataset, Item, load
from edge.detections import Detections, iou_matrix
from edge.measure.results import ClassResults

__all__ = ["embedded", "worst_images", "worst_of"]

_SCORE = 0.25
_IOU = 0.5
# Of a picture: pixels, and bytes so that a page of them stays small.
_AREA, _BYTES = 560 * 420, 62_000
_QUALITIES = (82, 74, 66, 56, 46, 36)
# Names that would cover each other show only under the pointer.
_LETTERS, _LETTER, _LINE = 22, 7.6, 15.0
Results = dict[str, ClassResults]


def worst_of(now: Results, before: Results | None, images: int, count: int = 4) -> list[int]:
    """Return the images with the most objects that are not found any more, worst first.

    Without `before`, those with the most objects that are not found.
    """
    lost = _missed(now, images) - (0 if before is None else _missed(before, images))
    order = np.argsort(-lost, kind="stable")[:count]
    return [int(index) for index in order if lost[index] > 0]


def _missed(results: Results, images: int) -> NDArray[np.int64]:
    missed = np.zeros(images, np.int64)
    for one in results.values():
        sure = one.hit & (one.score >= _SCORE)
        missed += one.boxes - np.bincount(one.image[sure], minlength=images)
    return missed


def worst_images(
    dataset: Dataset,
    indices: Sequence[int],
    classes: tuple[str, ...],
    now: Sequence[Detections],
    reference: tuple[Sequence[Detections], tuple[str, ...]] | None,
    prefix: str,
) -> str:
    """Return pairs of pictures as HTML: the reference's boxes or the labels, and those found now.

    Boxes of both sides are thin lines; those of one side are thick and have a name.

    Args:
        reference: its detections by image, and its classes.
        prefix: of the pictures' names in the page, another one for each call.
    """
    parts = []
    for number, index in enumerate(indices):
        item = dataset.items[index]
        frame, known = load(item)
        if reference is None:
            what, left = "labels", _labels(dataset, known, classes)
        else:
            what, left = "reference", _renamed(reference[0][index], reference[1], classes)
        parts.append(
            _pair(
                _Picture(frame, f"{prefix}{number}"),
                (left[left.score >= _SCORE], what),
                now[index][now[index].score >= _SCORE],
                classes,
                item.image.name,
            )
        )
    return "".join(parts)


def _labels(dataset: Dataset, item: Item, classes: tuple[str, ...]) -> Detections:
    ids = [dataset.classes[i] if i >= 0 else "" for i in item.class_id]
    return _of_names(item.xyxy, np.ones(len(item), np.float32), ids, classes)


def _renamed(found: Detections, names: tuple[str, ...], classes: tuple[str, ...]) -> Detections:
    return _of_names(found.xyxy, found.score, [names[i] for i in found.class_id], classes)


def _of_names(
    xyxy: NDArray[np.float32],
    score: NDArray[np.float32],
    names: Sequence[str],
    classes: tuple[str, ...],
) -> Detections:
    """Return detections with the ids of `classes`, without those of other classes."""
    number = {name.lower(): index for index, name in enumerate(classes)}
    ids = np.array([number.get(name.lower(), -1) for name in names], np.int32)
    return Detections(xyxy, score, ids)[ids >= 0]


def embedded(picture: NDArray[np.uint8], height: int, alt: str = "") -> str:
    """Return an `<img>` that holds `picture` (H, W, 3) BGR as a JPEG of `height` pixels."""
    scale = height / picture.shape[0]
    size = (max(1, round(picture.shape[1] * scale)), height)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(picture, size, interpolation=way)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 75])
    text = base64.b64encode(data.tobytes()).decode()
    return (
        f'<img alt="{escape(alt)}" style="max-width:100%;height:auto" width="{size[0]}" '
        f'height="{size[1]}" src="data:image/jpeg;base64,{text}">'
    )


class _Picture:
    """A frame as a small JPEG that the page holds once and shows twice."""

    def __init__(self, frame: NDArray[np.uint8], name: str) -> None:
        height, width = frame.shape[:2]
        self.scale = min(1.0, (_AREA / (height * width)) ** 0.5)
        self.size = (max(1, round(width * self.scale)), max(1, round(height * self.scale)))
        small = cv2.resize(frame, self.size, interpolation=cv2.INTER_AREA)
        self._name = name
        for quality in _QUALITIES:
            _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])
            if len(data) <= _BYTES:
                break
        self._data = base64.b64encode(data.tobytes()).decode()

    def svg(self, boxes: str, hint: str, first: bool) -> str:
        """Return the picture with `boxes` over it; the first one brings the data."""
        width, height = self.size
        again = f'<use href="#{self._name}"/>'
        image = (
            f'<image id="{self._name}" width="{width}" height="{height}" '
            f'href="data:image/jpeg;base64,{self._data}"/>'
        )
        return (
            f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(hint)}">{image if first else again}'
            f"{boxes}</svg>"
        )


def _pair(
    picture: _Picture,
    expected: tuple[Detections, str],
    now: Detections,
    classes: tuple[str, ...],
    name: str,
) -> str:
    left, what = expected
    lost, new = _without_twin(left, now), _without_twin(now, left)
    told = f"{what}: {len(left)} objects"
    sides = (
        (left, lost, "lost", told, f"{lost.sum()} lost"),
        (now, new, "new", f"now: {len(now)} boxes", f"{new.sum()} new"),
    )
    figures = [
        f"<figure>{picture.svg(_boxes(picture, found, apart, kind, classes), text, kind == 'lost')}"
        f"<figcaption>{text}, <b class='{kind}'>{count}</b></figcaption></figure>"
        for found, apart, kind, text, count in sides
    ]
    return f'<div class="pair"><p>{escape(name)}</p>{"".join(figures)}</div>'


def _without_twin(mine: Detections, other: Detections) -> NDArray[np.bool_]:
    """Return (N,), whether a box has none of its class at the same place on the other side."""
    same = mine.class_id[:, None] == other.class_id[None]
    twins = (iou_matrix(mine.xyxy, other.xyxy) >= _IOU) & same
    apart: NDArray[np.bool_] = np.logical_not(twins.any(axis=1))
    return apart


def _boxes(
    picture: _Picture,
    found: Detections,
    apart: NDArray[np.bool_],
    kind: str,
    classes: tuple[str, ...],
) -> str:
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []
    # What only one side has lies on top.
    for i in np.argsort(apart, kind="stable"):
        x1, y1, x2, y2 = (float(value) * picture.scale for value in found.xyxy[i])
        name = classes[int(found.class_id[i])]
        hint = f"{name} {found.score[i]:.2f}"
        parts.append(
            f'<rect class="{kind if apart[i] else "kept"}" x="{x1:.1f}" y="{y1:.1f}" '
            f'width="{max(0.0, x2 - x1):.1f}" height="{max(0.0, y2 - y1):.1f}">'
            f"<title>{escape(hint)}</title></rect>"
        )
        if apart[i]:
            parts.append(_name(picture.size[0], (x1, y1), kind, name, taken))
    return "".join(parts)


def _name(
    width: int,
    corner: tuple[float, float],
    kind: str,
    name: str,
    taken: list[tuple[float, float, float]],
) -> str:
    """Return a box's name above its corner, and add it to `taken`; nothing where one stands."""
    short = name if len(name) <= _LETTERS else f"{name[:_LETTERS]}…"
    wide = len(short) * _LETTER
    left, bottom = max(0.0, min(corner[0], width - wide)), max(_LINE, corner[1] - 4)
    for start, end, height in taken:
        if left < end and start < left + wide and abs(bottom - height) < _LINE:
            return ""
    taken.append((left, left + wide, bottom))
    return f'<text class="{kind}" x="{left:.1f}" y="{bottom:.1f}">{escape(short)}</text>'
