"""Detections painted onto a frame, legible from 320 pixels to 4K."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections

__all__ = ["colour", "draw", "ink"]

Colour = tuple[int, int, int]
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN = 0.618033988749895


@lru_cache(maxsize=1024)
def colour(class_id: int) -> Colour:
    """The BGR colour of a class: steps of the golden ratio keep neighbours' hues apart."""
    value = (1.0, 0.8, 0.6)[class_id // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(class_id * _GOLDEN % 1, 0.85, value)
    return round(blue * 255), round(green * 255), round(red * 255)


@lru_cache(maxsize=1024)
def ink(background: Colour) -> Colour:
    """Black or white, whichever contrasts more with a BGR background (WCAG 2.1, luminance)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (side / 255 for side in background)
    ]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    # Where both contrasts are equal: (L + .05) / .05 = 1.05 / (L + .05).
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def draw(
    frame: NDArray[np.uint8], detections: Detections, classes: Sequence[str]
) -> NDArray[np.uint8]:
    """A copy of a (H, W, 3) BGR frame with a box, name and score for each detection.

    The best detections are painted last, so that they lie on top; no box crosses a caption.
    """
    canvas: NDArray[np.uint8] = np.array(frame, np.uint8, order="C")
    height, width = canvas.shape[:2]
    side = max(height, width)
    line = max(2, round(side / 400))
    scale = max(0.4, side / 1500)
    order = np.argsort(detections.score, kind="stable")
    # Beyond the frame nothing is seen, and OpenCV draws slowly with huge coordinates.
    limit = (width, height) * 2
    corners = np.clip(np.nan_to_num(detections.xyxy), -line, np.add(limit, line)).round()
    for i in order:
        x1, y1, x2, y2 = (int(v) for v in corners[i])
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour(int(detections.class_id[i])), line)
    for i in order:
        label, corner = int(detections.class_id[i]), (int(corners[i, 0]), int(corners[i, 1]))
        _caption(canvas, (classes[label], f"{detections.score[i]:.2f}"), corner, label, scale)
    return canvas


@lru_cache(maxsize=1024)
def _plain(name: str) -> str:
    """ASCII, which is all that OpenCV's Hershey fonts know: letters lose their accents."""
    parts = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    bare = "".join(part for part in parts if not unicodedata.combining(part))
    return bare.encode("ascii", "replace").decode()


@lru_cache(maxsize=1024)
def _fitted(name: str, width: int, scale: float, stroke: int) -> str:
    """The name, cut where a caption of it would leave no room for the score."""
    name = _plain(name)
    for length in range(len(name), 0, -1):
        text = name if length == len(name) else f"{name[:length]}.."
        if cv2.getTextSize(f"{text} 0.00", _FONT, scale, stroke)[0][0] <= width:
            return text
    return ""


def _caption(
    canvas: NDArray[np.uint8],
    words: tuple[str, str],
    corner: tuple[int, int],
    class_id: int,
    scale: float,
) -> None:
    """A name and a score; where both are wider than the frame, the name is cut."""
    stroke = max(1, round(scale * 1.6))
    text = f"{_fitted(words[0], round(canvas.shape[1] * 0.97), scale, stroke)} {words[1]}".strip()
    (wide, high), below = cv2.getTextSize(text, _FONT, scale, stroke)
    margin = max(2, round(high * 0.25))
    box_h, box_w = high + below + 2 * margin, wide + 2 * margin
    height, width = canvas.shape[:2]
    # Above the box; inside it where the frame ends; never outside the frame.
    left = max(0, min(corner[0], width - box_w))
    top = corner[1] - box_h if corner[1] >= box_h else max(0, min(corner[1], height - box_h))
    cv2.rectangle(canvas, (left, top), (left + box_w, top + box_h), colour(class_id), -1)
    origin = (left + margin, top + margin + high)
    cv2.putText(canvas, text, origin, _FONT, scale, ink(colour(class_id)), stroke, cv2.LINE_AA)
