"""Where results go: each sink has a thread and a short queue, so that none holds up detection."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from apps.camera.result import Result
from edge.errors import EdgeError

__all__ = ["Sink", "SinkWorker"]

_RETRY_S = 30.0
_DRAIN_S, _GIVE_UP_S = 5.0, 3.0


class Sink(Protocol):
    """Takes results, all in one thread.

    Attributes:
        name: for people, such as the file.
        pictures: whether it needs the frames, or only the numbers.
        depth: results that may wait, at least 1.
        newest: when the queue is full the oldest goes; else the one that comes.
    """

    name: str
    pictures: bool
    depth: int
    newest: bool

    def write(self, result: Result) -> None:
        """Take one result; opens what it needs the first time, and again after `close`.

        Raises:
            OSError, EdgeError: it could not; `close` follows, and later another attempt.
        """
        ...

    def close(self) -> None:
        """Finish: what was written is whole and readable afterwards."""
        ...


class SinkWorker:
    """A sink behind its queue.

    Args:
        sink: what is served.
        say: told once when the sink fails and once when it works again.
        wait: `offer` waits for room (files that are read as fast as possible); else it drops.
        only: index of the one source it serves; None: all.
    """

    def __init__(
        self,
        sink: Sink,
        say: Callable[[str], None],
        *,
        wait: bool = False,
        only: int | None = None,
    ) -> None:
        self.sink, self._say, self._wait, self._only = sink, say, wait, only
        self.written, self.dropped, self.error = 0, 0, ""
        self._queue: deque[Result] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._resume = 0.0
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)
        self._thread.start()

    def offer(self, result: Result) -> None:
        """Leave a result for the sink; returns at once unless `wait`."""
        if self._only is not None and result.source != self._only:
            return
        kept = result if self.sink.pictures else result.bare()
        with self._changed:
            if self._wait:
                self._changed.wait_for(lambda: len(self._queue) < self.sink.depth or self._closing)
            if len(self._queue) >= self.sink.depth or self._closing:
                self.dropped += 1
                if not self.sink.newest or self._closing:
                    return
                self._queue.popleft()
            self._queue.append(kept)
            self._changed.notify_all()

    def ask_to_close(self) -> None:
        """Let the thread write what waits, close the sink and end; does not wait for it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """`ask_to_close`, and wait some seconds; what is too slow for that is dropped."""
        self.ask_to_close()
        self._thread.join(_DRAIN_S)
        if self._thread.is_alive():
            with self._changed:
                self.dropped += len(self._queue)
                self._queue.clear()
            self._thread.join(_GIVE_UP_S)
        if self._thread.is_alive():
            self._fail("does not come to its end; it is left behind")

    def facts(self) -> dict[str, Any]:
        """For statistics and pages."""
        return {
            "name": self.sink.name,
            "written": self.written,
            "dropped": self.dropped,
            "error": self.error,
        }

    def _run(self) -> None:
        while (result := self._next()) is not None:
            if time.monotonic() < self._resume:
                self.dropped += 1
            else:
                self._write(result)
        self._close_sink()

    def _next(self) -> Result | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            result = self._queue.popleft() if self._queue else None
            self._changed.notify_all()
            return result

    def _write(self, result: Result) -> None:
        try:
            self.sink.write(result)
        except Exception as error:  # whatever a sink meets, detection goes on
            self.dropped += 1
            self._resume = time.monotonic() + _RETRY_S
            self._fail(_text(error))
            self._close_sink()
            return
        self.written += 1
        if self.error:
            self.error = ""
            self._say(f"{self.sink.name}: works again")

    def _close_sink(self) -> None:
        try:
            self.sink.close()
        except Exception as error:
            self._fail(_text(error))

    def _fail(self, error: str) -> None:
        if not self.error:
            self._say(f"{self.sink.name}: {error}; detection goes on")
        self.error = error


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, EdgeError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    named = isinstance(error, (EdgeError, OSError))
    return str(error) if named else f"{type(error).__name__}: {error}"
