"""The street of the built-in world: sky, ground, markings and two rows of buildings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edge.data.world.draw import Camera, Canvas, Light, fill, fixed, flat, shade, tone

__all__ = ["LENGTH", "Street", "make_street", "paint_backdrop", "paint_street"]

LENGTH = 132.0  # metres after which the buildings repeat
_BITS = 4


@dataclass(frozen=True, eq=False)
class Building:
    """One house: side of the street (-1, 1), span along it, height in m, colours, lit windows."""

    side: int
    span: tuple[float, float]
    height: float
    colour: tuple[float, float, float]
    glass: tuple[float, float, float]
    lit: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Street:
    """Half the road's width, the pavement's width, colours, houses, and whether people cross."""

    half: float
    pavement: float
    asphalt: tuple[float, float, float]
    paving: tuple[float, float, float]
    sky: tuple[tuple[float, float, float], tuple[float, float, float]]
    crossing_z: float
    buildings: tuple[Building, ...]


_WALLS: tuple[tuple[float, float, float], ...] = (
    (96, 120, 160),
    (150, 165, 175),
    (120, 130, 140),
    (80, 90, 120),
    (170, 185, 195),
)
_WALLS += ((90, 105, 115), (130, 150, 180), (110, 100, 95), (75, 100, 145))


def _buildings(rng: Generator) -> tuple[Building, ...]:
    found = []
    for side in (-1, 1):
        z = 0.0
        while z < LENGTH - 6:
            deep = min(float(rng.uniform(9, 20)), LENGTH - z)
            wall = np.array(_WALLS[int(rng.integers(len(_WALLS)))]) * rng.uniform(0.75, 1.15)
            glass = tuple((np.array((120, 105, 90)) * rng.uniform(0.5, 1.3)).tolist())
            gap = 2.5 if rng.random() < 0.25 else 0.0
            height = float(rng.uniform(6, 19))
            lit = rng.random((8, 12)) < 0.35
            colour = tuple(wall.tolist())
            found.append(Building(side, (z, z + deep - gap), height, colour, glass, lit))
            z += deep
    return tuple(found)


def make_street(rng: Generator, night: bool) -> Street:
    """A street; the same generator state gives the same street."""
    grey = float(rng.uniform(75, 115))
    pave = float(rng.uniform(125, 165))
    top = np.array((215.0, 165.0, 110.0)) * rng.uniform(0.75, 1.1)
    low = np.array((235.0, 225.0, 205.0)) * rng.uniform(0.85, 1.05)
    if rng.random() < 0.4:  # overcast
        top = low * 0.85
    if night:
        top, low = np.array((34.0, 20.0, 12.0)), np.array((62.0, 44.0, 36.0)) * rng.uniform(0.7, 1)
    return Street(
        half=float(rng.uniform(5.4, 7.2)),
        pavement=float(rng.uniform(2.6, 4.2)),
        asphalt=(grey * 1.03, grey, grey * 0.98),
        paving=(pave * 0.95, pave, pave * 1.02),
        sky=(tuple(np.minimum(top, 255).tolist()), tuple(np.minimum(low, 255).tolist())),
        crossing_z=float(rng.uniform(9, 22)) if rng.random() < 0.5 else float("inf"),
        buildings=_buildings(rng),
    )


def paint_backdrop(street: Street, light: Light, camera: Camera) -> Canvas:
    """Sky and ground (H, W, 4): what stays the same when the camera drives straight on."""
    height, width = camera.hw
    horizon = min(max(int(camera.horizon), 1), height - 1)
    top, low = np.array(street.sky[0]), np.array(street.sky[1])
    sky = top + (low - top) * np.linspace(0, 1, horizon)[:, None]
    below = np.arange(horizon, height) + 0.5 - camera.horizon
    z = camera.focal * camera.eye_xy[1] / np.maximum(below, 0.5)
    canvas = np.empty((height, width), np.uint32)
    canvas[:] = _rows(np.concatenate([sky, shade(street.paving, z, light)]))
    road = np.rint(shade(street.asphalt, z, light))
    for half, rows in ((street.half + 0.18, road // 2), (street.half, road)):
        mask = np.zeros((height, width), np.uint8)
        fill(mask, _ground(camera, -half, half, 1.0, 400.0), 1)
        np.copyto(canvas[horizon:], _rows(rows), where=mask[horizon:].view(np.bool_))
    return canvas.view(np.uint8).reshape(height, width, 4)


def _rows(colours: NDArray[np.float64]) -> NDArray[np.uint32]:
    """One colour (rows, 3) for each row of pixels, nobody's, as 32 bits to be spread across."""
    packed = np.zeros((len(colours), 4), np.uint8)
    packed[:, :3] = np.rint(colours)
    return packed.view(np.uint32)


def _ground(camera: Camera, left: float, right: float, near: float, far: float) -> Any:
    return flat(camera, ((left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)))


def paint_street(
    canvas: Canvas, street: Street, light: Light, camera: Camera, driven: float
) -> None:
    """Paint what passes by after `driven` metres: buildings and the road's markings."""
    shifted = []
    for building in street.buildings:
        start = (building.span[0] - driven) % LENGTH
        deep = building.span[1] - building.span[0]
        for near in (start, start - LENGTH):
            if near + deep > 3:
                shifted.append((max(near, 2.0), near + deep, near, building))
    for near, far, start, building in sorted(shifted, key=lambda item: -item[1]):
        _paint_building(canvas, street, building, (near, far, start), light, camera)
    _paint_markings(canvas, street, light, camera, driven)


def _paint_building(
    canvas: Canvas,
    street: Street,
    building: Building,
    span: tuple[float, float, float],
    light: Light,
    camera: Camera,
) -> None:
    near, far, start = span
    x = building.side * (street.half + street.pavement)
    roof, wall = building.height, building.colour
    side = flat(camera, ((x, 0, near), (x, 0, far), (x, roof, far), (x, roof, near)))
    dull = (wall[0] * 0.8, wall[1] * 0.8, wall[2] * 0.8)
    fill(canvas, side, tone(dull, (near + min(far, 60)) / 2, light))
    if start > 2.5:
        out = building.side * 60.0
        end = flat(camera, ((x, 0, near), (out, 0, near), (out, roof, near), (x, roof, near)))
        fill(canvas, end, tone(wall, near, light))
        if near < 60:
            _paint_windows(canvas, building, (False, x, near), light, camera)
    if near < 60:
        _paint_windows(canvas, building, (True, x, start), light, camera)


@lru_cache(maxsize=256)
def _window_grid(building: Building, along: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Runs (N, 4) and heights (N, 4) of the corners of a wall's windows; which are lit.

    A run is the distance from the building's near corner, along the street or on the end wall.
    """
    deep = building.span[1] - building.span[0]
    columns = max(1, min(12, int(deep / 2.6))) if along else 3
    rows = max(1, min(8, int((building.height - 1.2) / 2.9)))
    pitch, wide = (deep / columns, 0.45 * deep / columns) if along else (2.6, 1.2)
    row, column = np.divmod(np.arange(rows * columns), columns)
    a, y0 = (column + 0.28) * pitch, 1.0 + row * 2.9
    run = np.stack([a, a + wide, a + wide, a], axis=1)
    return np.stack([run, np.stack([y0, y0, y0 + 1.6, y0 + 1.6], 1)]), building.lit[row, column]


def _paint_windows(
    canvas: Canvas,
    building: Building,
    wall: tuple[bool, float, float],
    light: Light,
    camera: Camera,
) -> None:
    along, x, start = wall
    (run, height), lit = _window_grid(building, along)
    corners = np.empty((*run.shape, 3))
    corners[..., 0] = x if along else x + building.side * run
    corners[..., 1] = height
    corners[..., 2] = start + run if along else start
    pixels = fixed(camera.project(corners))
    seen = (corners[:, 0, 2] > 2.0) & (pixels[:, :2, 0].max(axis=1) > 0)
    seen &= pixels[:, :2, 0].min(axis=1) < camera.hw[1] * 16
    z = min(max(float(corners[:, 0, 2].mean()), 2.0), 60.0)
    bright = (90.0, 190.0, 235.0, 0.0) if light.night else tone((175, 165, 150), z, light)
    for mask, colour in ((~lit, tone(building.glass, z, light)), (lit, bright)):
        chosen = pixels[mask & seen]
        if len(chosen):
            cv2.fillPoly(canvas, list(chosen), colour, cv2.LINE_8, _BITS)


def _paint_markings(
    canvas: Canvas, street: Street, light: Light, camera: Camera, driven: float
) -> None:
    white = (205.0, 210.0, 210.0)
    for near in (np.arange(1, 13) * 6.0 - driven % 6.0).tolist():
        dash = _ground(camera, -0.07, 0.07, max(near, 1.2), near + 2.6)
        fill(canvas, dash, tone(white, near + 1.3, light))
    for x in (-street.half + 0.25, street.half - 0.4):
        for near, far in ((1.2, 5.0), (5.0, 12.0), (12.0, 30.0), (30.0, 90.0)):
            fill(canvas, _ground(camera, x, x + 0.15, near, far), tone(white, near * 1.4, light))
    ahead = (street.crossing_z - driven) % LENGTH if np.isfinite(street.crossing_z) else 0.0
    if 2.0 < ahead < 45.0:
        bars = np.arange(-street.half + 0.5, street.half - 0.6, 1.0)
        quads = [_ground(camera, x, x + 0.5, ahead, ahead + 2.6) for x in bars.tolist()]
        cv2.fillPoly(canvas, quads, tone(white, ahead + 1, light), cv2.LINE_8, _BITS)
