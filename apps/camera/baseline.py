"""The full-size detector beside the small one: how much faster that is, and what it misses."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.camera.stats import BaselineStats
from edge.data.classes import match_classes
from edge.detections import Detections, iou_matrix
from edge.errors import ArtifactError, DataError
from edge.measure.distribution import Distribution
from edge.runtime.detector import Detector
from edge.video.frame import Image

__all__ = ["Agreement", "AgreementStats", "Baseline", "agreed"]


def agreed(
    wanted: Detections, found: Detections, join: NDArray[np.int32], iou: float = 0.5
) -> NDArray[np.bool_]:
    """Return which of the boxes `wanted` are also in `found`; each of `found` counts once.

    As in VOC's evaluation the boxes take their turn by score, each the one it overlaps most.

    Args:
        wanted, found: of one frame.
        join: for each class of `wanted` the one of `found`, or -1.
        iou: smallest overlap, 0..1.
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


@dataclass(frozen=True)
class AgreementStats:
    """How two detectors agree; see `BaselineStats`."""

    agreement: float | None
    boxes: int
    iou: float
    by_class: dict[str, dict[str, float]]
    left_out: dict[str, int]


class Agreement:
    """Counts which of the baseline's boxes the small detector finds, by class and in all.

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

    def stats(self) -> AgreementStats:
        """Return the agreement so far."""
        boxes, hits = self._boxes.copy(), self._hits.copy()
        total = sum(boxes.values())
        return AgreementStats(
            agreement=sum(hits.values()) / total if total else None,
            boxes=total,
            iou=self._iou,
            by_class={
                self._names[label]: {"boxes": count, "agreement": hits[label] / count}
                for label, count in sorted(boxes.items())
            },
            left_out={self._names[label]: n for label, n in sorted(self._left_out.items())},
        )


class Baseline:
    """A second detector that runs on a share of the time, on the frames of the first.

    Args:
        detector: the full-size one.
        edge: the detector beside which it runs.
        share: of the time since the start that it may take, 0..1; 1 runs it on every frame.
    """

    def __init__(self, artifact: Path, detector: Detector, edge: Detector, share: float) -> None:
        self._artifact, self._detector, self._share = artifact, detector, share
        self._agreement = Agreement(detector.spec.classes, edge.spec.classes)
        self._own, self._edge = Distribution(), Distribution()
        self._start = time.monotonic()
        self.spent_s = 0.0

    def consider(self, image: Image, found: Detections, edge_ms: float) -> None:
        """Run on the frame too, if there is time left; `edge_ms` is what the small one took."""
        start = time.monotonic()
        if self._share < 1 and self.spent_s > self._share * (start - self._start):
            return
        wanted = self._detector(image)
        self._own.add(sum(self._detector.stages_ms.values()))
        self._edge.add(edge_ms)
        self._agreement.add(wanted, found)
        self.spent_s += time.monotonic() - start

    def stats(self) -> BaselineStats:
        """Return the speed of both on the same frames, by the median frame, and their agreement."""
        own, edge = self._own.percentiles((50,))[0], self._edge.percentiles((50,))[0]
        found = self._agreement.stats()
        return BaselineStats(
            artifact=str(self._artifact),
            labels=self._detector.manifest.labels,
            backend=self._detector.backend.name,
            frames=self._own.count,
            share=self._share,
            fps=1e3 / own if own else 0.0,
            fps_edge=1e3 / edge if edge else 0.0,
            speedup=own / edge if edge else None,
            agreement=found.agreement,
            boxes=found.boxes,
            iou=found.iou,
            by_class=found.by_class,
            left_out=found.left_out,
        )
