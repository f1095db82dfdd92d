"""Bodies of the built-in world: vehicles and traffic lights of polygons, people of limbs.

A body stands at its own origin in metres: x to its right, y up from the ground, z ahead. A polygon
is seen from the side on which its corners run left-bottom, right-bottom, right-top, left-top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAMP", "Figure", "Solid", "cyclist", "pedestrian", "traffic_light", "vehicle"]

# Palette slots that shine by themselves: neither shaded nor dimmed at night.
LAMP = ("head lamp", "tail lamp", "signal")
Quad = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Solid:
    """Polygons in painting order; those turned away from the camera are left out when drawn.

    Attributes:
        points: (P, 3) all corners, metres.
        spans: start and end of each polygon's corners in `points`.
        slots: name of each polygon's colour.
        shades: factor on each polygon's colour.
    """

    points: NDArray[np.float64]
    spans: tuple[tuple[int, int], ...]
    slots: tuple[str, ...]
    shades: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Figure:
    """Capsules between joints, rings and a filled trunk.

    Attributes:
        joints: (J, 3) metres.
        limbs: joint, joint, radius in metres, name of the colour.
        trunk: joints of a filled polygon, its colour; may be empty.
        rings: centre and radius in the plane x = 0, colour.
    """

    joints: NDArray[np.float64]
    limbs: tuple[tuple[int, int, float, str], ...]
    trunk: tuple[tuple[int, ...], str]
    rings: tuple[tuple[float, float, float, str], ...] = ()


class _Parts:
    """Collects polygons of a `Solid`."""

    def __init__(self) -> None:
        self.polygons: list[Quad] = []
        self.slots: list[str] = []
        self.shades: list[float] = []

    def add(self, polygon: Quad, slot: str, shade: float = 1.0) -> None:
        self.polygons.append(np.asarray(polygon, np.float64))
        self.slots.append(slot)
        self.shades.append(shade)

    def solid(self) -> Solid:
        ends = np.cumsum([len(polygon) for polygon in self.polygons])
        starts = [0, *ends[:-1].tolist()]
        spans = tuple(zip(starts, ends.tolist(), strict=True))
        points = np.concatenate(self.polygons)
        return Solid(points, spans, tuple(self.slots), np.array(self.shades))


def _prism(low: tuple[float, ...], high: tuple[float, ...]) -> dict[str, Quad]:
    """Five faces of a (tapered) box; `low` and `high` are half width, y, z back, z front."""
    (a, y0, b0, f0), (c, y1, b1, f1) = low, high
    return {
        "back": np.array([(-a, y0, b0), (a, y0, b0), (c, y1, b1), (-c, y1, b1)]),
        "front": np.array([(a, y0, f0), (-a, y0, f0), (-c, y1, f1), (c, y1, f1)]),
        "left": np.array([(-a, y0, f0), (-a, y0, b0), (-c, y1, b1), (-c, y1, f1)]),
        "right": np.array([(a, y0, b0), (a, y0, f0), (c, y1, f1), (c, y1, b1)]),
        "top": np.array([(-c, y1, b1), (c, y1, b1), (c, y1, f1), (-c, y1, f1)]),
    }


def _upright(half: float, y: tuple[float, float], z: tuple[float, float]) -> dict[str, Quad]:
    return _prism((half, y[0], *z), (half, y[1], *z))


def _inside(face: Quad, u0: float, u1: float, v0: float, v1: float) -> Quad:
    """The part of a face between the shares u of its width and v of its height."""

    def at(u: float, v: float) -> Quad:
        low = face[0] + (face[1] - face[0]) * u
        high = face[3] + (face[2] - face[3]) * u
        return np.asarray(low + (high - low) * v)

    return np.stack([at(u0, v0), at(u1, v0), at(u1, v1), at(u0, v1)])


def _disc(centre: tuple[float, float, float], radius: float, normal_x: float) -> Quad:
    """A twelve-cornered disc that faces left (-1) or right (1), or ahead (0)."""
    angle = np.arange(12) * (math.pi / 6)
    across, up = radius * np.cos(angle), radius * np.sin(angle)
    x, y, z = centre
    if normal_x == 0:
        return np.stack([x - across, y + up, np.full(12, z)], axis=1)
    return np.stack([np.full(12, x), y + up, z + normal_x * across], axis=1)


_SHADES = {"back": 0.88, "front": 0.88, "left": 0.74, "right": 0.95, "top": 1.1}


def _paint_faces(parts: _Parts, faces: dict[str, Quad], slot: str) -> None:
    for side in ("top", "back", "front", "left", "right"):
        parts.add(faces[side], slot, _SHADES[side])


def _wheels(parts: _Parts, half: float, axles: tuple[float, float], radius: float) -> None:
    for side in (-1.0, 1.0):
        for axle in axles:
            parts.add(_disc((side * (half + 0.02), radius, axle), radius, side), "tyre")
            parts.add(_disc((side * (half + 0.03), radius, axle), radius * 0.55, side), "rim")


def _ends(parts: _Parts, body: dict[str, Quad], lamp_v: tuple[float, float]) -> None:
    """Lamps, bumper, plate and grille on the two ends of a vehicle."""
    for end, lamp in (("back", "tail lamp"), ("front", "head lamp")):
        face = body[end]
        parts.add(_inside(face, 0, 1, 0, 0.22), "trim")
        parts.add(_inside(face, 0.03, 0.22, *lamp_v), lamp)
        parts.add(_inside(face, 0.78, 0.97, *lamp_v), lamp)
    parts.add(_inside(body["back"], 0.36, 0.64, 0.3, 0.5), "plate")
    parts.add(_inside(body["front"], 0.28, 0.72, 0.34, 0.62), "trim")


def _feet(parts: _Parts, half: float, back: float, front: float) -> None:
    """The tyres' ends and the dark gap under the body, as seen from ahead or behind."""
    gap = _upright(half * 0.9, (0.12, 0.4), (back + 0.25, front - 0.25))
    tread = _upright(half, (0.0, 0.4), (back + 0.5, front - 0.5))
    for end in ("back", "front"):
        parts.add(gap[end], "shade")
        for u0, u1 in ((0.0, 0.16), (0.84, 1.0)):
            parts.add(_inside(tread[end], u0, u1, 0, 1), "tyre")


def _car(style: int) -> Solid:
    """A saloon (0), a hatchback (1) or an estate (2)."""
    half, tail, nose = 0.9, (-2.2, -1.95, -2.3)[style], (2.2, 1.9, 2.25)[style]
    parts = _Parts()
    body = _prism((half, 0.28, tail, nose), (half * 0.96, 0.88, tail + 0.06, nose - 0.12))
    _feet(parts, half, tail, nose)
    _paint_faces(parts, body, "body")
    _ends(parts, body, (0.58, 0.86))
    for side in ("left", "right"):
        parts.add(_inside(body[side], 0.49, 0.5, 0.1, 1), "trim")
    _wheels(parts, half, (tail + 0.8, nose - 0.85), 0.33)
    back = (tail + 0.5, tail + 0.08, tail + 0.1)[style]
    rear = (tail + 1.25, tail + 0.5, tail + 0.5)[style]
    cabin = _prism((0.84, 0.87, back, nose - 0.95), (0.62, 1.45, rear, nose - 1.75))
    _paint_faces(parts, cabin, "body")
    for end in ("back", "front"):
        parts.add(_inside(cabin[end], 0.09, 0.91, 0.12, 0.9), "glass")
    for side in ("left", "right"):
        parts.add(_inside(cabin[side], 0.1, 0.49, 0.1, 0.86), "glass")
        parts.add(_inside(cabin[side], 0.53, 0.9, 0.1, 0.86), "glass")
    return parts.solid()


def _van(style: int) -> Solid:
    """A panel van (0), one with windows (1) or a high one (2)."""
    half, tail, nose, roof = 1.0, -2.6, 2.6, (2.2, 2.1, 2.55)[style]
    parts = _Parts()
    _feet(parts, half, tail, nose)
    body = _prism((half, 0.3, tail, nose), (half, 1.15, tail, nose - 0.25))
    hold = _prism((half, 1.15, tail, nose - 0.3), (half * 0.92, roof, tail + 0.05, nose - 1.1))
    _paint_faces(parts, body, "body")
    _ends(parts, body, (0.5, 0.85))
    _wheels(parts, half, (tail + 1.0, nose - 0.95), 0.36)
    _paint_faces(parts, hold, "body")
    parts.add(_inside(hold["front"], 0.07, 0.93, 0.08, 0.8), "glass")
    parts.add(_inside(hold["left"], 0.03, 0.2, 0.1, 0.68), "glass")
    parts.add(_inside(hold["right"], 0.8, 0.97, 0.1, 0.68), "glass")
    parts.add(_inside(hold["back"], 0.495, 0.505, 0, 1), "trim")
    for u0, u1 in ((0.1, 0.45), (0.55, 0.9)):
        parts.add(_inside(hold["back"], u0, u1, 0.3, 0.75), "glass")
    if style == 1:
        for u0, u1 in ((0.24, 0.48), (0.52, 0.76)):
            parts.add(_inside(hold["left"], u0, u1, 0.1, 0.68), "glass")
            parts.add(_inside(hold["right"], u0, u1, 0.1, 0.68), "glass")
    else:
        for side in ("left", "right"):
            parts.add(_inside(body[side], 0.1, 0.9, 0.62, 0.8), "stripe")
    return parts.solid()


@cache
def vehicle(kind: str, style: int) -> Solid:
    """A `car` or a `van` in one of three styles."""
    return _car(style) if kind == "car" else _van(style)


@cache
def traffic_light(lit: int) -> Solid:
    """A housing 3 m above the ground with lamp `lit` on (0 red, 1 amber, 2 green), facing ahead."""
    parts = _Parts()
    board = _prism((0.3, 3.0, 0.0, 0.04), (0.3, 4.3, 0.0, 0.04))
    for side in board:
        parts.add(board[side], "board")
    box = _prism((0.19, 3.08, 0.0, 0.25), (0.19, 4.22, 0.0, 0.25))
    _paint_faces(parts, box, "housing")
    for index in range(3):
        centre = (0.0, 4.0 - 0.35 * index, 0.26)
        parts.add(_disc(centre, 0.15, 0), "signal" if index == lit else f"dark {index}")
    return parts.solid()


def pedestrian(phase: float, girth: float) -> Figure:
    """Somebody 1.75 m tall at a `phase` (radians) of the stride; `girth` widens the trunk."""
    swing, lift = 0.34 * math.sin(phase), 0.06 * abs(math.cos(phase))
    wide = 0.19 * girth
    joints: list[tuple[float, float, float]] = [(0, 1.62, 0.02), (0, 1.45, 0)]
    for side, step in ((-1, swing), (1, -swing)):
        joints += [(side * wide, 1.4, 0), (side * wide * 1.25, 1.12, -step * 0.5)]
        joints += [(side * wide * 1.2, 0.86, -step * 0.8 + 0.06)]
        joints += [(side * wide * 0.6, 0.9, 0), (side * wide * 0.62, 0.48, step * 0.55 + lift)]
        joints += [(side * wide * 0.65, 0.06, step), (side * wide * 0.7, 0.05, step + 0.14)]
    limbs: list[tuple[int, int, float, str]] = [(0, 1, 0.06, "skin")]
    for start in (2, 9):
        arm, elbow, hand, hip, knee, ankle, toe = range(start, start + 7)
        limbs += [(arm, elbow, 0.065, "shirt"), (elbow, hand, 0.055, "sleeve")]
        limbs += [(hip, knee, 0.095, "trousers"), (knee, ankle, 0.075, "trousers")]
        limbs += [(ankle, toe, 0.055, "shoe")]
    limbs += [(2, 9, 0.09, "shirt"), (5, 12, 0.1, "trousers"), (0, 0, 0.13, "skin")]
    head = len(joints)
    joints += [(0, 1.68, -0.03)]
    limbs += [(head, head, 0.115, "hair")]
    return Figure(np.array(joints, np.float64), tuple(limbs), ((2, 9, 12, 5), "shirt"))


def cyclist(phase: float, girth: float) -> Figure:
    """Somebody on a bicycle, riding ahead; `phase` (radians) turns the pedals."""
    wide, crank = 0.18 * girth, 0.17
    up, along = crank * math.sin(phase), crank * math.cos(phase)
    joints: list[tuple[float, float, float]] = [
        (0, 0.34, -0.52), (0, 0.34, 0.52), (0, 0.3, -0.05), (0, 0.85, -0.2),  # hubs, crank, seat
        (0, 0.8, 0.36), (-0.26, 1.0, 0.4), (0.26, 1.0, 0.4), (0, 1.0, 0.38),  # head tube, bar
        (0, 1.66, 0.2), (0, 1.48, 0.12),  # head, neck
    ]  # fmt: skip
    for side in (-1, 1):
        knee = (side * 0.14, 0.62 + side * up * 0.8, 0.2)
        foot = (side * 0.12, 0.3 + side * up, -0.05 + side * along)
        joints += [(side * wide, 1.4, 0.1), (side * 0.24, 1.16, 0.24)]
        joints += [(side * 0.11, 0.92, -0.2), knee, foot]
    frame = [(0, 2), (0, 3), (2, 3), (2, 4), (3, 4), (4, 1), (4, 7), (5, 6)]
    limbs: list[tuple[int, int, float, str]] = [(a, b, 0.03, "frame") for a, b in frame]
    for start, bar in ((10, 5), (15, 6)):
        shoulder, elbow, hip, knee_at, foot_at = range(start, start + 5)
        limbs += [(shoulder, elbow, 0.065, "shirt"), (elbow, bar, 0.055, "skin")]
        limbs += [(hip, knee_at, 0.095, "trousers"), (knee_at, foot_at, 0.07, "trousers")]
    limbs += [(8, 9, 0.06, "skin"), (10, 15, 0.09, "shirt"), (12, 17, 0.1, "trousers")]
    limbs += [(8, 8, 0.13, "skin")]
    helmet = len(joints)
    joints += [(0, 1.73, 0.18)]
    limbs += [(helmet, helmet, 0.125, "helmet")]
    rings = ((0.34, -0.52, 0.33, "tyre"), (0.34, 0.52, 0.33, "tyre"))
    return Figure(np.array(joints), tuple(limbs), ((10, 15, 17, 12), "shirt"), rings)
