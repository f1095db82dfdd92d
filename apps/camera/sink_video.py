"""Annotated frames as MP4 files that are always whole, in pieces where a limit asks for it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections import deque
from pathlib import Path

import cv2
import numpy as np

from apps.camera.result import Result
from edge.video.disk import need_room
from edge.video.frame import Image

__all__ = ["VideoSink", "has_index"]

# A live camera's rate is known after so many frames.
_LISTEN = 8
_USUAL_RATE = 10.0
_MAX_RATE = 120.0
# A gap in the stream is shown as a standing picture for so long at most.
_GAP_S = 2.0
_MIB = 1 << 20
# FFmpeg writes in pieces of 256 KiB; the frame that makes a file too big and the index come on top.
_UNSEEN = 512 << 10


class VideoSink:
    """Records one source.

    A file is called `NAME.part.mp4` until it is whole. Without limits there is one, `NAME.mp4`;
    a change of the picture's size, a limit or a failure begins the next, `NAME-0002.mp4`. With
    limits they are `NAME-0001.mp4` and so on, after those that are there.

    Args:
        path: `NAME.mp4`.
        rate: frames per second of the file, each result one frame; None: as the clock says.
        segment_s: seconds of one file at most.
        segment_mib: size of one file at most.
        total_mib: of all files of this name; the oldest are deleted.
    """

    pictures, depth, newest = True, 8, False

    def __init__(
        self,
        path: str | Path,
        *,
        rate: float | None = None,
        segment_s: float | None = None,
        segment_mib: float | None = None,
        total_mib: float | None = None,
    ) -> None:
        self._path = Path(path)
        if self._path.suffix.lower() != ".mp4":
            raise ValueError(f"{path}: a recording is an .mp4 file")
        self.name = f"recording {path}"
        self._rate = rate
        # Four files of a limited total: the oldest quarter goes at a time.
        quarter = None if total_mib is None else total_mib / 4
        self._bytes = min((each for each in (segment_mib, quarter) if each), default=0) * _MIB
        self._seconds = segment_s or 0.0
        self._total = None if total_mib is None else total_mib * _MIB
        self._numbered = bool(self._bytes or self._seconds)
        self._heard: deque[Result] = deque()
        self._file: _Segment | None = None

    def write(self, result: Result) -> None:
        """See `Sink.write`."""
        self._heard.append(result)
        if self._file is None and self._rate is None and len(self._heard) < _LISTEN:
            return
        self._flush()

    def close(self) -> None:
        """See `Sink.close`."""
        try:
            self._flush()
        finally:
            self._heard.clear()
            self._finish()

    def _flush(self) -> None:
        rate = self._rate or _measured(self._heard)
        while self._heard:
            result = self._heard.popleft()
            self._add(_even(result.picture()), result.frame.captured, rate)

    def _add(self, picture: Image, captured: float, rate: float) -> None:
        hw = (picture.shape[0], picture.shape[1])
        if self._file is not None and (self._file.hw != hw or self._full(self._file, captured)):
            rate = self._file.rate
            self._finish()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room()
            self._file = _Segment(self._next_path(), hw, rate, captured)
        need_room(self._path.parent)
        self._file.add(picture, captured if self._rate is None else None)

    def _full(self, file: _Segment, captured: float) -> bool:
        seconds = file.written / file.rate if self._rate else captured - file.begin
        late = bool(self._seconds) and seconds >= self._seconds
        return late or (bool(self._bytes) and file.size() >= self._bytes)

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.finish()
            self._numbered = True

    def _pieces(self) -> dict[int, Path]:
        pattern = re.compile(re.escape(self._path.stem) + r"-(\d{4,})\.mp4")
        found: dict[int, Path] = {}
        for path in self._path.parent.iterdir():
            if match := pattern.fullmatch(path.name):
                found[int(match[1])] = path
        return found

    def _next_path(self) -> Path:
        if not self._numbered:
            return self._path
        first = 0 if not self._path.exists() else 1
        number = max(self._pieces(), default=first) + 1
        return self._path.with_name(f"{self._path.stem}-{number:04d}.mp4")

    def _make_room(self) -> None:
        if self._total is None:
            return
        pieces = sorted(self._pieces().items())
        sizes = [path.stat().st_size for _, path in pieces]
        used = sum(sizes) + self._bytes + _UNSEEN
        for (_, path), size in zip(pieces, sizes, strict=True):
            if used <= self._total:
                break
            path.unlink(missing_ok=True)
            used -= size


class _Segment:
    """One file being written."""

    def __init__(self, path: Path, hw: tuple[int, int], rate: float, begin: float) -> None:
        self.hw, self.rate, self.begin, self.written = hw, rate, begin, 0
        self._path, self._part = path, path.with_name(f"{path.stem}.part.mp4")
        # OpenCV says only that it failed; the system says why.
        self._part.write_bytes(b"")
        fourcc = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(self._part), fourcc, rate, (hw[1], hw[0]))
        if not self._writer.isOpened():
            self._part.unlink(missing_ok=True)
            raise OSError(errno.EIO, "this OpenCV cannot write MP4", str(path))

    def size(self) -> int:
        try:
            return self._part.stat().st_size
        except OSError:
            return 0

    def add(self, picture: Image, captured: float | None) -> None:
        due = 1
        if captured is not None:
            due = int((captured - self.begin) * self.rate + 0.5) + 1 - self.written
            surplus = due - int(_GAP_S * self.rate) - 1
            if surplus > 0:
                self.begin += surplus / self.rate
                due -= surplus
        for _ in range(due):
            self._writer.write(picture)
            self.written += 1

    def finish(self) -> None:
        """Write the index and give the file its name; what cannot be played is deleted."""
        self._writer.release()
        if self.written and has_index(self._part):
            os.replace(self._part, self._path)
            return
        with contextlib.suppress(OSError):
            self._part.unlink()
        if self.written:
            raise OSError(errno.EIO, "the recording got no index and was deleted", str(self._path))


def _measured(heard: deque[Result]) -> float:
    if len(heard) < 2:
        return _USUAL_RATE
    span = heard[-1].frame.captured - heard[0].frame.captured
    return min(_MAX_RATE, max(1.0, round((len(heard) - 1) / max(span, 1e-3), 2)))


def _even(picture: Image) -> Image:
    # MPEG-4 stores colour at half the size.
    height, width = picture.shape[:2]
    if min(height, width) < 2:
        lacking = (0, 2 - min(2, height), 0, 2 - min(2, width))
        picture = np.asarray(cv2.copyMakeBorder(picture, *lacking, cv2.BORDER_REPLICATE), np.uint8)
    return picture[: max(2, height // 2 * 2), : max(2, width // 2 * 2)]


def has_index(path: Path) -> bool:
    """Whether an MP4 has its `moov` box, without which no player opens it (ISO/IEC 14496-12)."""
    try:
        with path.open("rb") as file:
            end, at = os.fstat(file.fileno()).st_size, 0
            while at + 8 <= end:
                file.seek(at)
                head = file.read(16)
                size, kind = int.from_bytes(head[:4], "big"), head[4:8]
                if size == 1:
                    size = int.from_bytes(head[8:16], "big")
                if size < 8 or at + size > end:
                    return False
                if kind == b"moov":
                    return True
                at += size
    except OSError:
        return False
    return False
