"""What quantization does to scores, and the threshold that fits them again.

Quantized networks rank boxes much as their FP32 parents do, but their scores sit elsewhere, so a
threshold tuned on the parent cuts at another point of the same curve. F1, the harmonic mean of
precision and recall at IoU 0.5, over the threshold shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.data.metrics import ImageMatches
from edge.detections import Detections, iou_matrix

__all__ = [
    "THRESHOLDS",
    "F1Curve",
    "best_threshold",
    "f1_by_class",
    "f1_curve",
    "score_histogram",
    "score_shift",
]

Floats = NDArray[np.float64]
THRESHOLDS: Floats = np.round(np.arange(0.01, 1.0, 0.01), 2)
# Of the highest F1: below it lies sampling noise, and the middle of what is left moves little.
_PLATEAU = 0.995
_PAIRED_IOU = 0.5


@dataclass(frozen=True, eq=False)
class F1Curve:
    """F1 (T,) at each of `THRESHOLDS` (T,): detections above it count."""

    f1: Floats
    boxes: int

    def at(self, score: float) -> float:
        """F1 at the threshold nearest to `score`."""
        return float(self.f1[int(np.abs(THRESHOLDS - score).argmin())])


def f1_curve(matches: Iterable[ImageMatches]) -> F1Curve:
    """F1 over the score threshold, detections and objects of all `matches` pooled."""
    found = list(matches)
    kept = [~one.ignored[0] for one in found]
    hits = [one.score[keep & one.matched[0]] for one, keep in zip(found, kept, strict=True)]
    every = [one.score[keep] for one, keep in zip(found, kept, strict=True)]
    boxes = sum(one.boxes for one in found)
    right, shown = _above(hits), _above(every)
    return F1Curve(2 * right / np.maximum(shown + boxes, 1), boxes)


def _above(scores: Sequence[Floats]) -> Floats:
    """How many scores lie above each threshold."""
    ranked = np.sort(np.concatenate([np.zeros(0), *scores]))
    return (len(ranked) - np.searchsorted(ranked, THRESHOLDS, side="right")).astype(np.float64)


def best_threshold(curve: F1Curve) -> float:
    """The middle of the thresholds at which F1 is as good as at its best.

    Raises:
        ValueError: no threshold finds anything.
    """
    best = float(curve.f1.max(initial=0.0))
    if best <= 0:
        raise ValueError("nothing is found at any threshold")
    peak = int(curve.f1.argmax())
    good = curve.f1 >= _PLATEAU * best
    low, high = peak, peak
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(good) and good[high + 1]:
        high += 1
    return round(float(THRESHOLDS[low] + THRESHOLDS[high]) / 2, 3)


def f1_by_class(matches: Iterable[ImageMatches]) -> dict[str, F1Curve]:
    """`f1_curve` of each class that has objects."""
    gathered: dict[str, list[ImageMatches]] = {}
    for one in matches:
        gathered.setdefault(one.name, []).append(one)
    curves = {name: f1_curve(found) for name, found in gathered.items()}
    return {name: curve for name, curve in curves.items() if curve.boxes}


def score_histogram(found: Sequence[Detections], bins: int = 20) -> list[int]:
    """Detections by score, in `bins` equal steps of 0..1."""
    scores = np.concatenate([np.zeros(0, np.float32), *(one.score for one in found)])
    return [int(count) for count in np.histogram(scores, bins, (0.0, 1.0))[0]]


def score_shift(
    before: Sequence[Detections], now: Sequence[Detections], score: float = 0.25
) -> float | None:
    """Median change of the score of boxes that both networks draw; None where there are none.

    Args:
        before, now: by image, of the same images.
        score: boxes of `before` below it are left aside.
    """
    moved: list[float] = []
    for one, other in zip(before, now, strict=True):
        one = one[one.score >= score]
        if not len(one) or not len(other):
            continue
        overlap = iou_matrix(one.xyxy, other.xyxy)
        overlap = overlap * (one.class_id[:, None] == other.class_id[None, :])
        partner = overlap.argmax(axis=1)
        close = overlap[np.arange(len(one)), partner] >= _PAIRED_IOU
        moved += (other.score[partner] - one.score)[close].tolist()
    return round(float(np.median(moved)), 5) if moved else None
