"""Where results go: each sink has a thread and a short queue, so that none holds up detection."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Protocol

import cv2

from apps.camera.options import Outputs
from apps.camera.recording import VideoSink
from apps.camera.result import Result
from apps.camera.stats import SinkStats
from edge.errors import ArtifactError, CameraError, EdgeError
from edge.files import refuse_input, write_file
from edge.video.disk import need_room
from edge.video.frame import Source

__all__ = [
    "EventSink",
    "PictureSink",
    "Sink",
    "SinkWorker",
    "WindowSink",
    "close_all",
    "start_sinks",
    "why_no_window",
]

_RETRY_S = 30.0
# At the end: what waits is written within this time, and within the shorter one after a signal.
_DRAIN_S, _HURRY_S = 8.0, 1.1
# A sink that takes a single result longer than this hangs.
_HANGS_S = 30.0
_LOOK_S = 0.2
_USUAL_FPS = 30.0
_PICTURES_KEPT = 1000
_PICTURES_EVERY_S = 1.0


class Sink(Protocol):
    """Something that takes results, all in one thread.

    Attributes:
        name: for people, such as the file.
        pictures: whether it needs the frames, or only the numbers.
        depth: how many results may wait, at least 1.
        newest: when the queue is full, drop the oldest result; else the one that comes.
    """

    name: str
    pictures: bool
    depth: int
    newest: bool

    def write(self, result: Result) -> None:
        """Take one result; open what it needs the first time, and again after `close`.

        Raises:
            OSError, EdgeError: it failed; `close` follows, and later another attempt.
        """
        ...

    def close(self) -> None:
        """Finish, so that what was written is whole and readable."""
        ...


class SinkWorker:
    """A sink behind its queue.

    Args:
        sink: what is served.
        say: told once when the sink fails and once when it works again.
        wait: `offer` waits for room (files that are read as fast as possible); else it drops.
        only: index of the one source it serves; None: all.
        stop: once it is set, nobody waits for the sink any more.
    """

    def __init__(
        self,
        sink: Sink,
        say: Callable[[str], None],
        *,
        wait: bool = False,
        only: int | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.sink, self._say, self._wait, self._only = sink, say, wait, only
        self.written, self.dropped, self._error = 0, 0, ""
        self._stop = stop or threading.Event()
        self._queue: deque[Result] = deque()
        self._changed = threading.Condition()
        self._closing = self._left = False
        self._resume = 0.0
        # Since when the sink has been at one result.
        self._since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)
        self._thread.start()

    @property
    def error(self) -> str:
        """Why the sink fails; empty where it works."""
        since = self._since
        if not self._error and since is not None and time.monotonic() - since > _HANGS_S:
            return f"has not taken a result for {time.monotonic() - since:.0f} s"
        return self._error

    def offer(self, result: Result) -> None:
        """Leave a result for the sink; returns at once unless `wait`."""
        if self._only is not None and result.source != self._only:
            return
        kept = result if self.sink.pictures else result.bare()
        with self._changed:
            if self._wait:
                while not (self._takes() or self._stop.is_set() or self.error):
                    self._changed.wait(_LOOK_S)
            if len(self._queue) >= self.sink.depth or self._closing:
                self.dropped += 1
                if not self.sink.newest or self._closing:
                    return
                self._queue.popleft()
            self._queue.append(kept)
            self._changed.notify_all()

    def _takes(self) -> bool:
        return len(self._queue) < self.sink.depth or self._closing

    def ask_to_close(self) -> None:
        """Let the thread write what waits, close the sink and end; does not wait for it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self, wait_s: float = _DRAIN_S) -> None:
        """Ask it to close and wait; what is too slow for that is dropped."""
        self.ask_to_close()
        if self._left:
            return
        self._thread.join(wait_s * 0.6)
        if self._thread.is_alive():
            with self._changed:
                self.dropped += len(self._queue)
                self._queue.clear()
            self._thread.join(wait_s * 0.4)
        if self._thread.is_alive():
            self._left = True
            self._fail("does not end; it is left behind")

    def stats(self) -> SinkStats:
        """Return the figures for statistics and pages."""
        return SinkStats(self.sink.name, self.written, self.dropped, self.error)

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
        self._since = time.monotonic()
        try:
            self.sink.write(result)
        except BaseException as error:  # whatever a sink does, sys.exit() too, detection goes on
            self.dropped += 1
            self._resume = time.monotonic() + _RETRY_S
            self._fail(_text(error))
            self._close_sink()
            return
        finally:
            self._since = None
        self.written += 1
        if self._error:
            self._error = ""
            self._say(f"{self.sink.name}: works again")

    def _close_sink(self) -> None:
        try:
            self.sink.close()
        except BaseException as error:  # as in `_write`
            self._fail(_text(error))

    def _fail(self, error: str) -> None:
        if not self._error:
            self._say(f"{self.sink.name}: {error}; detection goes on")
        self._error = error


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, EdgeError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    named = isinstance(error, (EdgeError, OSError))
    return str(error) if named else f"{type(error).__name__}: {error}"


def close_all(workers: Sequence[SinkWorker], hurry: bool) -> None:
    """Let all sinks finish at the same time; with `hurry` within little more than a second."""
    end = time.monotonic() + (_HURRY_S if hurry else _DRAIN_S)
    for worker in workers:
        worker.ask_to_close()
    for worker in workers:
        worker.close(max(0.1, end - time.monotonic()))


def start_sinks(
    outputs: Outputs,
    own: Sequence[Sink],
    sources: Sequence[Source],
    say: Callable[[str], None],
    stop: threading.Event,
) -> list[SinkWorker]:
    """Start a worker for each sink of `outputs` and for each of the caller's `own`.

    The sources are open, so that their rates are known.

    Raises:
        CameraError: a window is asked for and cannot be shown.
    """
    # Files that are read as fast as possible lose no frame; a camera waits for nobody.
    wait = not any(source.live for source in sources)
    wanted: list[tuple[Sink, int | None]] = [
        (sink, None) for sink in (*own, *_shared(outputs, wait, stop))
    ]
    if outputs.record is not None:
        wanted += [
            (_video(outputs, Path(outputs.record), index, sources, say), index)
            for index in range(len(sources))
        ]
    return [
        SinkWorker(sink, say, wait=wait and not sink.newest, only=only, stop=stop)
        for sink, only in wanted
    ]


def _shared(outputs: Outputs, wait: bool, stop: threading.Event) -> list[Sink]:
    sinks: list[Sink] = []
    if outputs.window or (outputs.window is None and not why_no_window()):
        sinks.append(WindowSink(stop))
    if outputs.events is not None:
        sinks.append(EventSink(outputs.events, stop))
    if outputs.pictures is not None:
        every_s = 0.0 if wait else _PICTURES_EVERY_S
        if outputs.pictures_every is not None:
            every_s = outputs.pictures_every
        sinks.append(PictureSink(outputs.pictures, every_s, None if wait else _PICTURES_KEPT))
    return sinks


def _video(
    outputs: Outputs, path: Path, index: int, sources: Sequence[Source], say: Callable[[str], None]
) -> VideoSink:
    if len(sources) > 1:
        path = path.with_name(f"{path.stem}-s{index}{path.suffix}")
    source, total = sources[index], outputs.record_total_mib
    return VideoSink(
        path,
        say=say,
        rate=None if source.live else source.fps or _USUAL_FPS,
        segment_s=outputs.record_seconds,
        segment_mib=outputs.record_mib,
        total_mib=None if total is None else total / len(sources),
    )


class EventSink:
    """One JSON object a frame and line, each flushed; appended, never rewritten.

    A line that a full disk cut off is taken back, so that every line can be read. A device or pipe
    is written through.

    Args:
        path: the file; `-` is standard output.
        stop: set when the reader of standard output, such as `head`, has gone.
    """

    pictures, depth, newest = False, 256, False

    def __init__(self, path: str | Path, stop: threading.Event | None = None) -> None:
        self.name = f"events {path}"
        self._path, self._stop = Path(path), stop
        self._file: IO[bytes] | None = None

    def write(self, result: Result) -> None:
        """See `Sink.write`."""
        line = json.dumps(result.to_json(), separators=(",", ":")).encode() + b"\n"
        if str(self._path) == "-":
            self._print(line.decode())
            return
        if self._file is None:
            self._file = _append(self._path)
        end = os.fstat(self._file.fileno())
        try:
            # Unbuffered, the number of bytes written is the truth about the disk.
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space left on the disk", str(self._path))
        except OSError:
            if stat.S_ISREG(end.st_mode):
                self._file.truncate(end.st_size)
            raise

    def _print(self, line: str) -> None:
        try:
            sys.stdout.write(line)
            sys.stdout.flush()
        except BrokenPipeError:
            # What Python still holds would be written, and fail, at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if self._stop is not None:
                self._stop.set()
            raise

    def close(self) -> None:
        """See `Sink.close`."""
        if self._file is not None:
            self._file.close()
        self._file = None


def _append(path: Path) -> IO[bytes]:
    refuse_input(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        return path.open("wb", buffering=0)
    file = path.open("ab+", buffering=0)
    size = file.seek(0, 2)
    if size:
        file.seek(size - 1)
        # A writer that was killed may have left half a line.
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


class PictureSink:
    """Annotated frames as `FOLDER/DATE-TIME-sSOURCE-FRAME.jpg`, UTC.

    Args:
        folder: made where it is missing.
        every_s: least seconds between two pictures of a source.
        limit: how many of this run's pictures to keep, the newest; None keeps all.
    """

    pictures, depth, newest = True, 4, False

    def __init__(self, folder: str | Path, every_s: float = 0.0, limit: int | None = None) -> None:
        self.name = f"pictures {folder}"
        self._folder, self._every_s, self._limit = Path(folder), every_s, limit
        self._next: dict[int, float] = {}
        self._kept: deque[Path] = deque()

    def write(self, result: Result) -> None:
        """See `Sink.write`."""
        captured = result.frame.captured
        if captured < self._next.get(result.source, captured):
            return
        self._next[result.source] = captured + self._every_s
        self._folder.mkdir(parents=True, exist_ok=True)
        need_room(self._folder)
        now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        path = self._folder / f"{now}-s{result.source}-{result.frame.index:08d}.jpg"
        done, data = cv2.imencode(".jpg", result.picture(), [cv2.IMWRITE_JPEG_QUALITY, 90])
        if not done:
            raise ArtifactError(f"{path}: OpenCV cannot encode this picture as JPEG")
        write_file(path, data.tobytes())
        self._kept.append(path)
        while self._limit is not None and len(self._kept) > self._limit:
            self._kept.popleft().unlink(missing_ok=True)

    def close(self) -> None:
        """See `Sink.close`."""


def why_no_window() -> str:
    """Return what keeps a window from opening; empty if nothing does."""
    found = re.search(r"GUI:\s+(\S+)", cv2.getBuildInformation())
    if found is None or found[1] == "NONE":
        return (
            "this OpenCV has no windows: pip uninstall opencv-python-headless, then pip install "
            "opencv-python (a Jetson: apt install python3-opencv); or use --headless"
        )
    linux = sys.platform.startswith("linux")
    if linux and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no screen (DISPLAY is not set); use --headless"
    return ""


class WindowSink:
    """A window with the newest result of each source; Q or Escape ends the app.

    Args:
        stop: set when the user has seen enough.

    Raises:
        CameraError: as `why_no_window` says.
    """

    pictures, depth, newest = True, 1, True

    def __init__(self, stop: threading.Event) -> None:
        if reason := why_no_window():
            raise CameraError(f"window: {reason}")
        self.name, self._stop = "window", stop

    def write(self, result: Result) -> None:
        """See `Sink.write`."""
        try:
            cv2.imshow(f"edge: {result.name}", result.picture())
            key = cv2.waitKey(1) & 0xFF
        except cv2.error as error:
            raise CameraError(f"window: {' '.join(str(error).split())}") from error
        if key in (ord("q"), ord("Q"), 27):
            self._stop.set()

    def close(self) -> None:
        """See `Sink.close`."""
        cv2.destroyAllWindows()
