"""Scenery of the built-in world that has no label but may hide what has one."""

from __future__ import annotations

import math

import numpy as np

from edge.data.world.cast import Actor, Furniture
from edge.data.world.draw import Camera, Canvas, Colour, Light, fill, fixed, flat, tone

__all__ = ["paint_furniture", "paint_post"]

# Of a tree: metres to the right, height, radius, and how light it is.
_CROWN = ((0.0, 3.6, 1.3, 0.8), (-0.6, 3.2, 0.9, 0.95), (0.5, 4.2, 0.9, 1.1))


def paint_furniture(canvas: Canvas, item: Furniture, light: Light, camera: Camera) -> None:
    """Paint a tree, a lamp post or a bin."""
    if item.kind == "tree":
        _bar(canvas, (item.x - 0.12, 0, 0.24, 2.6), item.z, (45, 60, 75), light, camera)
        for dx, y, radius, depth in _CROWN:
            b, g, r = (part * depth for part in item.colour)
            place = (item.x + dx * item.size, y, item.z)
            _ball(canvas, place, radius * item.size, (b, g, r), light, camera)
    elif item.kind == "post":
        _bar(canvas, (item.x - 0.07, 0, 0.14, 6.0), item.z, item.colour, light, camera)
        arm = -1.3 if item.x > 0 else 0.0
        _bar(canvas, (item.x + arm, 5.9, 1.3, 0.12), item.z, item.colour, light, camera)
        lamp = (100, 200, 250) if light.night else (215, 215, 210)
        dim = Light((1, 1, 1), 0, light.haze, 0, light.night)
        _bar(canvas, (item.x + arm, 5.78, 0.5, 0.12), item.z, lamp, dim, camera)
    else:
        _bar(canvas, (item.x - 0.28, 0, 0.56, 1.0 * item.size), item.z, item.colour, light, camera)
        _bar(canvas, (item.x - 0.32, item.size, 0.64, 0.1), item.z, (60, 60, 60), light, camera)


def paint_post(canvas: Canvas, actor: Actor, half: float, light: Light, camera: Camera) -> None:
    """Paint what carries a traffic light: a post beside the road, and an arm where it needs one."""
    side = 1 if actor.x > 0 else -1
    foot = actor.x if abs(actor.x) > half else side * (half + 0.4)
    z, grey = actor.z + 0.1, (70, 72, 70)
    _bar(canvas, (foot - 0.07, 0, 0.14, 4.2), z, grey, light, camera)
    if foot != actor.x:
        left = min(foot, actor.x)
        _bar(canvas, (left, 4.1, abs(foot - actor.x), 0.14), z, grey, light, camera)


def _bar(
    canvas: Canvas,
    place: tuple[float, float, float, float],
    z: float,
    colour: Colour,
    light: Light,
    camera: Camera,
) -> None:
    """An upright rectangle: left, bottom, width, height in metres."""
    x, y, wide, high = place
    corners = ((x, y, z), (x + wide, y, z), (x + wide, y + high, z), (x, y + high, z))
    fill(canvas, flat(camera, corners), tone(colour, z, light))


def _ball(
    canvas: Canvas,
    centre: tuple[float, float, float],
    radius: float,
    colour: Colour,
    light: Light,
    camera: Camera,
) -> None:
    angle = np.arange(11) * (2 * math.pi / 11)
    rough = radius * (1 + 0.08 * np.cos(angle * 4))
    x, y, z = centre
    rim = np.stack([x + rough * np.cos(angle), y + rough * np.sin(angle), np.full(11, z)], axis=1)
    fill(canvas, fixed(camera.project(rim)), tone(colour, z, light))
