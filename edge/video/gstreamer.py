"""GStreamer pipelines: through OpenCV where it can, else through a `gst-launch-1.0` child."""

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
from fractions import Fraction
from functools import lru_cache
from typing import IO
from urllib.parse import parse_qsl, urlsplit

import cv2
import numpy as np

from edge.errors import CameraError
from edge.video.address import check_login, public_name
from edge.video.cameras import gstreamer_source, has_gstreamer
from edge.video.frame import GuardedSource, Image, Source, SourceOptions

__all__ = ["PipeSource", "csi_source", "has_element", "pipeline_source", "rtsp_source"]

# A Jetson's camera daemon takes seconds to start; once frames come they keep coming.
_FIRST_S, _STALL_S = 15.0, 5.0
_SLICE_MS = 100
_PIPE_BYTES = 1 << 20
# What a child gets to end by itself, before it is killed.
_CHILD_ENDS_S = 0.5
# RFC 3986 without ' and !, which mean something in a pipeline.
_PLAIN_ADDRESS = re.compile(r"[A-Za-z0-9._~:/?#\[\]@$&()*+,;=%-]+")

_HW = (720, 1280)
_CSI_HINT = (
    "is the ribbon seated and the sensor enabled (sudo /opt/nvidia/jetson-io/jetson-io.py)? After "
    "a crash: sudo systemctl restart nvargus-daemon"
)
_RTSP_HINT = "is the camera on, the address right and the password in it?"
_RAW_HINT = "try the same pipeline with gst-launch-1.0 and fakesink at its end"
_NEWEST = "appsink drop=true max-buffers=1 sync=false"


@lru_cache(maxsize=16)
def has_element(name: str) -> bool:
    """Return whether GStreamer on this machine has an element, such as `nvv4l2decoder`."""
    inspect = shutil.which("gst-inspect-1.0")
    if inspect is None:
        return False
    try:
        done = subprocess.run(
            [inspect, "--exists", name], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def csi_source(address: str, options: SourceOptions) -> Source:
    """Return a camera on a Jetson's ribbon: `csi://0`; `csi://0?flip=2` turns it upside down.

    The image processor of the Jetson debayers and scales (`nvarguscamerasrc`, `nvvidconv`).
    """
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    flip, sensor = query.pop("flip", "0"), parts.netloc or parts.path.strip("/") or "0"
    if query or not re.fullmatch(r"[0-9]{1,3}", sensor) or not re.fullmatch(r"[0-7]", flip):
        raise CameraError(
            f"{public_name(address)}: it takes csi://NUMBER or csi://NUMBER?flip=0..7"
        )
    height, width = options.hw or _HW
    rate = Fraction(options.fps or 30).limit_denominator(1001)
    head = (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={width},"
        f"height={height},framerate={rate.numerator}/{rate.denominator},format=NV12 "
        f"! nvvidconv flip-method={flip}"
    )
    return _nvidia(address, head, (height, width), _CSI_HINT, options.fps or 30)


def rtsp_source(address: str, options: SourceOptions) -> Source:
    """Return an RTSP stream through the Jetson's decoder, whatever codec the camera sends.

    It comes over TCP with 100 ms of buffer. Without `hw` frames have the camera's own size, but
    1280x720 where they come through a child.

    Raises:
        CameraError: the address has a character that could end it within a pipeline.
    """
    check_login(address)
    # A quote, space, bang or backslash would end the address and begin other elements.
    if not _PLAIN_ADDRESS.fullmatch(address):
        raise CameraError(
            f"{public_name(address)}: write what is no letter, digit or one of . _ ~ : / ? # [ ] @ "
            "$ & ( ) * + , ; = % - as %XX, such as %20 for a space"
        )
    head = (
        f'rtspsrc location="{address}" protocols=tcp latency=100 drop-on-latency=true '
        "! application/x-rtp,media=video ! decodebin ! nvvidconv"
    )
    return _nvidia(public_name(address), head, options.hw, _RTSP_HINT, options.fps)


def _nvidia(
    name: str, head: str, hw: tuple[int, int] | None, hint: str, fps: float | None
) -> Source:
    height, width = hw or _HW
    size = f",width={width},height={height}"
    if has_gstreamer():
        asked = size if hw else ""
        tail = f"video/x-raw,format=BGRx{asked} ! videoconvert ! video/x-raw,format=BGR"
        return gstreamer_source(name, f"{head} ! {tail} ! {_NEWEST}", hint)
    # nvvidconv writes I420 by itself: no conversion on the CPU, half the bytes of BGR.
    return PipeSource(name, f"{head} ! video/x-raw,format=I420{size}", (height, width), hint, fps)


def pipeline_source(pipeline: str, options: SourceOptions) -> Source:
    """Return the frames of `gst:PIPELINE`, a pipeline without its sink.

    Through a child the frames have the size `hw`, by default 1280x720.
    """
    pipeline = pipeline.strip().rstrip("!").strip()
    if not pipeline:
        raise CameraError("gst: no pipeline; it takes one such as gst:videotestsrc is-live=true")
    height, width = options.hw or _HW
    size = f",width={width},height={height}"
    name = public_name(f"gst:{pipeline}")
    if has_gstreamer():
        asked = size if options.hw else ""
        tail = f"videoconvert ! videoscale ! video/x-raw,format=BGR{asked} ! {_NEWEST}"
        whole = pipeline if "appsink" in pipeline else f"{pipeline} ! {tail}"
        return gstreamer_source(name, whole, _RAW_HINT)
    # GStreamer takes BT.709 for large pictures, OpenCV BT.601 for all.
    tail = f"videoconvert ! videoscale ! video/x-raw,format=I420,colorimetry=bt601{size}"
    return PipeSource(name, f"{pipeline} ! {tail}", (height, width), _RAW_HINT, options.fps)


class PipeSource(GuardedSource):
    """A live `Source` of a pipeline in a `gst-launch-1.0` child; its last caps are I420.

    The frames have a pipe of their own, as `nvarguscamerasrc` prints to stdout.

    Args:
        name: for people.
        pipeline: in gst-launch's notation, without a sink.
        hw: height and width, pixels.
        hint: what to do when nothing comes.
        fps: nominal, if known.

    Raises:
        CameraError: GStreamer pads the rows of I420 at this size.
    """

    def __init__(
        self, name: str, pipeline: str, hw: tuple[int, int], hint: str, fps: float | None
    ) -> None:
        # GstVideoInfo rounds the rows of the chroma planes up to 4 bytes.
        if hw[1] % 8 or hw[0] % 2:
            raise CameraError(f"{name}: {hw[1]}x{hw[0]} needs a width of 8 n and a height of 2 n")
        super().__init__(name, live=True, fps=fps)
        self._pipeline, self._hint = pipeline, hint
        self._yuv = np.empty((hw[0] * 3 // 2, hw[1]), np.uint8)
        self._child: subprocess.Popen[str] | None = None
        self._pipe = -1
        self._said: deque[str] = deque(maxlen=20)
        self._listener: threading.Thread | None = None

    def _connect(self) -> None:
        launch = shutil.which("gst-launch-1.0")
        if launch is None:
            raise CameraError(
                f"{self.name}: this OpenCV has no GStreamer and there is no gst-launch-1.0: "
                "sudo apt install gstreamer1.0-tools gstreamer1.0-plugins-good"
            )
        self._said.clear()
        read_end, write_end = os.pipe()
        _widen(read_end)
        tail = f" ! queue leaky=downstream max-size-buffers=1 ! fdsink sync=false fd={write_end}"
        try:
            child = subprocess.Popen(
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
        self._child, self._pipe = child, read_end
        if child.stdout is not None:
            self._listener = threading.Thread(
                target=_listen, args=(child.stdout, self._said), name="gst messages", daemon=True
            )
            self._listener.start()

    def _take(self) -> tuple[Image, float] | None:
        if not self._fill(self._yuv.data.cast("B")):
            return None
        captured = time.monotonic()
        image = cv2.cvtColor(self._yuv, cv2.COLOR_YUV2BGR_I420)
        return np.asarray(image, np.uint8), captured

    def _release(self) -> None:
        if self._child is None:
            return
        _end(self._child)
        os.close(self._pipe)
        if self._listener is not None:
            self._listener.join(_CHILD_ENDS_S)
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
        status = -1
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._child.wait(_CHILD_ENDS_S)
        if status == 0 and self._index:
            return False
        if self._listener is not None:
            self._listener.join(_CHILD_ENDS_S)
        errors = [line for line in self._said if "ERROR" in line or "erroneous" in line]
        said = (errors or [*self._said] or [f"exit status {status}"])[0]
        hint = _lacking(said) or self._hint
        raise CameraError(f"{self.name}: the pipeline stopped: {public_name(said)}; {hint}")


def _lacking(said: str) -> str:
    """Return what to do about an element that this machine does not have."""
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
        child.wait(_CHILD_ENDS_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
