"""Weighted box fusion: several views' detections of one picture joined to one set of boxes.

Solovyev, Wang, Gabruseva: Weighted boxes fusion (arXiv:1910.13302). Where suppression keeps the
best box and drops the others, fusion takes their mean, weighted by score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections, iou_matrix

__all__ = ["fuse"]

Floats = NDArray[np.float64]


def fuse(views: Sequence[Detections], iou: float = 0.55) -> Detections:
    """Join detections that several views of one picture gave.

    Boxes of one class that overlap a group's mean box by more than `iou` join the group; its box is
    the mean of its boxes weighted by score, its score the mean score, lowered in proportion where
    fewer boxes than views found it.

    Args:
        views: detections of each view, in pixels of the same picture.

    Returns:
        Detections, the best first.
    """
    class_id = np.concatenate([view.class_id for view in views])
    xyxy = np.concatenate([view.xyxy for view in views]).astype(np.float64)
    score = np.concatenate([view.score for view in views]).astype(np.float64)
    found: list[tuple[Floats, float, int]] = []
    for label in np.unique(class_id):
        chosen = class_id == label
        boxes, scores = _fused(xyxy[chosen], score[chosen], iou, len(views))
        found += [(box, one, int(label)) for box, one in zip(boxes, scores, strict=True)]
    found.sort(key=lambda one: -one[1])
    return Detections(
        np.array([one[0] for one in found], np.float32).reshape(-1, 4),
        np.array([one[1] for one in found], np.float32),
        np.array([one[2] for one in found], np.int32),
    )


def _fused(xyxy: Floats, score: Floats, iou: float, views: int) -> tuple[Floats, Floats]:
    """Mean boxes (G, 4) and scores (G,) of the groups of one class."""
    means = np.empty_like(xyxy)
    weighted = np.zeros_like(xyxy)
    total, members = np.zeros(len(xyxy)), np.zeros(len(xyxy), int)
    groups = 0
    for i in np.argsort(-score, kind="stable"):
        overlaps = iou_matrix(xyxy[i], means[:groups])[0]
        group = int(overlaps.argmax()) if groups else -1
        if group < 0 or overlaps[group] <= iou:
            group, groups = groups, groups + 1
        weighted[group] += score[i] * xyxy[i]
        total[group] += score[i]
        members[group] += 1
        means[group] = weighted[group] / max(total[group], 1e-12)
    count = members[:groups]
    return means[:groups], total[:groups] / count * np.minimum(count, views) / views
