"""The images on which an artifact lost most, beside what the labels or its reference say."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.draw import draw
from apps.image_results import ClassResults
from edge.data.datasets import Dataset, Item, load
from edge.detections import Detections

__all__ = ["worst_images", "worst_of"]

_SCORE = 0.25
_WIDTH = 440
_QUALITY = 72
Results = dict[str, ClassResults]


def worst_of(now: Results, before: Results | None, images: int, count: int = 4) -> list[int]:
    """Images with the most objects that were found and are not any more, worst first.

    Without a `before`, those with the most objects that are not found at all.
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
) -> str:
    """Pairs of pictures as HTML: the reference's boxes, or the labels, and what is found now.

    Args:
        reference: its detections by image, and its classes.
    """
    parts = []
    for index in indices:
        item = dataset.items[index]
        frame, known = load(item)
        if reference is None:
            what, left, names = "labels", _labels(dataset, known, classes), classes
        else:
            what, left, names = "reference", reference[0][index], reference[1]
        name = escape(item.image.name)
        parts.append(
            f'<div class="pair">{_figure(frame, left, names, f"{name}: {what}")}'
            f"{_figure(frame, now[index], classes, f'{name}: now')}</div>"
        )
    return "".join(parts)


def _labels(dataset: Dataset, item: Item, classes: tuple[str, ...]) -> Detections:
    number = {name.lower(): index for index, name in enumerate(classes)}
    ids = [number.get(dataset.classes[i].lower(), -1) if i >= 0 else -1 for i in item.class_id]
    kept = np.array(ids, np.int32) >= 0
    found = Detections(item.xyxy, np.ones(len(item), np.float32), np.array(ids, np.int32))
    return found[kept]


def _figure(
    frame: NDArray[np.uint8], found: Detections, classes: tuple[str, ...], caption: str
) -> str:
    shown = found[found.score >= _SCORE]
    scale = min(1.0, _WIDTH / frame.shape[1])
    # Boxes are drawn on the small picture, so that their lines stay sharp.
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    small = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    boxes = Detections(shown.xyxy * np.float32(scale), shown.score, shown.class_id)
    _, data = cv2.imencode(
        ".jpg", draw(small, boxes, classes), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    source = base64.b64encode(data.tobytes()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{source}" width="{size[0]}" '
        f'height="{size[1]}" alt="{caption}"><figcaption>{caption}, {len(shown)} boxes'
        "</figcaption></figure>"
    )
