"""A world becomes a picture with exact boxes, as a lens and a sensor see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edge.data.world.cast import CLASSES, Actor, Furniture, World
from edge.data.world.draw import Canvas, lamps_seen, paint_body, paint_shadow
from edge.data.world.furniture import paint_furniture, paint_post
from edge.data.world.shapes import Solid
from edge.data.world.street import paint_street

__all__ = ["MIN_VISIBLE", "Scene", "compose", "finish"]

# An object of which less is seen than this share has no box.
MIN_VISIBLE = 0.3
# Metres; who is nearer is beside the camera or behind it.
_NEAREST = 1.0


@dataclass(frozen=True, eq=False)
class Scene:
    """One labelled picture.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        xyxy: (N, 4) float32, pixels; each the extent of the whole object, clipped to the image,
            whatever stands in front of it.
        class_id: (N,) int32, index into `CLASSES`.
    """

    image: NDArray[np.uint8]
    xyxy: NDArray[np.float32]
    class_id: NDArray[np.int32]


def compose(
    world: World, backdrop: Canvas
) -> tuple[Canvas, NDArray[np.float32], NDArray[np.int32]]:
    """Paint a world from far to near: canvas (H, W, 4) with owners, boxes, class ids.

    An object of which less than `MIN_VISIBLE` is seen has no box.
    """
    canvas = backdrop.copy()
    paint_street(canvas, world.street, world.light, world.camera, world.driven)
    everything: list[Actor | Furniture] = [*world.actors, *world.furniture]
    things = [thing for thing in everything if thing.z >= _NEAREST]
    boxes: dict[int, tuple[Actor, tuple[int, int, int, int], int]] = {}
    for thing in sorted(things, key=lambda item: -item.z):
        if isinstance(thing, Furniture):
            paint_furniture(canvas, thing, world.light, world.camera)
            continue
        identity = len(boxes) + 1
        found = _paint_actor(canvas, thing, world, identity)
        if found:
            boxes[identity] = (thing, *found)
    if world.light.night:
        _add_glow(canvas, world, boxes)
    return canvas, *_labels(canvas, boxes)


def _paint_actor(
    canvas: Canvas, actor: Actor, world: World, identity: int
) -> tuple[tuple[int, int, int, int], int] | None:
    if actor.kind == "traffic light":
        paint_post(canvas, actor, world.street.half, world.light, world.camera)
    else:
        paint_shadow(canvas, actor.half_size, actor.ground_pose, world.light, world.camera)
    return paint_body(
        canvas, actor.body(), actor.pose, actor.palette, world.light, world.camera, identity
    )


def _labels(canvas: Canvas, boxes: dict[int, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    owners = cv2.extractChannel(canvas, 3)
    kept = [
        (box, CLASSES.index(actor.kind))
        for identity, (actor, box, pixels) in boxes.items()
        if _count(owners, box, identity) >= MIN_VISIBLE * pixels
    ]
    xyxy = np.array([box for box, _ in kept], np.float32).reshape(-1, 4)
    return xyxy, np.array([label for _, label in kept], np.int32)


def _count(owners: NDArray[Any], box: tuple[int, int, int, int], identity: int) -> int:
    left, top, right, bottom = box
    return int(np.count_nonzero(owners[top:bottom, left:right] == identity))


_GLOW = {"head lamp": (150, 170, 175), "tail lamp": (20, 20, 130)}
_GLOW_SHRINK = 4


def _add_glow(canvas: Canvas, world: World, boxes: dict[int, Any]) -> None:
    height, width = world.camera.hw
    glow = np.zeros((height // _GLOW_SHRINK + 1, width // _GLOW_SHRINK + 1, 4), np.uint8)
    for identity, (actor, _, _) in boxes.items():
        body = actor.body()
        if not isinstance(body, Solid):
            continue
        radius = max(1, round(0.3 * world.camera.focal / actor.z / _GLOW_SHRINK))
        for x, y, slot in lamps_seen(canvas, body, actor.pose, world.camera, identity):
            colour = actor.palette[slot] if slot == "signal" else _GLOW[slot]
            half = tuple(part * 0.5 for part in colour)  # and nothing for the owners' channel
            cv2.circle(glow, (int(x / _GLOW_SHRINK), int(y / _GLOW_SHRINK)), radius, half, -1)
    glow = cv2.GaussianBlur(glow, (0, 0), max(1.5, width / 350))
    glow = cv2.resize(glow, None, fx=_GLOW_SHRINK, fy=_GLOW_SHRINK)
    cv2.add(canvas, glow[:height, :width], dst=canvas)


@lru_cache(maxsize=8)
def _grain(level: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What a tile of sensor noise adds and takes away; triangular, integers throughout."""
    rng = np.random.default_rng(level)
    noise = rng.integers(-level, level + 1, (2, 800, 1400, 3), np.int16).sum(axis=0)
    return np.maximum(noise, 0).astype(np.uint8), np.maximum(-noise, 0).astype(np.uint8)


def finish(canvas: Canvas, rng: Generator, noise: int, smear: int = 1) -> NDArray[np.uint8]:
    """The lens and the sensor: softness, motion blur over `smear` pixels, noise; BGR."""
    image = cv2.cvtColor(canvas, cv2.COLOR_BGRA2BGR)
    image = cv2.GaussianBlur(image, (3, 3), 0)
    if smear > 1:
        image = cv2.blur(image, (smear, 1))
    if noise:
        height, width = image.shape[:2]
        plus, minus = _grain(noise)
        if height > plus.shape[0] or width > plus.shape[1]:
            plus, minus = (np.tile(part, _repeats(height, width)) for part in (plus, minus))
        y = int(rng.integers(plus.shape[0] - height + 1))
        x = int(rng.integers(plus.shape[1] - width + 1))
        image = cv2.add(image, plus[y : y + height, x : x + width])
        image = cv2.subtract(image, minus[y : y + height, x : x + width])
    return np.asarray(image, np.uint8)


def _repeats(height: int, width: int) -> tuple[int, int, int]:
    return -(-height // 800), -(-width // 1400), 1
