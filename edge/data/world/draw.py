"""Paints bodies onto a canvas whose fourth channel says, pixel by pixel, who is seen there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.world.shapes import LAMP, Figure, Solid

__all__ = [
    "Camera",
    "Canvas",
    "Colour",
    "Light",
    "Pose",
    "fill",
    "fixed",
    "flat",
    "lamps_seen",
    "paint_body",
    "paint_shadow",
    "shade",
    "tone",
]

Colour = tuple[float, float, float]
Canvas = NDArray[np.uint8]
NEAREST = 0.6  # metres; corners closer than this are moved here instead of behind the camera
_BITS = 4  # OpenCV draws at 1/16 pixel
_ONE = 1 << _BITS


@dataclass(frozen=True)
class Camera:
    """A pinhole that looks along z; `eye_xy` is where it stands, metres, the rest pixels."""

    hw: tuple[int, int]
    focal: float
    centre_x: float
    horizon: float
    eye_xy: tuple[float, float]

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (..., 3) in metres to pixels (..., 2)."""
        share = self.focal / np.maximum(points[..., 2], NEAREST)
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = self.centre_x + (points[..., 0] - self.eye_xy[0]) * share
        pixels[..., 1] = self.horizon + (self.eye_xy[1] - points[..., 1]) * share
        return pixels


@dataclass(frozen=True)
class Light:
    """What colours become at a distance: `ambient` and the own head lamps' `beam`, then haze."""

    ambient: Colour
    beam: float
    haze: Colour
    density: float
    night: bool


@dataclass(frozen=True)
class Pose:
    """Where a body stands: metres to the right and ahead, and its turn about the vertical."""

    x: float
    z: float
    yaw: float

    def place(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        turn = np.array([(cos, 0.0, -sin), (0.0, 1.0, 0.0), (sin, 0.0, cos)])
        placed: NDArray[np.float64] = points @ turn
        placed += (self.x, 0.0, self.z)
        return placed


def shade(colours: Any, z: Any, light: Light) -> NDArray[np.float64]:
    """Colours (..., 3) as they are seen at distances z (...) in metres."""
    z = np.asarray(z, np.float64)[..., None]
    clear = np.exp(-z * light.density)
    seen = np.asarray(colours) * (light.ambient + light.beam * np.exp(-z / 16))
    seen *= clear
    seen += (1 - clear) * light.haze
    return np.asarray(np.minimum(seen, 255.0, out=seen))


def tone(colour: Colour, z: float, light: Light) -> tuple[float, float, float, float]:
    """`shade` for one colour, with the fourth channel of what belongs to nobody."""
    clear, beam = math.exp(-z * light.density), light.beam * math.exp(-z / 16)
    b, g, r = (
        min(255.0, part * (ambient + beam) * clear + (1 - clear) * haze)
        for part, ambient, haze in zip(colour, light.ambient, light.haze, strict=True)
    )
    return b, g, r, 0.0


def flat(camera: Camera, corners: tuple[tuple[float, float, float], ...]) -> NDArray[np.int32]:
    """A few points in metres, none behind the camera, projected to fixed point."""
    found = []
    for x, y, z in corners:
        share = camera.focal / max(z, NEAREST)
        across = camera.centre_x + (x - camera.eye_xy[0]) * share
        down = camera.horizon + (camera.eye_xy[1] - y) * share
        found.append((round(_limit(across) * _ONE), round(_limit(down) * _ONE)))
    return np.array(found, np.int32)


def _limit(pixel: float) -> float:
    return min(max(pixel, -16000.0), 16000.0)


def fixed(pixels: NDArray[np.float64]) -> NDArray[np.int32]:
    """Pixels in OpenCV's fixed point, limited to where its arithmetic holds."""
    limited = np.minimum(np.maximum(pixels, -16000), 16000)
    return np.asarray(np.rint(limited * _ONE), np.int32)


def fill(canvas: Canvas, polygon: NDArray[np.int32], colour: Any) -> None:
    """Fill a convex polygon given in fixed point."""
    cv2.fillConvexPoly(canvas, polygon, colour, cv2.LINE_8, _BITS)


def _visible(corners: NDArray[np.int32]) -> bool:
    # Twice the area of the first two edges; upright corners seen from outside turn clockwise.
    (ax, ay), (bx, by), (cx, cy) = corners[0].tolist(), corners[1].tolist(), corners[2].tolist()
    return bool((bx - ax) * (cy - ay) < (by - ay) * (cx - ax))


def _paint_solid(
    canvas: Canvas, body: Solid, pixels: NDArray[np.int32], colours: list[Any]
) -> None:
    for (start, end), colour in zip(body.spans, colours, strict=True):
        corners = pixels[start:end]
        if _visible(corners):
            fill(canvas, corners, colour)


def _thick(radius: float, scale: float) -> int:
    return max(1, round(2 * radius * scale))


def _paint_figure(
    canvas: Canvas,
    body: Figure,
    placed: NDArray[np.float64],
    pixels: NDArray[np.int32],
    colours: Mapping[str, Any],
    scale: float,
) -> None:
    depth = placed[:, 2].tolist()
    spots = [tuple(spot) for spot in pixels.tolist()]
    limbs = sorted(body.limbs, key=lambda limb: -depth[limb[0]] - depth[limb[1]])
    middle = 2 * sum(depth[joint] for joint in body.trunk[0]) / len(body.trunk[0])
    behind = [limb for limb in limbs if depth[limb[0]] + depth[limb[1]] > middle]
    for limb in behind:
        _limb(canvas, limb, spots, colours, scale)
    fill(canvas, pixels[list(body.trunk[0])], colours[body.trunk[1]])
    for limb in limbs[len(behind) :]:
        _limb(canvas, limb, spots, colours, scale)


def _limb(
    canvas: Canvas,
    limb: tuple[int, int, float, str],
    spots: list[Any],
    colours: Mapping[str, Any],
    scale: float,
) -> None:
    a, b, radius, slot = limb
    if a == b:
        size = max(_ONE, round(radius * scale * _ONE))
        cv2.circle(canvas, spots[a], size, colours[slot], -1, cv2.LINE_8, _BITS)
    else:
        thick = _thick(radius, scale)
        cv2.line(canvas, spots[a], spots[b], colours[slot], thick, cv2.LINE_8, _BITS)


def _ring(body: Figure, index: int) -> NDArray[np.float64]:
    y, z, radius, _ = body.rings[index]
    angle = np.arange(16) * (math.pi / 8)
    return np.stack([np.zeros(16), y + radius * np.sin(angle), z + radius * np.cos(angle)], axis=1)


def _window(pixels: NDArray[np.float64], margin: float, hw: tuple[int, int]) -> tuple[int, ...]:
    """Left, top, right, bottom of the part of the image that a body can touch."""
    left, top = (np.floor(pixels.min(axis=0) - margin)).tolist()
    right, bottom = (np.ceil(pixels.max(axis=0) + margin)).tolist()
    bounds = max(left, 0), max(top, 0), min(right + 1, hw[1]), min(bottom + 1, hw[0])
    return tuple(int(bound) for bound in bounds)


def _colours(palette: Mapping[str, Colour], z: float, light: Light) -> dict[str, NDArray[Any]]:
    seen = shade(np.array(list(palette.values())), z, light)
    lit = dict(zip(palette, seen, strict=True))
    lit.update({slot: np.array(palette[slot], np.float64) for slot in LAMP if slot in palette})
    return lit


def _draw(
    sprite: Canvas,
    body: Solid | Figure,
    placed: NDArray[np.float64],
    pixels: NDArray[np.float64],
    lit: dict[str, NDArray[Any]],
    pose: Pose,
    camera: Camera,
    corner: tuple[int, int],
) -> None:
    scale = camera.focal / max(pose.z, NEAREST)
    if isinstance(body, Solid):
        tones = np.array([lit[slot] for slot in body.slots]) * body.shades[:, None]
        colours = np.concatenate([np.minimum(tones, 255), np.full((len(tones), 1), 255)], axis=1)
        _paint_solid(sprite, body, fixed(pixels - corner), colours.tolist())
        return
    opaque = {slot: (*tone.tolist(), 255) for slot, tone in lit.items()}
    for index, (*_, slot) in enumerate(body.rings):
        ring = fixed(camera.project(pose.place(_ring(body, index))) - corner)
        thick = _thick(0.035, scale)
        cv2.polylines(sprite, [ring], True, opaque[slot], thick, cv2.LINE_8, _BITS)
    _paint_figure(sprite, body, placed, fixed(pixels - corner), opaque, scale)


def paint_body(
    canvas: Canvas,
    body: Solid | Figure,
    pose: Pose,
    palette: Mapping[str, Colour],
    light: Light,
    camera: Camera,
    identity: int,
) -> tuple[tuple[int, int, int, int], int] | None:
    """Paint one body over what is there, and `identity` (1..255) into the fourth channel.

    Returns the exact box (xyxy) of all pixels that the body covers inside the image, whoever is
    painted over it later, and an estimate of the number of pixels it covers, those outside the
    image included; None where it lies outside.
    """
    placed = pose.place(body.points if isinstance(body, Solid) else body.joints)
    pixels = camera.project(placed)
    scale = camera.focal / max(pose.z, NEAREST)
    margin = 2.0 if isinstance(body, Solid) else 0.4 * scale + 2
    left, top, right, bottom = _window(pixels, margin, camera.hw)
    if left >= right or top >= bottom:
        return None
    sprite = np.zeros((bottom - top, right - left, 4), np.uint8)
    lit = _colours(palette, pose.z, light)
    _draw(sprite, body, placed, pixels, lit, pose, camera, (left, top))
    mask = np.ascontiguousarray(sprite[..., 3])
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return None
    sprite[..., 3] = identity
    cv2.copyTo(sprite, mask, canvas[top:bottom, left:right])
    box = (left + x, top + y, left + x + width, top + y + height)
    return box, round(cv2.countNonZero(mask) / _share_inside(pixels, box))


def _share_inside(pixels: NDArray[np.float64], box: tuple[int, ...]) -> float:
    """The share of a body's extent that lies inside the image, 0 < share <= 1."""
    width, height = np.maximum(pixels.max(axis=0) - pixels.min(axis=0), 1.0).tolist()
    return float(min(1.0, (box[2] - box[0]) * (box[3] - box[1]) / (width * height)))


def paint_shadow(
    canvas: Canvas, half: tuple[float, float], pose: Pose, light: Light, camera: Camera
) -> None:
    """Darken the ground under a body of half width and half length `half`, metres."""
    angle = np.arange(10) * (math.pi / 5)
    rim = np.stack([1.15 * half[0] * np.cos(angle), 0 * angle, 1.1 * half[1] * np.sin(angle)], 1)
    pixels = camera.project(pose.place(rim))
    left, top, right, bottom = _window(pixels, 1.0, camera.hw)
    if left >= right or top >= bottom:
        return
    mask = np.zeros((bottom - top, right - left), np.uint8)
    fill(mask, fixed(pixels - (left, top)), 255)
    region = canvas[top:bottom, left:right]
    keep = 0.75 if light.night else 0.55
    cv2.copyTo(cv2.multiply(region, (keep, keep, keep, 1.0)), mask, region)


def lamps_seen(
    canvas: Canvas, body: Solid, pose: Pose, camera: Camera, identity: int
) -> list[tuple[float, float, str]]:
    """Pixel (x, y) and slot of each lamp of a painted body that nothing stands in front of."""
    pixels = camera.project(pose.place(body.points))
    found = []
    for (start, end), slot in zip(body.spans, body.slots, strict=True):
        if slot not in LAMP or not _visible(fixed(pixels[start:end])):
            continue
        x, y = pixels[start:end].mean(axis=0).tolist()
        inside = 0 <= x < camera.hw[1] and 0 <= y < camera.hw[0]
        if inside and canvas[int(y), int(x), 3] == identity:
            found.append((x, y, slot))
    return found
