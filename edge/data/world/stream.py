"""A camera that drives down the street of the built-in world and never arrives."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.random import Generator

from edge.data.world.cast import (
    REACH,
    Actor,
    World,
    clear_of,
    make_actor,
    make_camera,
    make_furniture,
    make_light,
)
from edge.data.world.picture import Scene, compose, finish
from edge.data.world.street import make_street, paint_backdrop

__all__ = ["SceneStream"]

# Metres: who is nearer has left the picture, and comes back at the far end as somebody else.
_GONE = 1.0
_CAST = (
    ("car", "lead"),
    ("car", "oncoming"),
    ("car", "oncoming"),
    ("car", "parked"),
    ("car", "parked"),
    ("van", "oncoming"),
    ("van", "parked"),
    ("pedestrian", "walking"),
    ("pedestrian", "walking"),
    ("pedestrian", "walking"),
    ("pedestrian", "walking"),
    ("cyclist", "riding"),
    ("cyclist", "riding"),
    ("traffic light", "standing"),
    ("traffic light", "standing"),
)
_FURNITURE = 6
_SPEED = 7.0


class SceneStream:
    """An endless iterator over the frames of a dash camera, each a `Scene`.

    Objects persist from frame to frame and move smoothly; who passes the camera is replaced at
    the far end. The same arguments give the same frames.

    Args:
        seed: of the street and of everybody in it.
        hw: height and width, pixels.
        night: the probability that it is dark.
        fps: frames per second of the world's time; frames come as fast as they are asked for.

    Raises:
        ValueError: `hw` below 32 pixels a side, `night` no probability, `fps` not positive.
    """

    def __init__(
        self, seed: int = 1, hw: tuple[int, int] = (720, 1280), night: float = 0.3, fps: float = 30
    ) -> None:
        if min(hw) < 32 or not 0 <= night <= 1 or fps <= 0:
            raise ValueError(f"hw {hw}, night {night}, fps {fps}: sizes and rates are positive")
        self._rng = np.random.default_rng(seed)
        self._step_s = 1 / fps
        self._seconds = 0.0
        self._world = _make(self._rng, hw, bool(self._rng.random() < night))
        self._backdrop = paint_backdrop(self._world.street, self._world.light, self._world.camera)

    def __iter__(self) -> Iterator[Scene]:
        return self

    def __next__(self) -> Scene:
        canvas, xyxy, class_id = compose(self._world, self._backdrop)
        noise = 3 if self._world.light.night else 2
        scene = Scene(finish(canvas, self._rng, noise), xyxy, class_id)
        self._seconds += self._step_s
        _advance(self._world, self._rng, self._seconds, self._step_s)
        return scene


def _make(rng: Generator, hw: tuple[int, int], night: bool) -> World:
    street = make_street(rng, night)
    camera, light = make_camera(rng, hw, street), make_light(rng, street, night)
    world = World(street, camera, light, [], [])
    for kind, role in _CAST:
        for _ in range(20):
            actor = _cast(rng, world, kind, role)
            if clear_of(actor, world.actors):
                world.actors.append(actor)
                break
    places = rng.uniform(6, 60, _FURNITURE).tolist()
    world.furniture.extend(make_furniture(rng, street, z) for z in places)
    return world


def _cast(rng: Generator, world: World, kind: str, role: str) -> Actor:
    """Somebody who keeps to what `role` does, so that nobody runs into anybody."""
    street = world.street
    actor = make_actor(rng, kind, street, world.light.night)
    side = 1 if rng.random() < 0.5 else -1
    lane, turned = street.half * 0.3, math.pi * (side < 0)
    if role == "lead":
        actor.x, actor.yaw, actor.speed, actor.z = lane, 0.0, _SPEED, 16.0
    elif role == "oncoming":
        actor.x, actor.yaw, actor.speed = -lane, math.pi, -8.0
    elif role == "parked":
        actor.x, actor.yaw, actor.speed = side * (street.half - 0.9), turned, 0.0
    elif role == "riding":
        actor.x, actor.yaw, actor.speed = side * street.half * 0.62, turned, side * 4.5
    elif role == "walking":
        outside = float(rng.uniform(0.5, street.pavement - 0.4))
        ahead = rng.random() < 0.5
        actor.x = side * (street.half + outside)
        actor.yaw, actor.speed = (0.0, 1.4) if ahead else (math.pi, -1.4)
    actor.role = role
    return actor


def _advance(world: World, rng: Generator, seconds: float, step_s: float) -> None:
    ahead = _SPEED * step_s
    world.driven += ahead
    for index, actor in enumerate(world.actors):
        actor.z += actor.speed * step_s - ahead
        if actor.role == "lead":
            actor.z = 16.0 + 7.0 * math.sin(seconds * 0.45)
        actor.phase += 2.2 * actor.speed * step_s * (1.0 if actor.kind == "pedestrian" else 0.8)
        if actor.z < _GONE:
            world.actors[index] = _next(world, rng, actor)
    for index, item in enumerate(world.furniture):
        item.z -= ahead
        if item.z < _GONE:
            z = 55.0 + float(rng.uniform(0, 12))
            world.furniture[index] = make_furniture(rng, world.street, z)


def _next(world: World, rng: Generator, gone: Actor) -> Actor:
    """Who comes at the far end for who is gone; the same, unseen, until there is room."""
    actor = _cast(rng, world, gone.kind, gone.role)
    actor.z = REACH[gone.kind][1]
    others = [other for other in world.actors if other is not gone]
    return actor if clear_of(actor, others) else gone
