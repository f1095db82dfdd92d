"""Frames from a `gst-launch-1.0` child over a pipe, for an OpenCV without GStreamer."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import threading
import time
from collections import deque
from typing import IO

import cv2
import numpy as np

from edge.errors import CameraError
from edge.video.frame import Frame, public_name

__all__ = ["PipeSource"]

# A Jetson's camera daemon takes seconds to start; once frames come they keep coming.
_FIRST_S, _STALL_S = 15.0, 5.0
_SLICE_MS = 100
_PIPE_BYTES = 1 << 20


class PipeSource:
    """A pipeline whose last caps are I420 of a fixed size, as a live `Source`.

    The frames have a pipe of their own: `nvarguscamerasrc` prints to stdout.

    Args:
        name: for people.
        pipeline: in gst-launch's notation, without a sink.
        hw: height and width, pixels.
        hint: what to do when nothing comes.
        fps: nominal, if known.

    Raises:
        CameraError: a size at which GStreamer pads the rows of I420.
    """

    live = True

    def __init__(
        self, name: str, pipeline: str, hw: tuple[int, int], hint: str, fps: float | None
    ) -> None:
        # GstVideoInfo rounds the rows of the chroma planes up to 4 bytes.
        if hw[1] % 8 or hw[0] % 2:
            raise CameraError(f"{name}: {hw[1]}x{hw[0]} needs a width of 8 n and a height of 2 n")
        self.name, self.fps = name, fps
        self.damaged, self.note = 0, ""
        self._pipeline, self._hint, self._hw = pipeline, hint, hw
        self._yuv = np.empty((hw[0] * 3 // 2, hw[1]), np.uint8)
        self._child: subprocess.Popen[str] | None = None
        self._pipe = -1
        self._said: deque[str] = deque(maxlen=20)
        self._listener: threading.Thread | None = None
        self._index = 0
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def open(self) -> None:
        """See `Source.open`."""
        launch = shutil.which("gst-launch-1.0")
        if launch is None:
            raise CameraError(
                f"{self.name}: this OpenCV has no GStreamer and there is no gst-launch-1.0: "
                "sudo apt install gstreamer1.0-tools gstreamer1.0-plugins-good"
            )
        self._closed.clear()
        self._said.clear()
        self._index = 0
        read_end, write_end = os.pipe()
        _widen(read_end)
        tail = f" ! queue leaky=downstream max-size-buffers=1 ! fdsink sync=false fd={write_end}"
        try:
            self._child = subprocess.Popen(
                [launch, "-q", *shlex.split(self._pipeline + tail)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=(write_end,),
                # Ctrl-C in a terminal is for the app, which ends its child itself.
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            os.close(read_end)
            raise CameraError(f"{self.name}: gst-launch-1.0 does not start: {error}") from error
        finally:
            os.close(write_end)
        self._pipe = read_end
        assert self._child.stdout is not None
        self._listener = threading.Thread(
            target=_listen, args=(self._child.stdout, self._said), name="gst messages", daemon=True
        )
        self._listener.start()

    def read(self) -> Frame | None:
        """See `Source.read`."""
        with self._lock:
            if not self._fill(self._yuv.data.cast("B")):
                return None
            captured = time.monotonic()
            image = cv2.cvtColor(self._yuv, cv2.COLOR_YUV2BGR_I420)
        frame = Frame(np.asarray(image, np.uint8), captured, self._index)
        self._index += 1
        return frame

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
        with self._lock:
            if self._child is None:
                return
            _end(self._child)
            os.close(self._pipe)
            if self._listener is not None:
                self._listener.join(2)
            if self._child.stdout is not None:
                self._child.stdout.close()
            self._child, self._pipe = None, -1

    def _fill(self, buffer: memoryview) -> bool:
        """Read one whole frame; False: closed, or the pipeline came to its end."""
        patience = time.monotonic() + (_STALL_S if self._index else _FIRST_S)
        poll = select.poll()
        if self._pipe < 0:
            return False
        poll.register(self._pipe, select.POLLIN)
        while len(buffer):
            if self._closed.is_set():
                return False
            if time.monotonic() > patience:
                raise CameraError(f"{self.name}: sends nothing; {self._hint}")
            if not poll.poll(_SLICE_MS):
                continue
            count = os.readv(self._pipe, [buffer])
            if count == 0:
                return self._ended()
            buffer = buffer[count:]
        return True

    def _ended(self) -> bool:
        assert self._child is not None
        try:
            status = self._child.wait(2)
        except subprocess.TimeoutExpired:
            status = -1
        if status == 0 and self._index:
            return False
        if self._listener is not None:
            self._listener.join(1)
        errors = [line for line in self._said if "ERROR" in line or "erroneous" in line]
        said = (errors or [*self._said] or [f"exit status {status}"])[0]
        hint = _lacking(said) or self._hint
        raise CameraError(f"{self.name}: the pipeline stopped: {public_name(said)}; {hint}")


def _lacking(said: str) -> str:
    """What to do about an element that this machine does not have."""
    found = re.search(r'no element "(.+?)"', said)
    if found is None:
        return ""
    if found[1].startswith("nv"):
        return (
            f"{found[1]} comes with JetPack (sudo apt install nvidia-l4t-gstreamer) and works on a "
            "Jetson only"
        )
    return f"is its name right, and the package that has it installed (gst-inspect-1.0 {found[1]})?"


def _widen(pipe: int) -> None:
    # 64 KiB is twenty switches of context per frame; F_SETPIPE_SZ is Linux's 1031.
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, 1031, _PIPE_BYTES)


def _listen(stream: IO[str], said: deque[str]) -> None:
    for line in stream:
        if line.strip():
            said.append(line.strip()[:300])


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(2)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
