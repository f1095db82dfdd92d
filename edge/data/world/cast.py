"""Who is in the street of the built-in world, where, and how they move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from edge.data.world.draw import Camera, Colour, Light, Pose
from edge.data.world.shapes import Figure, Solid, cyclist, pedestrian, traffic_light, vehicle
from edge.data.world.street import Street, make_street

__all__ = [
    "CLASSES",
    "REACH",
    "Actor",
    "Furniture",
    "World",
    "clear_of",
    "make_actor",
    "make_camera",
    "make_furniture",
    "make_light",
    "make_world",
]

CLASSES = ("car", "van", "pedestrian", "cyclist", "traffic light")
# Nearest and farthest distance in metres. At the farthest, the lowest of each class is some 12
# pixels high in an image 512 pixels wide: what is smaller is not drawn, so nothing goes unlabelled.
REACH = {
    "car": (6.5, 44.0),
    "van": (7.5, 50.0),
    "pedestrian": (4.5, 36.0),
    "cyclist": (5.0, 36.0),
    "traffic light": (11.0, 32.0),
}
_HALF_SIZE = {
    "car": (0.9, 2.2),
    "van": (1.0, 2.6),
    "pedestrian": (0.3, 0.3),
    "cyclist": (0.3, 0.9),
    "traffic light": (0.3, 0.2),
}
_PAINT: tuple[Colour, ...] = (
    (200, 200, 205), (60, 60, 65), (150, 150, 155), (40, 40, 190), (170, 80, 40), (60, 130, 60),
    (235, 235, 235), (30, 30, 35), (60, 170, 215), (120, 60, 60), (90, 140, 190), (150, 130, 60),
)  # fmt: skip
_SKIN: tuple[Colour, ...] = ((150, 180, 225), (110, 145, 200), (70, 100, 150), (45, 65, 100))


@dataclass
class Actor:
    """Somebody or something with a label.

    Position in metres, `speed` along the street in metres per second; `role` says what keeps
    them moving in a stream.
    """

    kind: str
    style: int
    palette: dict[str, Colour]
    x: float
    z: float
    yaw: float
    phase: float = 0.0
    girth: float = 1.0
    speed: float = 0.0
    role: str = ""

    @property
    def pose(self) -> Pose:
        return Pose(self.x, self.z, self.yaw)

    @property
    def ground_pose(self) -> Pose:
        """Where its shadow lies, whose sides run along the street."""
        return Pose(self.x, self.z, 0.0)

    @property
    def half_size(self) -> tuple[float, float]:
        """Half width across the street and half length along it."""
        wide, deep = _HALF_SIZE[self.kind]
        return (deep, wide) if abs(math.sin(self.yaw)) > 0.7 else (wide, deep)

    def body(self) -> Solid | Figure:
        """Its shape at this moment."""
        if self.kind == "pedestrian":
            return pedestrian(self.phase, self.girth)
        if self.kind == "cyclist":
            return cyclist(self.phase, self.girth)
        if self.kind == "traffic light":
            return traffic_light(self.style)
        return vehicle(self.kind, self.style)


@dataclass
class Furniture:
    """A tree, a lamp post or a bin: scenery without a label that may stand in front of others."""

    kind: str
    x: float
    z: float
    size: float
    colour: Colour


@dataclass
class World:
    """A street with its camera, light and everything in it."""

    street: Street
    camera: Camera
    light: Light
    actors: list[Actor]
    furniture: list[Furniture]
    driven: float = 0.0


def _pick(rng: Generator, colours: tuple[Colour, ...], spread: float = 18.0) -> Colour:
    colour = np.array(colours[int(rng.integers(len(colours)))]) + rng.uniform(-spread, spread, 3)
    b, g, r = np.clip(colour, 5, 250).tolist()
    return b, g, r


def _any_colour(rng: Generator) -> Colour:
    b, g, r = (rng.uniform(20, 235, 3) * rng.uniform(0.6, 1.0)).tolist()
    return b, g, r


def _vehicle_palette(rng: Generator, night: bool) -> dict[str, Colour]:
    return {
        "body": _pick(rng, _PAINT) if rng.random() < 0.8 else _any_colour(rng),
        "stripe": _any_colour(rng),
        "glass": (70, 58, 50) if rng.random() < 0.6 else (120, 110, 95),
        "trim": (48, 48, 50),
        "tyre": (28, 28, 28),
        "rim": (150, 150, 150),
        "plate": (210, 225, 230),
        "shade": (18, 18, 18),
        "head lamp": (235, 250, 255) if night or rng.random() < 0.3 else (205, 215, 220),
        "tail lamp": (40, 40, 255) if night else (35, 30, 175),
    }


def _person_palette(rng: Generator) -> dict[str, Colour]:
    shirt, skin = _any_colour(rng), _pick(rng, _SKIN, 8)
    return {
        "skin": skin,
        "shirt": shirt,
        "sleeve": shirt if rng.random() < 0.6 else skin,
        "trousers": _pick(rng, ((60, 45, 40), (110, 80, 55), (40, 40, 42), (120, 140, 155)), 25),
        "shoe": _pick(rng, ((30, 30, 30), (60, 80, 110), (210, 210, 210)), 10),
        "hair": _pick(rng, ((25, 30, 35), (40, 70, 110), (90, 160, 200), (150, 150, 150)), 10),
        "helmet": _any_colour(rng),
        "frame": _any_colour(rng),
        "tyre": (32, 32, 34),
    }


def _signal_palette(lit: int) -> dict[str, Colour]:
    glowing: Colour = ((50, 50, 255), (40, 190, 255), (150, 255, 60))[lit]
    dark: tuple[Colour, ...] = ((24, 20, 66), (20, 50, 66), (40, 60, 24))
    palette: dict[str, Colour] = {f"dark {index}": dark[index] for index in range(3)}
    return palette | {"board": (190, 195, 195), "housing": (36, 40, 38), "signal": glowing}


def _spot_vehicle(rng: Generator, street: Street) -> tuple[float, float]:
    """x and yaw: with the traffic, against it, parked or crossing."""
    lane, choice = street.half * 0.3, rng.random()
    if choice < 0.34:
        return lane + float(rng.normal(0, 0.25)), float(rng.normal(0, 0.05))
    if choice < 0.64:
        return -lane + float(rng.normal(0, 0.25)), math.pi + float(rng.normal(0, 0.05))
    if choice < 0.86:
        side = 1 if rng.random() < 0.5 else -1
        flip = math.pi if side < 0 else 0.0
        return side * (street.half - 0.9), flip + float(rng.normal(0, 0.06))
    turn = math.pi / 2 * (1 if rng.random() < 0.5 else -1)
    return float(rng.uniform(-9, 10)), turn + float(rng.normal(0, 0.3))


def _spot_person(rng: Generator, street: Street) -> tuple[float, float]:
    side = 1 if rng.random() < 0.5 else -1
    if rng.random() < 0.62:
        x = side * (street.half + float(rng.uniform(0.5, street.pavement - 0.4)))
        return x, (0.0 if rng.random() < 0.5 else math.pi) + float(rng.normal(0, 0.35))
    return float(rng.uniform(-street.half, street.half)), side * math.pi / 2 + float(
        rng.normal(0, 0.3)
    )


def _spot_cyclist(rng: Generator, street: Street) -> tuple[float, float]:
    side = 1 if rng.random() < 0.5 else -1
    if rng.random() < 0.6:
        x = side * (street.half * 0.62 + float(rng.normal(0, 0.5)))
        return x, (0.0 if side > 0 else math.pi) + float(rng.normal(0, 0.15))
    return float(rng.uniform(-7, 8)), side * math.pi / 2 + float(rng.normal(0, 0.35))


def _spot_signal(rng: Generator, street: Street) -> tuple[float, float]:
    side = 1 if rng.random() < 0.6 else -1
    over = rng.random() < 0.3
    x = float(rng.uniform(-2.5, 3.5)) if over else side * (street.half + 0.4)
    return x, math.pi + float(rng.normal(0, 0.2))


_SPOT: dict[str, Callable[[Generator, Street], tuple[float, float]]] = {
    "car": _spot_vehicle,
    "van": _spot_vehicle,
    "pedestrian": _spot_person,
    "cyclist": _spot_cyclist,
    "traffic light": _spot_signal,
}


def _palette(rng: Generator, kind: str, style: int, night: bool) -> dict[str, Colour]:
    if kind == "traffic light":
        return _signal_palette(style)
    if kind in ("car", "van"):
        palette = _vehicle_palette(rng, night)
        if kind == "van" and rng.random() < 0.5:
            palette["body"] = _pick(rng, ((225, 228, 230),), 20)
        return palette
    return _person_palette(rng)


def make_actor(rng: Generator, kind: str, street: Street, night: bool) -> Actor:
    """One actor somewhere in its reach."""
    style = int(rng.integers(3))
    near, far = REACH[kind]
    x, yaw = _SPOT[kind](rng, street)
    z = near + (far - near) * float(rng.random()) ** 1.25
    palette = _palette(rng, kind, style, night)
    phase, girth = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.85, 1.3))
    return Actor(kind, style, palette, x, z, yaw, phase=phase, girth=girth)


def clear_of(actor: Actor, others: list[Actor]) -> bool:
    """Whether nobody stands where `actor` stands, with a little air."""
    wide, deep = actor.half_size
    for other in others:
        other_wide, other_deep = other.half_size
        if (
            abs(actor.x - other.x) < wide + other_wide + 0.25
            and abs(actor.z - other.z) < deep + other_deep + 0.4
        ):
            return False
    return True


def make_furniture(rng: Generator, street: Street, z: float) -> Furniture:
    """A tree, lamp post or bin beside the road."""
    kind = ("tree", "post", "bin")[int(rng.choice(3, p=(0.45, 0.35, 0.2)))]
    side = 1 if rng.random() < 0.5 else -1
    x = side * (street.half + float(rng.uniform(0.3, 0.8)))
    green = _pick(rng, ((45, 105, 60), (50, 120, 95), (60, 90, 50)), 15)
    colour = {"tree": green, "post": (75.0, 75.0, 75.0), "bin": _any_colour(rng)}[kind]
    return Furniture(kind, x, z, float(rng.uniform(0.8, 1.2)), colour)


def make_light(rng: Generator, street: Street, night: bool) -> Light:
    """Day, from dull to bright, or night with the own head lamps."""
    if night:
        base = rng.uniform(0.26, 0.42)
        ambient = (base * 1.12, base, base * 0.93)
        return Light(ambient, float(rng.uniform(0.35, 0.6)), street.sky[1], 0.004, True)
    base, warm = rng.uniform(0.72, 1.12), rng.uniform(-0.05, 0.06)
    ambient = (base * (1 - warm), base, base * (1 + warm))
    return Light(ambient, 0.0, street.sky[1], float(rng.uniform(0.002, 0.014)), False)


def make_camera(rng: Generator, hw: tuple[int, int], street: Street) -> Camera:
    """A dash camera in the right-hand lane."""
    height, width = hw
    return Camera(
        hw=hw,
        focal=width * float(rng.uniform(0.8, 1.02)),
        centre_x=width * float(rng.uniform(0.44, 0.56)),
        horizon=height * float(rng.uniform(0.38, 0.5)),
        eye_xy=(street.half * 0.3, float(rng.uniform(1.35, 2.1))),
    )


def make_world(rng: Generator, hw: tuple[int, int], night: bool) -> World:
    """A street full of actors, none inside another."""
    street = make_street(rng, night)
    camera, light = make_camera(rng, hw, street), make_light(rng, street, night)
    actors: list[Actor] = []
    for kind, low, high in zip(CLASSES, (1, 0, 0, 0, 0), (5, 3, 5, 4, 3), strict=True):
        for _ in range(int(rng.integers(low, high + 1))):
            actor = make_actor(rng, kind, street, night)
            if clear_of(actor, actors):
                actors.append(actor)
    places = rng.uniform(7, 60, int(rng.integers(0, 6))).tolist()
    furniture = [make_furniture(rng, street, z) for z in places]
    return World(street, camera, light, actors, furniture)
