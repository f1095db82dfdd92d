"""What a bootstrap over images needs of an evaluation: per class, which detection hit, in order."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import Dataset
from edge.data.metrics import ImageMatches, evaluate_detections
from edge.detections import Detections
from edge.errors import DataError

__all__ = ["ClassResults", "by_class", "from_json", "small_results", "to_json"]

# COCO's range of small objects ends at 32 x 32 pixels: https://cocodataset.org/#detection-eval
SMALL_AREA = 32.0**2
# pycocotools keeps so many detections of a class in an image, the best.
_LIMIT = 100
_STEPS = 10_000


@dataclass(frozen=True, eq=False)
class ClassResults:
    """The D detections of one class over I images at IoU 0.5, best first, without ignored ones.

    Attributes:
        name: of the class.
        image: (D,) int32, index of the image.
        score: (D,) float32.
        hit: (D,) bool, whether it found an object.
        boxes: (I,) int32, objects that had to be found in each image.
    """

    name: str
    image: NDArray[np.int32]
    score: NDArray[np.float32]
    hit: NDArray[np.bool_]
    boxes: NDArray[np.int32]


def by_class(matches: Iterable[ImageMatches], images: int) -> dict[str, ClassResults]:
    """`Metrics.matches` of an evaluation over `images` images, for classes that have boxes."""
    gathered: dict[str, list[ImageMatches]] = {}
    for one in matches:
        gathered.setdefault(one.name, []).append(one)
    results = {name: _joined(name, found, images) for name, found in gathered.items()}
    return {name: one for name, one in results.items() if one.boxes.any()}


def _joined(name: str, found: list[ImageMatches], images: int) -> ClassResults:
    # pycocotools ranks equal scores by image, then by their place in it; so does a stable sort.
    found = sorted(found, key=lambda one: one.image)
    boxes = np.zeros(images, np.int32)
    for one in found:
        boxes[one.image] = one.boxes
    image = np.concatenate([np.full(len(one.score), one.image, np.int32) for one in found])
    score = np.concatenate([one.score for one in found]).astype(np.float32)
    hit = np.concatenate([one.matched[0] for one in found])
    counts = ~np.concatenate([one.ignored[0] for one in found])
    order = np.argsort(-score, kind="stable")
    order = order[counts[order]]
    return ClassResults(name, image[order], score[order], hit[order], boxes)


def small_results(
    dataset: Dataset, detections: list[Detections], classes: tuple[str, ...]
) -> dict[str, ClassResults]:
    """As `by_class`, for objects under 32 x 32 pixels, as COCO's small range judges them.

    Other objects need not be found, and a detection of another size that found nothing is no
    false alarm. Empty where no object is small.
    """
    small = replace(dataset, items=tuple(_small_only(item) for item in dataset.items))
    if not any(np.any(~(item.ignore | item.crowd)) for item in small.items):
        return {}
    try:
        metrics = evaluate_detections(small, detections, classes, _LIMIT)
    except DataError:
        return {}
    number = {name: index for index, name in enumerate(classes)}
    kept = [_ignore_large(one, detections[one.image], number[one.name]) for one in metrics.matches]
    return by_class(kept, len(dataset))


def _small_only(item: Any) -> Any:
    return replace(item, ignore=item.ignore | (item.area > SMALL_AREA))


def _ignore_large(one: ImageMatches, found: Detections, class_id: int) -> ImageMatches:
    """Detections outside the size range that match nothing do not count."""
    mine = found[found.class_id == class_id]
    mine = mine[np.argsort(-mine.score, kind="stable")][:_LIMIT]
    sides = np.clip(mine.xyxy[:, 2:] - mine.xyxy[:, :2], 0, None).astype(np.float64)
    large = sides[:, 0] * sides[:, 1] > SMALL_AREA
    return replace(one, ignored=one.ignored | (~one.matched & large))


def to_json(results: dict[str, ClassResults]) -> dict[str, Any]:
    """JSON values; scores keep four decimals and their order.

    Detections behind the last hit of a class are left out; AP is the same without them.
    """
    return {name: _encode(one) for name, one in results.items()}


def _encode(one: ClassResults) -> dict[str, Any]:
    end = int(np.flatnonzero(one.hit)[-1]) + 1 if one.hit.any() else 0
    columns = (
        one.image[:end].astype("<u2"),
        # They fall, in small steps, and such steps compress.
        np.diff(np.rint(one.score[:end] * _STEPS), prepend=_STEPS).astype("<i2"),
        np.packbits(one.hit[:end]),
        one.boxes.astype("<u2"),
    )
    data = zlib.compress(b"".join(column.tobytes() for column in columns), 9)
    return {
        "detections": end,
        "images": len(one.boxes),
        "columns": base64.b64encode(data).decode(),
    }


def from_json(data: dict[str, Any]) -> dict[str, ClassResults]:
    """What `to_json` wrote.

    Raises:
        ValueError, KeyError, TypeError: damaged.
    """
    return {name: _decode(name, one) for name, one in data.items()}


def _decode(name: str, one: dict[str, Any]) -> ClassResults:
    count, images = int(one["detections"]), int(one["images"])
    try:
        raw = zlib.decompress(base64.b64decode(one["columns"], validate=True))
    except zlib.error as error:
        raise ValueError(f"the results of {name} are damaged: {error}") from error
    ends = np.cumsum([2 * count, 2 * count, -(-count // 8), 2 * images])
    if len(raw) != ends[-1]:
        raise ValueError(f"the results of {name} are cut short")
    image, score, hit, boxes = (
        np.frombuffer(raw[start:end], kind)
        for start, end, kind in zip((0, *ends[:-1]), ends, ("<u2", "<i2", "u1", "<u2"), strict=True)
    )
    if count and int(image.max()) >= images:
        raise ValueError(f"the results of {name} speak of an image that is not there")
    return ClassResults(
        name,
        image.astype(np.int32),
        ((score.cumsum(dtype=np.int64) + _STEPS) / _STEPS).astype(np.float32),
        np.unpackbits(hit, count=count).astype(np.bool_),
        boxes.astype(np.int32),
    )
