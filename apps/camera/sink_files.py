"""Results as JSON lines, and as annotated JPEG pictures."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections import deque
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

import cv2

from apps.camera.result import Result
from edge.errors import ArtifactError
from edge.files import write_file
from edge.video.disk import need_room

__all__ = ["EventSink", "PictureSink"]


class EventSink:
    """One JSON object per frame and line, each flushed; appended, never rewritten.

    A line that a full disk cut off is taken back, so that every line can be read.

    Args:
        path: the file; `-` is stdout.
        stop: set when stdout's reader, such as `head`, has gone.
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
        end = os.fstat(self._file.fileno()).st_size
        try:
            # Unbuffered, the number of bytes written is the truth about the disk.
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space left on the disk", str(self._path))
        except OSError:
            self._file.truncate(end)
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
    path.parent.mkdir(parents=True, exist_ok=True)
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
        every_s: at most one picture of a source in so many seconds.
        limit: the oldest of this run's pictures go when there are more; None: all stay.
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
