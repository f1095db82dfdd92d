"""What a bootstrap over images needs of an evaluation: per class, which detection hit, in order."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.data.metrics import ImageMatches

__all__ = ["ClassResults", "Encoded", "by_class", "from_json", "to_json"]

_STEPS = 10_000
_MOST = 50_000_000


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


@dataclass(frozen=True)
class Encoded:
    """The results of a class as JSON: how many detections and images, and the packed columns."""

    detections: int
    images: int
    columns: str

    def __post_init__(self) -> None:
        """Check the counts, which say how much is unpacked.

        Raises:
            ValueError: they cannot be.
        """
        if not (0 <= self.detections <= _MOST and 0 <= self.images <= _MOST):
            raise ValueError(f"{self.detections} detections in {self.images} images cannot be")


def to_json(results: dict[str, ClassResults]) -> dict[str, Encoded]:
    """Pack results for JSON; scores keep four decimals and their order.

    Detections behind the last hit of a class are left out; AP is the same without them.
    """
    return {name: _encode(one) for name, one in results.items()}


def _encode(one: ClassResults) -> Encoded:
    end = int(np.flatnonzero(one.hit)[-1]) + 1 if one.hit.any() else 0
    columns = (
        one.image[:end].astype("<u2"),
        # They fall, in small steps, and such steps compress.
        np.diff(np.rint(one.score[:end] * _STEPS), prepend=_STEPS).astype("<i2"),
        np.packbits(one.hit[:end]),
        one.boxes.astype("<u2"),
    )
    data = zlib.compress(b"".join(column.tobytes() for column in columns), 9)
    return Encoded(end, len(one.boxes), base64.b64encode(data).decode())


def from_json(data: Mapping[str, Encoded]) -> dict[str, ClassResults]:
    """Unpack what `to_json` wrote.

    Raises:
        ValueError: damaged.
    """
    return {name: _decode(name, one) for name, one in data.items()}


def _decode(name: str, one: Encoded) -> ClassResults:
    count, images = one.detections, one.images
    size = 4 * count + -(-count // 8) + 2 * images
    try:
        packed = base64.b64decode(one.columns, validate=True)
        # No more than what was announced is unpacked.
        raw = zlib.decompressobj().decompress(packed, size + 1)
    except (zlib.error, ValueError) as error:
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
