"""A frame, what every source of frames promises, and what may be asked of one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_SIDE", "Frame", "Image", "Source", "SourceOptions", "bare_address", "public_name"]

Image = NDArray[np.uint8]
# Who logs in: all before the last @ of a host's name. Cheap cameras want it as ?usr=...&pwd=...,
# GStreamer's rtspsrc as user-pw=...
_USER = re.compile(r"(?<=://)[^/?#\s\"']*@")
_SECRET = re.compile(
    r"(?i)((?<![a-z])(?:user-)?(?:pw|pwd|pass|passwd|password|token|secret|apikey)=)[^&\s\"']+"
)
# Twice the width of 8K: who asks for more has mistyped.
MAX_SIDE = 16384


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture and when it was taken.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        captured: seconds of `time.monotonic`.
        index: counts up from 0 since the source was opened.
    """

    image: Image
    captured: float
    index: int


@dataclass(frozen=True)
class SourceOptions:
    """What is asked of a source; None leaves the choice to it.

    Attributes:
        hw: height and width, pixels; of cameras, pipelines and the built-in world.
        fps: frames per second; of a file, in place of its own.
        pixel_format: of a V4L2 camera, four characters such as MJPG or YUYV.
        pace: play files at their own speed, as a camera would; False: as fast as they are taken.
    """

    hw: tuple[int, int] | None = None
    fps: float | None = None
    pixel_format: str | None = None
    pace: bool = True


class Source(Protocol):
    """Where frames come from. Read by one thread; `close` may come from another.

    Attributes:
        name: for people, without passwords.
        live: frames come whether they are taken or not: old ones are dropped, a lost source is
            opened again. Else every frame is taken.
        fps: nominal frames per second, once open; None where nobody knows.
        damaged: frames that could not be decoded and were left out.
        note: a remark for people, such as a file that ended too early, or a camera that gives
            another size than it was asked for.
    """

    name: str
    live: bool
    fps: float | None
    damaged: int
    note: str

    def open(self) -> None:
        """Connect; may be called again after `close`.

        Raises:
            CameraError: not there, busy or of another kind.
        """
        ...

    def read(self) -> Frame | None:
        """Wait for the next frame; None: the source has ended or was closed.

        Raises:
            CameraError: a live source was lost, or sent nothing for some seconds.
        """
        ...

    def close(self) -> None:
        """Give everything back and let a waiting `read` return soon; may be called twice."""
        ...


def public_name(address: str) -> str:
    """An address or pipeline without the users and passwords in it, for logs and pages."""
    return _SECRET.sub(r"\1***", _USER.sub("", address))


def bare_address(address: str) -> str:
    """An address without its user and password, as it is asked for."""
    return _USER.sub("", address)
