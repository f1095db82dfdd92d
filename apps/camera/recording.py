"""Annotated frames as MP4 files that are always whole, in pieces where a limit asks for it.

H.264 is written where this machine has an encoder, as browsers play nothing else of ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol

import cv2
import numpy as np

from apps.camera.result import Result
from edge.errors import ArtifactError
from edge.files import refuse_input
from edge.reporting import say
from edge.video.cameras import has_gstreamer
from edge.video.disk import need_room
from edge.video.frame import Image
from edge.video.gstreamer import has_element

__all__ = ["VideoSink", "has_index"]

# A live camera's rate is known after this many frames.
_LISTEN = 8
_USUAL_RATE = 10.0
_MAX_RATE = 120.0
# A longer gap in the stream is not filled with a standing picture.
_GAP_S = 2.0
_MIB = 1 << 20
# FFmpeg writes in pieces of 256 KiB; the frame that makes a file too big and the index come on top.
_UNSEEN = 512 << 10
# FFmpeg's encoders of H.264, the fast ones first.
_FFMPEG_H264 = ("h264_nvenc", "libx264", "libopenh264")
_GSTREAMER_H264 = {
    "nvv4l2h264enc": "video/x-raw,format=BGRx ! nvvidconv ! video/x-raw(memory:NVMM),format=NV12 "
    "! nvv4l2h264enc",
    "x264enc": "x264enc speed-preset=veryfast tune=zerolatency",
    "openh264enc": "openh264enc",
}
_OLD = "MPEG-4 part 2"


class _Writer(Protocol):
    """What `cv2.VideoWriter` promises, as far as it is used here."""

    def write(self, image: Image) -> object: ...

    def release(self) -> object: ...


class _FfmpegWriter:
    """The `ffmpeg` program as a writer."""

    def __init__(
        self, program: str, codec: str, path: Path, hw: tuple[int, int], rate: float
    ) -> None:
        form = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{hw[1]}x{hw[0]}", "-r", f"{rate:g}"]
        code = ["-c:v", codec, "-pix_fmt", "yuv420p", "-f", "mp4"]
        code += ["-preset", "veryfast", "-tune", "zerolatency"] if codec == "libx264" else []
        self._path = path
        self._child = subprocess.Popen(
            [program, "-v", "error", "-y", *form, "-i", "-", *code, f"file:{path}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in a terminal is for the app, which ends the file itself.
            start_new_session=True,
        )

    def write(self, image: Image) -> None:
        if self._child.stdin is not None:
            try:
                self._child.stdin.write(np.ascontiguousarray(image).data)
            except BrokenPipeError:
                raise OSError(errno.EIO, "ffmpeg has ended", str(self._path)) from None

    def release(self) -> None:
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        self._child.wait()


def _open_writer(how: str, path: Path, hw: tuple[int, int], rate: float) -> _Writer | None:
    """Open a file with one of `_encoders`; None where it cannot be."""
    kind, _, name = how.partition(":")
    size = (hw[1], hw[0])
    if kind == "ffmpeg":
        return _FfmpegWriter(shutil.which("ffmpeg") or "ffmpeg", name, path, hw, rate)
    if kind == "gstreamer":
        place = str(path).replace("\\", "\\\\").replace('"', '\\"')
        line = (
            f"appsrc ! video/x-raw,format=BGR ! videoconvert ! {_GSTREAMER_H264[name]} "
            f'! h264parse ! mp4mux ! filesink location="{place}"'
        )
        made = cv2.VideoWriter(line, cv2.CAP_GSTREAMER, 0, rate, size)
    else:
        made = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*name), rate, size)
    return made if made.isOpened() else None


def _encoders() -> Iterator[str]:
    if has_gstreamer():
        yield from (f"gstreamer:{name}" for name in _GSTREAMER_H264 if has_element(name))
    yield "opencv:avc1"
    program = shutil.which("ffmpeg")
    if program is not None:
        try:
            done = subprocess.run(
                [program, "-v", "quiet", "-encoders"], capture_output=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return
        words = done.stdout.decode("latin-1").split()
        yield from (f"ffmpeg:{name}" for name in _FFMPEG_H264 if name in words)


@lru_cache(maxsize=1)
def _h264() -> str:
    """Return the first encoder of H.264 that writes a file on this machine; empty: none does."""
    frame = np.zeros((128, 256, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        for number, how in enumerate(_encoders()):
            path = Path(folder) / f"{number}.mp4"
            try:
                writer = _open_writer(how, path, (128, 256), 10)
                if writer is None:
                    continue
                for _ in range(3):
                    writer.write(frame)
                writer.release()
            except OSError:
                continue
            if has_index(path):
                return how
    return ""


class VideoSink:
    """A sink that records one source.

    A file is called `NAME.part.mp4` until it is whole. Without limits there is one, `NAME.mp4`;
    a change of the picture's size, a limit or a failure begins the next, `NAME-0002.mp4`. With
    limits they are `NAME-0001.mp4` and so on, after those that are there.

    Args:
        path: `NAME.mp4`.
        rate: frames per second of the file, each result one frame; None: as the clock says.
        segment_s: seconds of one file at most.
        segment_mib: size of one file at most.
        total_mib: of all files of this name; the oldest are deleted.
        say: told once which codec is written.
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
        say: Callable[[str], None] = say,
    ) -> None:
        self._path, self._say, self._told = Path(path), say, False
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
            how = _h264()
            self._file = _Segment(self._next_path(), hw, rate, captured, how)
            self._tell(how)
        need_room(self._path.parent)
        self._file.add(picture, captured if self._rate is None else None)

    def _tell(self, how: str) -> None:
        if not self._told:
            self._told = True
            codec = (
                f"H.264 ({how.replace(':', ' ')})"
                if how
                else (
                    f"{_OLD}, which browsers do not play: no H.264 encoder is here; "
                    "sudo apt install ffmpeg"
                )
            )
            self._say(f"{self.name}: {codec}")

    def _full(self, file: _Segment, captured: float) -> bool:
        seconds = file.written / file.rate if self._rate else captured - file.begin
        late = bool(self._seconds) and seconds >= self._seconds
        return late or (bool(self._bytes) and file.size() >= self._bytes)

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.finish()
            self._numbered = True

    def _pieces(self, suffix: str = ".mp4") -> dict[int, Path]:
        pattern = re.compile(re.escape(self._path.stem) + r"-(\d{4,})" + re.escape(suffix))
        found: dict[int, Path] = {}
        for path in self._path.parent.iterdir():
            if match := pattern.fullmatch(path.name):
                found[int(match[1])] = path
        return found

    def _next_path(self) -> Path:
        if not self._numbered:
            return self._path
        first = 0 if not self._path.exists() else 1
        number = max([*self._pieces(), *self._pieces(".part.mp4")], default=first) + 1
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
    """One file that is being written; a lock on it keeps other apps away."""

    def __init__(
        self, path: Path, hw: tuple[int, int], rate: float, begin: float, how: str
    ) -> None:
        self.hw, self.rate, self.begin, self.written = hw, rate, begin, 0
        self._path, self._part = path, path.with_name(f"{path.stem}.part.mp4")
        refuse_input(path)
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path}: is not a regular file; a recording needs one")
        # OpenCV says only that it failed; the system says why.
        self._lock: IO[bytes] = self._part.open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ArtifactError(
                f"{path}: another app is recording to this name; name another file"
            ) from None
        writer = _open_writer(how or "opencv:mp4v", self._part, hw, rate)
        writer = writer or _open_writer("opencv:mp4v", self._part, hw, rate)
        if writer is None:
            self._part.unlink(missing_ok=True)
            self._lock.close()
            raise OSError(errno.EIO, "this OpenCV cannot write MP4", str(path))
        self._writer = writer

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
        """Write the index and give the file its name; delete what cannot be played."""
        try:
            self._writer.release()
            if self.written and has_index(self._part):
                os.replace(self._part, self._path)
                return
            with contextlib.suppress(OSError):
                self._part.unlink()
        finally:
            self._lock.close()
        if self.written:
            raise OSError(errno.EIO, "the recording got no index and was deleted", str(self._path))


def _measured(heard: deque[Result]) -> float:
    if len(heard) < 2:
        return _USUAL_RATE
    span = heard[-1].frame.captured - heard[0].frame.captured
    return min(_MAX_RATE, max(1.0, round((len(heard) - 1) / max(span, 1e-3), 2)))


def _even(picture: Image) -> Image:
    # Video stores colour at half the size.
    height, width = picture.shape[:2]
    if min(height, width) < 2:
        lacking = (0, 2 - min(2, height), 0, 2 - min(2, width))
        picture = np.asarray(cv2.copyMakeBorder(picture, *lacking, cv2.BORDER_REPLICATE), np.uint8)
    return picture[: max(2, height // 2 * 2), : max(2, width // 2 * 2)]


def has_index(path: Path) -> bool:
    """Return whether an MP4 has its `moov` box, without which no player opens it (ISO 14496-12)."""
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
