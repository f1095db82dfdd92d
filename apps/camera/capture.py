"""One thread a source, which keeps it open and leaves its newest frame where the detector is."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from edge.errors import CameraError
from edge.video.frame import Frame, Source

__all__ = ["Capture", "Slots"]

State = Literal["connecting", "live", "lost", "ended"]
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
# A camera that stays this long is well again, and the next loss begins with a short wait.
_WELL_S = 10.0
# A read that hangs is left behind; see `Source.close`.
_JOIN_S = 0.4
_LOOK_S = 0.1
# A reader that waits may be ahead by this many frames, so that decoding and detection overlap.
_AHEAD = 3


class Slots:
    """Where captures leave their frames and the detector takes them, source after source.

    Of a camera the newest frame replaces the one before. Safe for any number of threads.

    Attributes:
        dropped: how many frames of each source a newer one replaced before they were taken.
    """

    def __init__(self, count: int) -> None:
        self.dropped = [0] * count
        self._frames: list[deque[Frame]] = [deque() for _ in range(count)]
        self._ended = [False] * count
        self._last = count - 1
        self._changed = threading.Condition()
        self._closed = False

    @property
    def finished(self) -> bool:
        """Whether every source has ended and its last frame was taken."""
        with self._changed:
            return all(self._ended) and not any(self._frames)

    def put(self, source: int, frame: Frame, wait: bool = False) -> None:
        """Leave a frame in the place of the one before, or with `wait` behind it."""
        with self._changed:
            waiting = self._frames[source]
            if wait:
                self._changed.wait_for(lambda: self._closed or len(waiting) < _AHEAD)
            elif waiting:
                waiting.clear()
                self.dropped[source] += 1
            if not self._closed:
                waiting.append(frame)
            self._changed.notify_all()

    def end(self, source: int) -> None:
        """Say that no more frames will come from this source."""
        with self._changed:
            self._ended[source] = True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> tuple[int, Frame] | None:
        """Return the next source that has a frame, and the frame; None if none came in time."""
        with self._changed:
            self._changed.wait_for(self._ready, timeout_s)
            count = len(self._frames)
            for source in ((self._last + step) % count for step in range(1, count + 1)):
                waiting = self._frames[source]
                if waiting:
                    self._last, frame = source, waiting.popleft()
                    # Waking a reader may cost the detector a switch of threads.
                    if len(waiting) <= 1:
                        self._changed.notify_all()
                    return source, frame
        return None

    def close(self) -> None:
        """Let every waiting thread go; frames that come later are dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _ready(self) -> bool:
        return any(self._frames) or self._closed or all(self._ended)


class Capture:
    """Reads a source in a thread until it ends or `close`; a lost live one is opened again.

    Attributes:
        state: `connecting`, `live`, `lost` while it is being opened again, `ended`.
        reconnects: how often a lost source came back.
        error: why it is or was lost; empty if it never was.
        frames: read from the source; `dropped` of them were replaced by newer ones.
        hw: of the last frame.
        last: `time.monotonic` of the last frame.
    """

    def __init__(
        self, index: int, source: Source, slots: Slots, say: Callable[[str], None]
    ) -> None:
        self.source = source
        self.state: State = "connecting"
        self.reconnects, self.error, self.frames = 0, "", 0
        self.hw: tuple[int, int] | None = None
        self.last = time.monotonic()
        self._index, self._slots, self._say = index, slots, say
        self._said = ""
        self._stop = threading.Event()
        # Set when the first frame is there, or will never be.
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"capture {source.name}", daemon=True
        )

    @property
    def dropped(self) -> int:
        """How many frames a newer one replaced before the detector took them."""
        return self._slots.dropped[self._index]

    def start(self) -> None:
        """Begin to open the source; `wait` says what came of it."""
        self._thread.start()

    def wait(self, stop: threading.Event | None = None) -> None:
        """Wait for the first frame, so that what cannot work fails at once; or for `stop`.

        Raises:
            CameraError: as `Source.open` and `Source.read`, or there is no frame at all.
        """
        while not self._begun.wait(_LOOK_S):
            if stop is not None and stop.is_set():
                return
        if self._failure is not None:
            raise self._failure

    def open(self) -> None:
        """Start, and wait for the first frame.

        Raises:
            CameraError: as `wait`.
        """
        self.start()
        self.wait()

    def close(self) -> None:
        """Stop reading and close the source; a read that hangs is left behind."""
        self._stop.set()
        self._slots.close()
        self.source.close()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _connect(self) -> None:
        """Open the source and take its first frame: only a camera that sends is a camera."""
        try:
            self.source.open()
            if self._stop.is_set():
                # Closed before it was open: what opening undid.
                self.source.close()
            first = self.source.read()
            if first is None:
                raise CameraError(self.source.note or f"{self.source.name}: has no frame")
        except BaseException:
            self.source.close()
            raise
        self.state = "live"
        self._remark()
        self._put(first)

    def _put(self, frame: Frame) -> None:
        self.frames += 1
        self.hw = (frame.image.shape[0], frame.image.shape[1])
        self.last = time.monotonic()
        self._slots.put(self._index, frame, wait=not self.source.live)

    def _run(self) -> None:
        try:
            self._begin()
            if self._failure is None:
                self._read_for_ever()
        finally:
            self.source.close()
            self.state = "ended"
            self._slots.end(self._index)

    def _begin(self) -> None:
        try:
            if not self._stop.is_set():
                self._connect()
        except BaseException as error:  # raised again in the thread that waits
            self._failure = error
        finally:
            self._begun.set()

    def _read_for_ever(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._stop.is_set():
            opened = time.monotonic()
            if self._read_on():
                return
            wait_s = _FIRST_WAIT_S if time.monotonic() - opened > _WELL_S else wait_s
            wait_s = self._reopen(wait_s)

    def _read_on(self) -> bool:
        """Read until the end (True) or until the source is lost (False)."""
        try:
            while (frame := self.source.read()) is not None:
                self._put(frame)
        except Exception as error:  # a driver's surprise must not end the thread unseen
            self._lose(self._words(error))
        else:
            self._remark()
            return True
        return not self.source.live

    def _remark(self) -> None:
        """Say once what the source has to say besides its frames."""
        if self.source.note and self.source.note != self._said:
            self._say(self.source.note)
        self._said = self.source.note

    def _words(self, error: Exception) -> str:
        known = isinstance(error, CameraError)
        return str(error) if known else f"{self.source.name}: {type(error).__name__}: {error}"

    def _lose(self, error: str) -> None:
        self.error = error
        if self._stop.is_set():
            return
        self.state = "lost"
        self._say(error)

    def _reopen(self, wait_s: float) -> float:
        """Try until it works; the wait doubles up to 10 s. Return the wait for the next loss."""
        self.source.close()
        while not self._stop.wait(wait_s):
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
            try:
                self._connect()
            except Exception as error:  # whatever a driver or a camera that starts up raises
                self.error = self._words(error)
                continue
            self.reconnects += 1
            self._say(f"{self.source.name}: back")
            break
        return wait_s
