"""Where capture threads leave their frames for the detector: one place each, the newest wins."""

from __future__ import annotations

import threading

from apps.source_frame import Frame

__all__ = ["Slots"]


class Slots:
    """One place for a frame per source, taken in turn; safe for any number of threads.

    Attributes:
        dropped: by source, frames that a newer one replaced before they were taken.
    """

    def __init__(self, count: int) -> None:
        self.dropped = [0] * count
        self._frames: list[Frame | None] = [None] * count
        self._ended = [False] * count
        self._last = count - 1
        self._changed = threading.Condition()
        self._closed = False

    @property
    def finished(self) -> bool:
        """Whether every source has ended and its last frame is taken."""
        with self._changed:
            return all(self._ended) and not any(frame is not None for frame in self._frames)

    def put(self, source: int, frame: Frame, wait: bool = False) -> None:
        """Leave a frame; with `wait` after the one before is taken, else in its place."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed or self._frames[source] is None)
            if self._frames[source] is not None:
                self.dropped[source] += 1
            self._frames[source] = None if self._closed else frame
            self._changed.notify_all()

    def end(self, source: int) -> None:
        """No more frames will come from this source."""
        with self._changed:
            self._ended[source] = True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> tuple[int, Frame] | None:
        """The next source that has a frame, and the frame; None: none came in time."""
        with self._changed:
            self._changed.wait_for(self._ready, timeout_s)
            count = len(self._frames)
            for source in ((self._last + step) % count for step in range(1, count + 1)):
                frame = self._frames[source]
                if frame is not None:
                    self._frames[source], self._last = None, source
                    self._changed.notify_all()
                    return source, frame
        return None

    def close(self) -> None:
        """Let every waiting thread go; frames that come later are forgotten."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _ready(self) -> bool:
        has_frame = any(frame is not None for frame in self._frames)
        return has_frame or self._closed or all(self._ended)
