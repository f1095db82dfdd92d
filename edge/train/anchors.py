"""Anchor sizes from the boxes of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["kmeans_anchors", "shape_iou"]


def shape_iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """IoU of sizes (N, 2) with sizes (M, 2) laid on one centre: (N, M)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    inter = np.minimum(a[:, None], b[None]).prod(axis=2)
    return np.asarray(inter / (a.prod(axis=1)[:, None] + b.prod(axis=1)[None] - inter))


def kmeans_anchors(
    sizes: NDArray[Any], count: int, seed: int = 0, rounds: int = 100
) -> NDArray[np.float64]:
    """`count` (width, height) pairs, small to large by area, that fit `sizes` (N, 2) best.

    k-means under the distance 1 - IoU (YOLOv2, arXiv:1612.08242), centres moved to the mean.

    Raises:
        ValueError: fewer different sizes than anchors, or sizes without area.
    """
    sizes = np.asarray(sizes, np.float64)
    different = np.unique(sizes, axis=0)
    if len(different) < count or count < 1 or (sizes <= 0).any():
        raise ValueError(f"{count} anchors take at least as many different sizes, all positive")
    rng = np.random.default_rng(seed)
    centres = different[rng.choice(len(different), count, replace=False)]
    nearest = np.full(len(sizes), -1)
    for _ in range(rounds):
        now = shape_iou(sizes, centres).argmax(axis=1)
        if (now == nearest).all():
            break
        nearest = now
        for index in np.unique(nearest).tolist():
            centres[index] = sizes[nearest == index].mean(axis=0)
    return np.asarray(centres[centres.prod(axis=1).argsort()])
