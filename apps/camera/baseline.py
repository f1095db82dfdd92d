"""The full-size detector on a share of the frames: how much faster, and what is lost."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.data.classes import match_classes
from edge.detections import Detections, iou_matrix
from edge.errors import ArtifactError, DataError
from edge.measure.distribution import Distribution
from edge.runtime.detector import Detector
from edge.video.frame import Image

__all__ = ["Agreement", "Baseline", "agreed"]


def agreed(
    wanted: Detections, found: Detections, join: NDArray[np.int32], iou: float = 0.5
) -> NDArray[np.bool_]:
    """Which of the boxes `wanted` also stand in `found`; each of `found` counts for one at most.

    As in VOC's evaluation the boxes take their turn by score, each the one it overlaps most.

    Args:
        wanted, found: of one frame.
        join: for each class of `wanted` the one of `found`, or -1.
        iou: the least overlap, 0..1.
    """
    overlap = iou_matrix(wanted.xyxy, found.xyxy)
    overlap[join[wanted.class_id][:, None] != found.class_id[None, :]] = 0
    hit = np.zeros(len(wanted), bool)
    for row in np.argsort(-wanted.score, kind="stable") if len(found) else ():
        best = int(overlap[row].argmax())
        if overlap[row, best] >= iou:
            hit[row] = True
            overlap[:, best] = 0
    return hit


class Agreement:
    """The share of the baseline's boxes that the small detector finds, by class and in all.

    Boxes of classes that the small detector does not have are counted as `left_out` only.

    Raises:
        ArtifactError: the two detectors share no class.
    """

    def __init__(self, wanted: tuple[str, ...], found: tuple[str, ...], iou: float = 0.5) -> None:
        try:
            self._join = match_classes(wanted, found)
        except DataError as error:
            raise ArtifactError(
                f"baseline and detector share no class, so nothing can agree: "
                f"{', '.join(wanted[:5])} against {', '.join(found[:5])}"
            ) from error
        self._names, self._iou = wanted, iou
        self._boxes: Counter[int] = Counter()
        self._hits: Counter[int] = Counter()
        self._left_out: Counter[int] = Counter()

    def add(self, wanted: Detections, found: Detections) -> None:
        """Compare one frame."""
        known = self._join[wanted.class_id] >= 0
        self._left_out.update(wanted.class_id[~known].tolist())
        wanted = wanted[known]
        hit = agreed(wanted, found, self._join, self._iou)
        self._boxes.update(wanted.class_id.tolist())
        self._hits.update(wanted.class_id[hit].tolist())

    def figures(self) -> dict[str, Any]:
        """`agreement` (0..1, None without boxes), `boxes`, `by_class`, `left_out`."""
        boxes, hits = self._boxes.copy(), self._hits.copy()
        total = sum(boxes.values())
        return {
            "agreement": sum(hits.values()) / total if total else None,
            "boxes": total,
            "iou": self._iou,
            "by_class": {
                self._names[label]: {"boxes": count, "agreement": hits[label] / count}
                for label, count in sorted(boxes.items())
            },
            "left_out": {self._names[label]: n for label, n in sorted(self._left_out.items())},
        }


class Baseline:
    """A second detector that may spend a share of the time, on the frames of the first.

    Args:
        detector: the full-size one.
        edge: the one beside which it runs.
        share: of the time since the start, 0..1; 1: every frame.
    """

    def __init__(self, artifact: Path, detector: Detector, edge: Detector, share: float) -> None:
        self._artifact, self._detector, self._share = artifact, detector, share
        self._agreement = Agreement(detector.spec.classes, edge.spec.classes)
        self._own, self._edge = Distribution(), Distribution()
        self._start = time.monotonic()
        self.spent_s = 0.0

    def consider(self, image: Image, found: Detections, edge_ms: float) -> None:
        """Look at the frame too, if there is time left; `edge_ms` is what the first one took."""
        start = time.monotonic()
        if self._share < 1 and self.spent_s > self._share * (start - self._start):
            return
        wanted = self._detector(image)
        self._own.add(sum(self._detector.stages_ms.values()))
        self._edge.add(edge_ms)
        self._agreement.add(wanted, found)
        self.spent_s += time.monotonic() - start

    def figures(self) -> dict[str, Any]:
        """Frames a second of both on the same frames (of the median frame), speed-up, agreement."""
        own, edge = self._own.percentiles((50,))[0], self._edge.percentiles((50,))[0]
        return {
            "artifact": str(self._artifact),
            "labels": list(self._detector.manifest.labels),
            "backend": self._detector.backend.name,
            "frames": self._own.count,
            "share": self._share,
            "fps": 1e3 / own if own else 0.0,
            "fps_edge": 1e3 / edge if edge else 0.0,
            "speedup": own / edge if edge else None,
            **self._agreement.figures(),
        }


def baseline_line(baseline: dict[str, Any]) -> str:
    """How the app compares with its baseline, in one line."""
    share = baseline["agreement"]
    found = "no boxes yet" if share is None else f"finds {share:.0%} of {baseline['boxes']} boxes"
    return f"baseline {baseline['fps']:.1f} FPS, {baseline['speedup']:.2f}x as fast, {found}"
