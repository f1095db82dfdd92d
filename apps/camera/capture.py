"""The thread that keeps one source open and leaves its newest frame in the slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from apps.camera.slots import Slots
from edge.errors import CameraError
from edge.video.frame import Frame, Source

__all__ = ["Capture"]

State = Literal["connecting", "live", "lost", "ended"]
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
# A camera that stays so long is well again, and the next loss begins with a short wait.
_WELL_S = 10.0
_JOIN_S = 7.0


class Capture:
    """Reads an open source until it ends or `close`; a lost live one is opened again, for ever.

    Attributes:
        state: `live`, `lost` while it is being opened again, `ended`.
        reconnects: how often a lost source came back.
        error: why it is or was lost; empty if it never was.
        frames: read from the source.
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
        self._thread = threading.Thread(
            target=self._run, name=f"capture {source.name}", daemon=True
        )

    def open(self) -> None:
        """Wait for the first frame, so that what cannot work fails at once, and read on.

        Raises:
            CameraError: as `Source.open` and `Source.read`, or there is no frame at all.
        """
        self._connect()
        self._thread.start()

    def close(self) -> None:
        """Stop reading and close the source."""
        self._stop.set()
        self._slots.close()
        self.source.close()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def facts(self) -> dict[str, Any]:
        """For statistics and pages."""
        return {
            "name": self.source.name,
            "state": self.state,
            "live": self.source.live,
            "hw": self.hw,
            "nominal_fps": self.source.fps,
            "captured": self.frames,
            "dropped": self._slots.dropped[self._index],
            "damaged": self.source.damaged,
            "reconnects": self.reconnects,
            "error": self.error,
            "note": self.source.note,
        }

    def _connect(self) -> None:
        """Open the source and take its first frame: only a camera that sends is a camera."""
        try:
            self.source.open()
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
        self.last = frame.captured
        self._slots.put(self._index, frame, wait=not self.source.live)

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        try:
            while not self._stop.is_set():
                opened = time.monotonic()
                if self._read_on():
                    return
                wait_s = _FIRST_WAIT_S if time.monotonic() - opened > _WELL_S else wait_s
                wait_s = self._reopen(wait_s)
        finally:
            self.source.close()
            self.state = "ended"
            self._slots.end(self._index)

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
        """What the source has to say besides its frames, once."""
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
        """Try until it works; the wait doubles up to 10 s. Gives the wait for the next loss."""
        self.source.close()
        while not self._stop.wait(wait_s):
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
            try:
                self._connect()
            except Exception as error:  # what a driver or a camera that starts up comes up with
                self.error = self._words(error)
                continue
            self.reconnects += 1
            self._say(f"{self.source.name}: back")
            break
        return wait_s
