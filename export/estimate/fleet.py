"""How many boards a number of cameras needs, from the estimate, with its assumptions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge.options import count, option, positive
from export.estimate.estimate import Estimate

__all__ = ["Fleet", "FleetOptions", "plan_fleet"]

# The rest is for the times that a median does not show: other processes, heat, a late frame.
_LOAD = 0.7
_PIXELS_1080P30 = 1920 * 1080 * 30
# H.265 at constant quality in a street scene; the same per pixel at other sizes and rates.
_STREAM_MBITS = 4.0
# What one object takes as JSON, and objects in a frame.
_EVENT_BYTES, _OBJECTS = 160, 5


@dataclass(frozen=True)
class FleetOptions:
    """What a fleet has to do.

    Attributes:
        cameras: plan boards for this many cameras
        fps: frames a second of each camera; more need more boards
    """

    cameras: int | None = option(None, metavar="N", check=count)
    fps: float = option(15.0, metavar="F", check=positive)


@dataclass(frozen=True)
class Fleet:
    """What a number of cameras needs on one kind of board in one precision.

    Attributes:
        board, precision: on which, in which.
        cameras_per_board: that one board takes; 0 where not even one fits.
        boards: needed; 0 where not even one camera fits.
        limit: what limits a board: gpu or decoder.
        watts: of all boards at their budget.
        stream_mbits: into each full board, where cameras send H.265.
        result_mbits: out of all boards, as JSON.
    """

    board: str
    precision: str
    cameras_per_board: int
    boards: int
    limit: str
    watts: float
    stream_mbits: float
    result_mbits: float


def plan_fleet(
    one: Estimate, cameras: int, fps: float, frame_hw: tuple[int, int] = (1080, 1920)
) -> Fleet:
    """Plan `cameras` of `fps` frames a second each, one frame at a time.

    A board is loaded to 70 % of its GPU's time at the upper bound of the estimate, with
    the time before and after the network, and to what its decoder takes.
    """
    frame_ms = one.high_ms + one.prepare_ms + one.finish_ms
    by_gpu = int(_LOAD * 1e3 / (fps * frame_ms))
    rate = math.prod(frame_hw) * fps / _PIXELS_1080P30
    by_decoder = int(one.board.streams_1080p30 / rate)
    each = min(by_gpu, by_decoder)
    boards = math.ceil(cameras / each) if each else 0
    return Fleet(
        one.board.name,
        one.precision,
        each,
        boards,
        "gpu" if by_gpu <= by_decoder else "decoder",
        boards * one.board.watts,
        min(each, cameras) * rate * _STREAM_MBITS,
        cameras * fps * _OBJECTS * _EVENT_BYTES * 8 / 1e6,
    )
