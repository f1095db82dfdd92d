"""The built-in world: street scenes rendered from a seed, with exact boxes.

Numbers come from numpy's PCG64 and drawing is integer arithmetic in OpenCV, so a seed gives the
same bytes on every call.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge.data.world.cast import CLASSES, make_world
from edge.data.world.picture import Scene, compose, finish
from edge.data.world.stream import SceneStream
from edge.data.world.street import paint_backdrop

__all__ = ["CLASSES", "Scene", "SceneStream", "render", "scene_set"]

HW = (288, 512)


def render(seed: int, hw: tuple[int, int] = HW, night: float = 0.25) -> Scene:
    """The street scene of a seed; `night` is the probability that it is dark.

    Raises:
        ValueError: `hw` is smaller than 32 pixels a side, or `night` no probability.
    """
    if min(hw) < 32 or not 0 <= night <= 1:
        raise ValueError(f"hw {hw} takes at least 32 pixels a side, night {night} takes 0..1")
    rng = np.random.default_rng(seed)
    world = make_world(rng, hw, bool(rng.random() < night))
    canvas, xyxy, class_id = compose(world, paint_backdrop(world.street, world.light, world.camera))
    smear = int(rng.choice((3, 5, 7))) * hw[1] // HW[1] if rng.random() < 0.2 else 1
    noise = int(rng.integers(1, 6)) + (3 if world.light.night else 0)
    return Scene(finish(canvas, rng, noise, smear), xyxy, class_id)


def scene_set(count: int, seed0: int, hw: tuple[int, int] = HW) -> Iterator[Scene]:
    """The scenes of the seeds `seed0` to `seed0 + count - 1`."""
    return (render(seed, hw) for seed in range(seed0, seed0 + count))
