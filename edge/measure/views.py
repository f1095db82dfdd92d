"""Several views of one picture at test time: flipped, scaled and shifted, joined by box fusion.

A network looks at each view on its own, so this costs one run a view. What it gains is measured by
`edge evaluate --tta` and `edge robustness --tta`; a camera can rarely afford it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.errors import DataError
from edge.fusion import fuse

__all__ = ["VIEWS", "read_views", "with_views"]

Frame = NDArray[np.uint8]
Look = Callable[[Frame], Detections]
# By name: (mirrored, scale about the centre, shift right and down in shares of the sides).
VIEWS: dict[str, tuple[bool, float, float, float]] = {
    "plain": (False, 1.0, 0.0, 0.0),
    "flip": (True, 1.0, 0.0, 0.0),
    "small": (False, 0.8, 0.0, 0.0),
    "large": (False, 1.25, 0.0, 0.0),
    "left": (False, 1.0, -0.02, 0.0),
    "right": (False, 1.0, 0.02, 0.0),
    "up": (False, 1.0, 0.0, -0.02),
    "down": (False, 1.0, 0.0, 0.02),
}


def read_views(words: str) -> tuple[str, ...]:
    """Read names of views with commas between; `plain` is always among them.

    Raises:
        DataError: no such view.
    """
    names = [word.strip() for word in words.split(",") if word.strip()]
    wrong = [name for name in names if name not in VIEWS]
    if wrong:
        raise DataError(f"{wrong[0]}: no such view; known: {', '.join(VIEWS)}")
    return tuple(dict.fromkeys(["plain", *names]))


def with_views(look: Look, views: Sequence[str], iou: float = 0.55) -> Look:
    """Return a detector that looks at every view of a frame and joins what it finds.

    Args:
        look: detections in a (H, W, 3) BGR uint8 frame, in its pixels.
        views: names of `VIEWS`.
        iou: overlap from which boxes of two views are one object.
    """
    if tuple(views) == ("plain",):
        return look

    def every(frame: Frame) -> Detections:
        return fuse([_seen(look, frame, *VIEWS[name]) for name in views], iou)

    return every


def _seen(
    look: Look, frame: Frame, mirrored: bool, scale: float, right: float, down: float
) -> Detections:
    """What `look` finds in one view, in pixels of the frame; what lies outside it is left out."""
    height, width = frame.shape[:2]
    shift = np.array(
        ((1 - scale) * width / 2 + right * width, (1 - scale) * height / 2 + down * height)
    )
    view = frame
    if scale != 1 or right or down:
        # Pixel centres lie at .5.
        move = scale * 0.5 - 0.5 + shift
        matrix = np.array(((scale, 0, move[0]), (0, scale, move[1])))
        moved = cv2.warpAffine(
            frame, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        view = np.asarray(moved, np.uint8)
    if mirrored:
        view = np.ascontiguousarray(view[:, ::-1])
    found = look(view)
    xyxy = found.xyxy.astype(np.float64)
    if mirrored:
        xyxy[:, [0, 2]] = width - xyxy[:, [2, 0]]
    xyxy = (xyxy - np.tile(shift, 2)) / scale
    centre = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    inside = ((centre >= 0) & (centre <= (width, height))).all(axis=1)
    return Detections(xyxy.astype(np.float32), found.score, found.class_id)[inside]
