"""Detections painted onto a frame, legible from 320 pixels to 4K."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections

__all__ = ["colour", "draw", "ink"]

Colour = tuple[int, int, int]
# x1, y1, x2, y2 in pixels.
Box = tuple[int, int, int, int]
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN = 0.618033988749895
# Of the frame's shorter side: the height of a capital letter, and a line's width.
_LETTER, _LINE = 0.017, 1 / 400
_SMALLEST_LETTER = 8.5
# How much of a plate is colour; the rest lets the picture shine through.
_OPAQUE = 0.65
# What a place costs: by its turn, by how far the frame's edge moved it (in plates), by what share
# of it lies on another plate or on objects, and by what shares of objects it hides.
_LATER, _MOVED, _ON_PLATE, _ON_OBJECT, _ON_SMALL = 0.03, 0.06, 6.0, 0.6, 1.5


@lru_cache(maxsize=1024)
def colour(class_id: int) -> Colour:
    """Return the BGR colour of a class: steps of the golden ratio keep neighbours' hues apart."""
    value = (1.0, 0.8, 0.6)[class_id // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(class_id * _GOLDEN % 1, 0.85, value)
    return round(blue * 255), round(green * 255), round(red * 255)


@lru_cache(maxsize=1024)
def ink(background: Colour) -> Colour:
    """Return black or white, whichever contrasts more with a BGR background (WCAG 2.1)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (side / 255 for side in background)
    ]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    # Where both contrasts are equal: (L + .05) / .05 = 1.05 / (L + .05).
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def draw(
    frame: NDArray[np.uint8],
    detections: Detections,
    classes: Sequence[str],
    notes: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """Return a copy of a frame with a box, name and score for each detection.

    Names stand where they hide neither each other nor small objects, as far as there is room; the
    best detections choose first. Their plates are translucent, and all sizes follow the frame's
    shorter side.

    Args:
        frame: (H, W, 3) BGR uint8.
        classes: names of the detector's classes, such as `detector.spec.classes`.
        notes: a text for each detection, put before its name, such as the number of a track.
    """
    canvas: NDArray[np.uint8] = np.array(frame, np.uint8, order="C")
    height, width = canvas.shape[:2]
    line = max(2, round(min(height, width) * _LINE))
    order = np.argsort(detections.score, kind="stable")
    # Beyond the frame nothing is seen, and OpenCV draws slowly with huge coordinates.
    limit = (width, height) * 2
    corners = np.clip(np.nan_to_num(detections.xyxy), -line, np.add(limit, line)).round()
    boxes: list[Box] = [(int(a), int(b), int(c), int(d)) for a, b, c, d in corners]
    for i in order:
        x1, y1, x2, y2 = boxes[i]
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour(int(detections.class_id[i])), line)
    style = _style(height, width)
    every = np.array(boxes, np.float64).reshape(-1, 4)
    taken = np.zeros((len(boxes), 4))
    plates: list[tuple[int, Box, str]] = []
    for i in order[::-1]:
        label = int(detections.class_id[i])
        note = notes[i] if len(notes) else ""
        text = _words(note, classes[label], f"{detections.score[i]:.2f}", width, style)
        known = taken[: len(plates)]
        place = _place(boxes[i], style.size(text), (height, width), known, every, line)
        taken[len(plates)] = place
        plates.append((label, place, text))
    # The best ones are painted last, and lie on top.
    for label, place, text in plates[::-1]:
        _plate(canvas, place, text, colour(label), style)
    return canvas


@dataclass(frozen=True)
class _Style:
    """How letters look on a frame: OpenCV's scale, the stroke, and the space around a text."""

    scale: float
    stroke: int
    margin: int

    def size(self, text: str) -> tuple[int, int]:
        """Width and height of a plate with a text."""
        (wide, high), below = cv2.getTextSize(text or "0", _FONT, self.scale, self.stroke)
        return wide + 2 * self.margin, high + below // 2 + 2 * self.margin


@lru_cache(maxsize=64)
def _style(height: int, width: int) -> _Style:
    letter = max(_SMALLEST_LETTER, min(height, width) * _LETTER)
    # Hershey's capitals are 21 units high at scale 1, strokes aside.
    scale = letter / 21.0
    return _Style(scale, max(1, round(letter / 9)), max(2, round(letter * 0.28)))


@lru_cache(maxsize=1024)
def _plain(name: str) -> str:
    """Return ASCII, which is all that OpenCV's Hershey fonts have: letters lose their accents."""
    parts = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    bare = "".join(part for part in parts if not unicodedata.combining(part))
    return bare.encode("ascii", "replace").decode()


@lru_cache(maxsize=1024)
def _fitted(name: str, rest: int, width: int, style: _Style) -> str:
    """Return the name, cut where it would leave no room for the rest of its plate."""
    name = _plain(name)
    for length in range(len(name), 0, -1):
        text = name if length == len(name) else f"{name[:length]}.."
        if style.size(f"{text} {'0' * rest}")[0] <= width:
            return text
    return ""


def _words(note: str, name: str, score: str, width: int, style: _Style) -> str:
    note = _plain(note)
    rest = len(score) + len(note) + bool(note)
    fitted = _fitted(name, rest, round(width * 0.97), style)
    return " ".join(word for word in (note, fitted, score) if word)


def _place(
    box: Box,
    size: tuple[int, int],
    hw: tuple[int, int],
    taken: NDArray[np.float64],
    boxes: NDArray[np.float64],
    line: int,
) -> Box:
    """Return where a plate hides least: around its box, then inside it, then a step away.

    Args:
        taken: (T, 4), plates that are placed already.
        boxes: (N, 4), all boxes.
    """
    wide, high = size
    x1, y1, x2, y2 = box
    lefts = (x1 - line // 2, x2 - wide, (x1 + x2 - wide) // 2)
    above, below, further = y1 - high, y2 + 1, (y1 - 2 * high - 1, y2 + high + 2)
    spots = [(left, above) for left in lefts]
    spots += [(x, y) for y in (y1, y2 - high) for x in (x1 - wide, x2 + 1)]
    spots += [(left, below) for left in lefts]
    spots += [(left, top) for top in (y1, y2 - high) for left in lefts]
    spots += [(left, top) for top in further for left in lefts]
    asked = np.array(spots, np.float64)
    at = np.clip(asked, 0, (max(0, hw[1] - wide), max(0, hw[0] - high)))
    plates = np.hstack([at, at + np.array((wide, high))])
    area = max(1.0, float(wide * high))
    cost = np.arange(len(spots)) * _LATER + _MOVED * np.abs(at - asked).sum(axis=1) / high
    cost += _ON_PLATE * _overlaps(plates, taken).sum(axis=1) / area
    hidden = _overlaps(plates, boxes)
    sizes = np.maximum(1.0, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    # What share of the plate lies on objects, and what share of each object lies under it.
    cost += _ON_OBJECT * hidden.sum(axis=1) / area + _ON_SMALL * (hidden / sizes).sum(axis=1)
    left, top = (int(value) for value in at[int(cost.argmin())])
    return left, top, left + wide, top + high


def _overlaps(mine: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (M, N), the pixels that each of `mine` has in common with each of `others`."""
    low = np.maximum(mine[:, None, :2], others[None, :, :2])
    high = np.minimum(mine[:, None, 2:], others[None, :, 2:])
    common: NDArray[np.float64] = np.clip(high - low, 0, None).prod(axis=2)
    return common


def _plate(canvas: NDArray[np.uint8], place: Box, text: str, back: Colour, style: _Style) -> None:
    left, top, right, bottom = place
    under = canvas[max(0, top) : bottom, max(0, left) : right]
    if under.size:
        solid = np.full_like(under, back)
        cv2.addWeighted(solid, _OPAQUE, under, 1 - _OPAQUE, 0, dst=under)
    (_, high), _ = cv2.getTextSize(text or "0", _FONT, style.scale, style.stroke)
    origin = (left + style.margin, top + style.margin + high)
    cv2.putText(canvas, text, origin, _FONT, style.scale, ink(back), style.stroke, cv2.LINE_AA)
