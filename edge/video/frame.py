"""A frame, a source of frames, and what may be asked of one."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edge.options import option, positive

__all__ = ["MAX_SIDE", "Frame", "GuardedSource", "Image", "Source", "SourceOptions"]

Image = NDArray[np.uint8]
# Twice the width of 8K: whoever asks for more has mistyped.
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


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH, such as 720x1280") from None
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"{text!r}: a side has 1 to {MAX_SIDE} pixels")
    return height, width


@dataclass(frozen=True)
class SourceOptions:
    """What is asked of a source; None leaves the choice to it.

    Attributes:
        hw: height and width in pixels to ask of a camera, a pipeline or the built-in world
        fps: frames a second to ask of a camera; a file is played at this rate
        pixel_format: pixel format to ask of a V4L2 camera, four characters such as MJPG or YUYV
        fast: read files as fast as possible and detect in every frame, in place of playing them at
            their own speed
    """

    hw: tuple[int, int] | None = option(None, flag="--size", metavar="HxW", check=_size)
    fps: float | None = option(None, metavar="N", check=positive)
    pixel_format: str | None = option(None, flag="--format", metavar="FOUR")
    fast: bool = False


class Source(ABC):
    """A source of frames: a context manager, and an iterable of its frames.

        with open_source("rtsp://camera/stream") as source:
            for frame in source:
                ...

    One thread reads; `close` may be called from another one.

    Attributes:
        name: for people, without passwords.
        live: frames come whether they are taken or not. Old ones are dropped, and a lost source is
            opened again. Of other sources every frame is taken.
        fps: nominal frames a second, known once the source is open; None where nobody knows.
        damaged: how many frames could not be decoded and were left out.
        note: a remark for people, such as a file that ended too early, or a camera that gives
            another size than it was asked for.
    """

    name: str
    live: bool
    fps: float | None
    damaged: int
    note: str

    @abstractmethod
    def open(self) -> None:
        """Connect. May be called again after `close`.

        Raises:
            CameraError: the source is not there, busy or of another kind.
        """

    @abstractmethod
    def read(self) -> Frame | None:
        """Wait for the next frame; None means that the source has ended or was closed.

        Raises:
            CameraError: a live source was lost, or sent nothing for some seconds.
        """

    @abstractmethod
    def close(self) -> None:
        """Give everything back and let a waiting `read` return soon, without waiting for it.

        A second call does nothing.
        """

    def __iter__(self) -> Iterator[Frame]:
        """Give each frame; of a live source the newest one, so that a slow reader sees no old ones.

        Raises:
            CameraError: as `read`.
        """
        return _newest(self) if self.live else iter(self.read, None)

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _newest(source: Source) -> Iterator[Frame]:
    """Read in a thread, and give the newest frame each time one is asked for."""
    changed = threading.Condition()
    # The newest frame; None: the source has ended; an error: it was lost.
    place: list[Frame | Exception | None] = []
    left = threading.Event()

    def put(found: Frame | Exception | None) -> None:
        with changed:
            place[:] = [found]
            changed.notify()

    def read_on() -> None:
        try:
            while not left.is_set():
                found = source.read()
                put(found)
                if found is None:
                    return
        except Exception as error:  # raised again in the thread that iterates
            put(error)

    reader = threading.Thread(target=read_on, name=f"reading {source.name}", daemon=True)
    reader.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: place)
                found = place.pop()
            if isinstance(found, Exception):
                raise found
            if found is None:
                return
            yield found
    finally:
        # The reader takes at most one more frame; it must not take one that others wait for.
        left.set()
        reader.join(1.0)


class GuardedSource(Source):
    """A source whose device is opened, read and given back by one thread at a time.

    `close` never waits for a `read` that hangs: the device is then given back by the reader, as
    soon as it returns. A subclass says how to `_connect`, `_take` and `_release`.

    Args:
        name: for people, without passwords.
        live: see `Source`.
        fps: nominal, if known already.
    """

    def __init__(self, name: str, live: bool, fps: float | None = None) -> None:
        self.name, self.live, self.fps = name, live, fps
        self.damaged, self.note = 0, ""
        self._closed = threading.Event()
        self._device = threading.Lock()
        self._index = 0

    def open(self) -> None:
        """See `Source.open`."""
        with self._device:
            self._closed.clear()
            self._index = 0
            try:
                self._connect()
            except BaseException:
                self._release()
                raise
        self._give_back()

    def read(self) -> Frame | None:
        """See `Source.read`."""
        try:
            with self._device:
                taken = None if self._closed.is_set() else self._take()
        finally:
            self._give_back()
        if taken is None or self._closed.is_set():
            return None
        frame = Frame(*taken, self._index)
        self._index += 1
        return frame

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
        self._interrupt()
        self._give_back(wait_s=0.05)

    def _give_back(self, wait_s: float = 0.0) -> None:
        """Release a closed device, unless another thread is at it, which will do so itself."""
        if not self._closed.is_set() or not self._device.acquire(timeout=wait_s):
            return
        try:
            self._release()
        finally:
            self._device.release()

    def _interrupt(self) -> None:
        """Wake a reader that waits; called by the thread that closes."""

    @abstractmethod
    def _connect(self) -> None:
        """Open the device.

        Raises:
            CameraError: as `Source.open`.
        """

    @abstractmethod
    def _take(self) -> tuple[Image, float] | None:
        """Wait for a picture and the time of its capture; None: the end, or `_closed` is set.

        Raises:
            CameraError: as `Source.read`.
        """

    @abstractmethod
    def _release(self) -> None:
        """Give the device back, if it is open."""
