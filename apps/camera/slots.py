"""Where capture threads leave their frames for the detector; of a camera the newest wins."""

from __future__ import annotations

import threading
from collections import deque

from edge.video.frame import Frame

__all__ = ["Slots"]

# Who waits may be ahead by so many frames, so that decoding and detection overlap.
_AHEAD = 3


class Slots:
    """A place for the frames of each source, taken in turn; safe for any number of threads.

    Attributes:
        dropped: by source, frames that a newer one replaced before they were taken.
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
        """Whether every source has ended and its last frame is taken."""
        with self._changed:
            return all(self._ended) and not any(self._frames)

    def put(self, source: int, frame: Frame, wait: bool = False) -> None:
        """Leave a frame: in the place of the one before, or with `wait` behind it."""
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
                waiting = self._frames[source]
                if waiting:
                    self._last, frame = source, waiting.popleft()
                    # Each waking of a reader may cost the detector a switch of threads.
                    if len(waiting) <= 1:
                        self._changed.notify_all()
                    return source, frame
        return None

    def close(self) -> None:
        """Let every waiting thread go; frames that come later are forgotten."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _ready(self) -> bool:
        return any(self._frames) or self._closed or all(self._ended)
