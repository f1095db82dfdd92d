"""Few labelled images judged many times: slightly moved copies that share each image's weight.

What rounding does to a borderline detection changes when the picture moves by a few pixels, so
each copy of an image has noise of its own: eight of them give a third of the standard error of the
drop that one gives. The objects stay the same, so the copies are resampled together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import Dataset, Item, load
from edge.data.items import thin
from edge.data.metrics import ImageMatches, evaluate_detections
from edge.data.overlap import Overlap, match
from edge.errors import DataError
from edge.measure.accuracy import OPTIONS, clip, labelled
from edge.measure.results import ClassResults, by_class
from edge.measure.statistics import mean_precision, resample
from edge.onnx_file import OnnxFile
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import Preprocessor
from edge.spec import InputContract

__all__ = ["COPIES", "Drop", "Selection", "moved", "paired_drop"]

Frame = NDArray[np.uint8]
# (scale, shift right, shift down), shifts in shares of the sides; the first is the image itself.
COPIES: tuple[tuple[float, float, float], ...] = (
    (1.0, 0.0, 0.0),
    (1.0, 0.006, 0.005),
    (0.96, 0.012, 0.008),
    (1.03, -0.012, -0.017),
    (0.98, 0.004, 0.013),
    (1.02, -0.015, -0.006),
    (1.01, -0.003, -0.009),
    (0.97, 0.021, 0.017),
)
# Less of an object inside than this, and it need not be found.
_LEAST_INSIDE = 0.5
_DRAWS = 400


@dataclass(frozen=True)
class Drop:
    """mAP lost from one artifact to another on the same pictures.

    Attributes:
        before, now: mAP@.5 of the two, over all copies.
        spread: standard error of their difference.
        pictures: images times copies.
    """

    before: float
    now: float
    spread: float
    pictures: int

    @property
    def loss(self) -> float:
        """mAP lost, 0..1."""
        return self.before - self.now

    @property
    def interval(self) -> tuple[float, float, float]:
        """Loss and its 95 % interval."""
        return self.loss, self.loss - 1.96 * self.spread, self.loss + 1.96 * self.spread


@dataclass(eq=False)
class Selection:
    """Labelled images held in memory, and what each artifact found in their copies.

    Attributes:
        dataset: items in pixels.
        frames: (H, W, 3) uint8 BGR, by item.
        threads: of the CPU backend.
    """

    dataset: Dataset
    frames: list[Frame]
    classes: tuple[str, ...]
    threads: int | None = None
    _matches: dict[tuple[str, int], tuple[ImageMatches, ...]] = field(default_factory=dict)

    @staticmethod
    def open(
        data: str | Path, classes: Sequence[str], images: int | None, threads: int | None = None
    ) -> Selection:
        """Read at most `images` labelled images of `data`, spread evenly.

        Raises:
            DataError: no labels, no class in common, or an image cannot be read.
        """
        dataset = labelled(data, classes, images)
        frames, items = [], []
        for item in dataset.items:
            frame, known = load(item)
            frames.append(frame)
            items.append(known)
        dataset = replace(dataset, items=tuple(items))
        if not any(len(item) for item in items):
            raise DataError(f"{data}: none of its {len(items)} images shows a labelled object")
        return Selection(dataset, frames, tuple(classes), threads)

    def matches(self, artifact: Path | OnnxFile, copy: int = 0) -> tuple[ImageMatches, ...]:
        """How detections of `artifact` fared in a copy of every image."""
        found, items = [], []
        with Detector.open(artifact, **OPTIONS, threads=self.threads, exact=True) as detector:
            for frame, item in zip(self.frames, self.dataset.items, strict=True):
                picture, known = moved(frame, item, COPIES[copy])
                found.append(clip(detector(picture), picture.shape[:2]))
                items.append(known)
        dataset = replace(self.dataset, items=tuple(items))
        return evaluate_detections(dataset, found, self.classes).matches

    def arrays(self, contract: InputContract, count: int) -> list[NDArray[np.float32]]:
        """Network inputs (1, 3, H, W) of at most `count` images, spread evenly."""
        preprocess = Preprocessor(contract)
        return [preprocess(frame)[0].copy() for frame in thin(self.frames, count)]

    def reference(self, artifact: Path | OnnxFile, copy: int) -> tuple[ImageMatches, ...]:
        """`matches`, kept for the next comparison."""
        key = (str(artifact), copy)
        if key not in self._matches:
            self._matches[key] = self.matches(artifact, copy)
        return self._matches[key]

    def seen_in(self, hashes: Sequence[str], digests: Collection[str]) -> list[Overlap]:
        """Those of the images that are among pictures with these hashes or sha256 digests."""
        known = frozenset(digests)
        found = (
            match(str(item.image), frame, hashes, known)
            for frame, item in zip(self.frames, self.dataset.items, strict=True)
        )
        return [one for one in found if one is not None]

    def map50(self, artifact: Path | OnnxFile) -> float:
        """mAP@.5 on the images themselves."""
        results = by_class(self.matches(artifact), len(self.frames))
        return float(mean_precision(results, np.ones((1, len(self.frames))))[0])


def moved(frame: Frame, item: Item, by: tuple[float, float, float]) -> tuple[Frame, Item]:
    """A copy of an image and its boxes, scaled and shifted; what leaves the image is ignored."""
    scale, right, down = by
    if by == COPIES[0]:
        return frame, item
    height, width = frame.shape[:2]
    shift = np.array((right * width, down * height))
    matrix = np.array(((scale, 0, shift[0]), (0, scale, shift[1])))
    picture = cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    whole = item.xyxy * scale + np.tile(shift, 2)
    xyxy = np.clip(whole, 0, (width, height, width, height)).astype(np.float32)
    inside = _area(xyxy) / np.maximum(_area(whole), 1e-6)
    return np.asarray(picture, np.uint8), replace(
        item,
        xyxy=xyxy,
        area=(item.area * scale**2 * inside).astype(np.float32),
        ignore=item.ignore | (inside < _LEAST_INSIDE),
    )


def _area(xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    sides = np.clip(xyxy[:, 2:] - xyxy[:, :2], 0, None).astype(np.float64)
    return np.asarray(sides[:, 0] * sides[:, 1])


def paired_drop(
    before: Sequence[Sequence[ImageMatches]], now: Sequence[Sequence[ImageMatches]], images: int
) -> Drop:
    """mAP lost over copies of `images` images, with the bootstrap's standard error.

    Args:
        before, now: by copy, the matches of all its images.
    """
    copies = len(before)
    sides = [_joined(side, images) for side in (before, now)]
    names = [name for name in sides[0] if name in sides[1]]
    weights = np.tile(np.vstack([np.full((1, images), 1.0), resample(images, _DRAWS)]), copies)
    first, second = (
        mean_precision({name: side[name] for name in names}, weights) for side in sides
    )
    spread = float(np.nanstd((first - second)[1:]))
    return Drop(float(first[0]), float(second[0]), spread, images * copies)


def _joined(side: Sequence[Sequence[ImageMatches]], images: int) -> dict[str, ClassResults]:
    every = [
        replace(one, image=one.image + copy * images)
        for copy, matches in enumerate(side)
        for one in matches
    ]
    return by_class(every, images * len(side))
