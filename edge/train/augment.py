"""Changes of a labelled picture in which every box follows its pixels.

Pictures are (H, W, 3) uint8 BGR. Boxes are (N, 5) float32: class, then x1, y1, x2, y2 in pixels
of the picture, pixel edges at whole numbers. Class `IGNORE` marks a region that is neither right
nor wrong. All randomness comes from the generator that is passed, so a seed repeats everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

__all__ = [
    "IGNORE",
    "Augmentation",
    "Labelled",
    "augment",
    "contrast",
    "flip",
    "hsv",
    "mosaic",
    "noise",
    "placement",
    "sharpness",
    "warp",
]

IGNORE = -1.0
Pixels = NDArray[np.uint8]
Boxes = NDArray[np.float32]
Matrix = NDArray[np.float64]


class Labelled(NamedTuple):
    """A picture and its boxes."""

    image: Pixels
    boxes: Boxes


@dataclass(frozen=True)
class Augmentation:
    """How far each random change may go; 0 switches it off.

    Attributes:
        flip: probability of a mirror image.
        scale: smallest and largest size, relative to the picture fitted into the input.
        aspect: largest factor by which one side is stretched against the other; 1: none.
        shift: largest shift, as a share of the input's sides.
        degrees: largest rotation, up to 45.
        hue, saturation, value: largest change; hue in degrees, the others as a share.
        contrast, sharpness: largest change, as a share; negative sharpness blurs.
        noise: largest standard deviation, in grey levels.
        mosaic: probability that four pictures are joined into one.
        visible: share of a box that must stay in the picture; of a box with less, the rest is
            ignored.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.5, 1.5)
    aspect: float = 1.2
    shift: float = 0.2
    degrees: float = 0.0
    hue: float = 12.0
    saturation: float = 0.5
    value: float = 0.35
    contrast: float = 0.25
    sharpness: float = 0.5
    noise: float = 6.0
    mosaic: float = 0.5
    visible: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 45:
            raise ValueError(f"degrees is {self.degrees}; boxes follow rotations up to 45")
        if not 0 < self.scale[0] <= self.scale[1] or self.aspect < 1:
            raise ValueError(f"scale {self.scale} must rise from above 0, aspect start at 1")
        shares = {
            name: getattr(self, name) for name in ("flip", "mosaic", "visible", "contrast", "value")
        }
        for name, value in {**shares, "saturation": self.saturation}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it takes a number from 0 to 1")
        if not all(0 <= x < math.inf for x in (self.shift, self.hue, self.sharpness, self.noise)):
            raise ValueError("shift, hue, sharpness and noise must be finite and not negative")
        if not self.scale[1] < math.inf or not self.aspect < math.inf:
            raise ValueError("scale and aspect must be finite")

    def __str__(self) -> str:
        """Return the values as `--augment` takes them."""
        low, high = self.scale
        values = {
            field.name: f"{getattr(self, field.name):g}"
            for field in fields(self)
            if field.name != "scale"
        } | {"scale": f"{low:g}:{high:g}"}
        return ",".join(f"{field.name}={values[field.name]}" for field in fields(self))


def flip(picture: Labelled) -> Labelled:
    """Return the mirror image, left and right exchanged."""
    boxes = picture.boxes.copy()
    boxes[:, (1, 3)] = picture.image.shape[1] - picture.boxes[:, (3, 1)]
    return Labelled(np.ascontiguousarray(picture.image[:, ::-1]), boxes)


def placement(
    source_hw: tuple[int, int],
    target_hw: tuple[int, int],
    options: Augmentation,
    rng: Generator,
) -> Matrix:
    """Return a random 2x3 matrix from pixels of the source to pixels of the target.

    Without any change it fits the source into the middle of the target and keeps its aspect ratio;
    scale, stretch, rotation and shift come on top. A scale above 1 crops.
    """
    (height, width), (high, wide) = source_hw, target_hw
    fit = min(high / height, wide / width)
    size = fit * np.exp(rng.uniform(*np.log(options.scale)))
    stretch = np.exp(rng.uniform(-1, 1) * np.log(options.aspect) / 2)
    turn = np.deg2rad(rng.uniform(-1, 1) * options.degrees)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = spin @ np.diag((size * stretch, size / stretch))
    shift = rng.uniform(-1, 1, 2) * options.shift * (wide, high)
    offset = np.array((wide / 2, high / 2)) + shift - linear @ (width / 2, height / 2)
    return np.column_stack((linear, offset))


def warp(
    picture: Labelled,
    matrix: Matrix,
    target_hw: tuple[int, int],
    pad: int = 128,
    visible: float = 0.3,
    onto: Pixels | None = None,
) -> Labelled:
    """Draw the picture through a 2x3 `matrix` of pixel edges on a ground of `pad`, or over `onto`.

    A box becomes the upright hull of its four corners, clipped; one of which less than `visible`
    stays is ignored, one that leaves altogether is dropped.
    """
    height, width = target_hw
    # OpenCV counts from pixel centres.
    centres = matrix.copy()
    centres[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    image = np.full((height, width, 3), pad, np.uint8) if onto is None else onto
    border = cv2.BORDER_TRANSPARENT
    cv2.warpAffine(
        picture.image, centres, (width, height), image, cv2.INTER_LINEAR, borderMode=border
    )
    return Labelled(image, _follow(picture.boxes, matrix, target_hw, visible))


def _follow(boxes: Boxes, matrix: Matrix, hw: tuple[int, int], visible: float) -> Boxes:
    corners = boxes[:, [1, 2, 3, 2, 3, 4, 1, 4]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    return _clip(boxes[:, 0], corners.min(axis=1), corners.max(axis=1), hw, visible)


def _clip(
    label: NDArray[Any], low: NDArray[Any], high: NDArray[Any], hw: tuple[int, int], visible: float
) -> Boxes:
    top = np.array((hw[1], hw[0]))
    low_in, high_in = np.clip(low, 0, top), np.clip(high, 0, top)
    left = (high_in - low_in).prod(axis=1)
    share = left / np.maximum((high - low).prod(axis=1), 1e-9)
    label = np.where(share < visible, IGNORE, label)
    kept: Boxes = np.column_stack((label, low_in, high_in))[left > 0].astype(np.float32)
    return kept


def hsv(image: Pixels, degrees: float, saturation: float, value: float) -> Pixels:
    """Turn the hue by `degrees` of 360, multiply saturation and value by 1 + their numbers."""
    level = np.arange(256)
    tables = [(level + degrees / 2) % 180, level * (1 + saturation), level * (1 + value)]
    table = np.clip(np.stack(tables, axis=1), 0, 255).astype(np.uint8)[None]
    turned = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table)
    return np.asarray(cv2.cvtColor(turned, cv2.COLOR_HSV2BGR), np.uint8)


def contrast(image: Pixels, amount: float) -> Pixels:
    """Move every level away from 128 by a factor of 1 + `amount`."""
    table = np.clip((np.arange(256) - 128) * (1 + amount) + 128, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table), np.uint8)


def sharpness(image: Pixels, amount: float) -> Pixels:
    """Add `amount` times the picture's difference from a soft one; negative amounts blur."""
    soft = cv2.GaussianBlur(image, (0, 0), 1.0)
    return np.asarray(cv2.addWeighted(image, 1 + amount, soft, -amount, 0), np.uint8)


def noise(image: Pixels, deviation: float, rng: Generator) -> Pixels:
    """Add normal noise of a standard deviation in grey levels."""
    # One tile of noise, moved about: drawing it afresh for every pixel takes longer than all else.
    tile = rng.normal(0, deviation, (64, 64, 3))
    height, width = image.shape[:2]
    whole = np.tile(tile, (-(-height // 64), -(-width // 64), 1))[:height, :width]
    return np.clip(image + np.rint(whole), 0, 255).astype(np.uint8)


def mosaic(
    pictures: Sequence[Labelled],
    target_hw: tuple[int, int],
    options: Augmentation,
    rng: Generator,
    pad: int = 128,
) -> Labelled:
    """Join four pictures, each through its own `placement`, around a random point (YOLOv4).

    Raises:
        ValueError: not four pictures.
    """
    if len(pictures) != 4:
        raise ValueError(f"a mosaic takes 4 pictures, not {len(pictures)}")
    high, wide = target_hw
    x, y = (round(side * rng.uniform(0.3, 0.7)) for side in (wide, high))
    image = np.full((high, wide, 3), pad, np.uint8)
    found = []
    low, most = options.scale
    quarter = replace(options, scale=(0.7 * low, 0.7 * most))
    spans = ((0, 0, x, y), (x, 0, wide, y), (0, y, x, high), (x, y, wide, high))
    for picture, (left, top, right, bottom) in zip(pictures, spans, strict=True):
        hw = (bottom - top, right - left)
        # Larger than its quarter: at half their size most small objects would be lost.
        source = picture.image.shape[:2]
        matrix = placement((source[0], source[1]), target_hw, quarter, rng)
        matrix[:, 2] += ((hw[1] - wide) / 2, (hw[0] - high) / 2)
        part = warp(picture, matrix, hw, pad, options.visible)
        image[top:bottom, left:right] = part.image
        found.append(part.boxes + np.array((0, left, top, left, top), np.float32))
    return Labelled(image, np.concatenate(found))


def augment(
    pictures: Sequence[Labelled],
    index: int,
    target_hw: tuple[int, int],
    options: Augmentation,
    rng: Generator,
    pad: int = 128,
) -> Labelled:
    """Return picture `index` at the input's size, changed at random; a mosaic takes three more."""
    if rng.random() < options.mosaic:
        others = rng.integers(len(pictures), size=3).tolist()
        chosen = [pictures[i] for i in (index, *others)]
        made = mosaic([chosen[i] for i in rng.permutation(4)], target_hw, options, rng, pad)
    else:
        hw = pictures[index].image.shape[:2]
        matrix = placement((hw[0], hw[1]), target_hw, options, rng)
        made = warp(pictures[index], matrix, target_hw, pad, options.visible)
    if rng.random() < options.flip:
        made = flip(made)
    return Labelled(_recolour(made.image, options, rng), made.boxes)


def _recolour(image: Pixels, options: Augmentation, rng: Generator) -> Pixels:
    hue, saturation, value, stark, sharp = rng.uniform(-1, 1, 5)
    image = hsv(image, hue * options.hue, saturation * options.saturation, value * options.value)
    if options.contrast:
        image = contrast(image, stark * options.contrast)
    if options.sharpness:
        image = sharpness(image, sharp * options.sharpness)
    if options.noise:
        image = noise(image, options.noise * rng.random() ** 2, rng)
    return image
