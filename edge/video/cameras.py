"""Sources that OpenCV reads: V4L2 cameras, network streams, and GStreamer where it is built in."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from edge.errors import CameraError
from edge.video.address import bare_address, check_login, public_name
from edge.video.clock import SourceClock
from edge.video.devices import obstacle
from edge.video.frame import GuardedSource, Image, SourceOptions

__all__ = [
    "OpenCvSource",
    "gstreamer_source",
    "has_gstreamer",
    "network_source",
    "probe_rtsp",
    "v4l2_source",
]

_OPEN_MS, _READ_MS = 8000, 5000
# A camera that gives nothing for this long is lost; shorter gaps happen.
_PATIENCE_S = 2.0
_RETRY_S = 0.02
# FFmpeg's option names; TCP, because a lost UDP packet smears a picture for seconds.
_RTSP_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay"
_environment = threading.Lock()


class OpenCvSource(GuardedSource):
    """A `Source` of a live `cv2.VideoCapture`.

    Args:
        name: for people.
        connect: makes the capture, opened or not.
        hint: what to do when it is not opened.
        stamped: whether the capture tells when a frame was taken; False where its position in
            milliseconds is not that.
        asked: what the user asked for; `note` tells what the camera gives instead.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], cv2.VideoCapture],
        hint: str,
        stamped: bool = False,
        asked: SourceOptions | None = None,
    ) -> None:
        super().__init__(name, live=True)
        self._asked = asked or SourceOptions()
        self._make, self._hint, self._stamped = connect, hint, stamped
        self._capture: cv2.VideoCapture | None = None
        self._clock = SourceClock()

    def _connect(self) -> None:
        capture = self._make()
        if not capture.isOpened():
            capture.release()
            raise CameraError(f"{self.name}: cannot be opened; {self._hint}")
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if 0 < rate <= 1000 else None
        instead = _instead(capture, self._asked)
        self.note = f"{self.name}: gives {instead}" if instead else ""
        self._capture, self._clock = capture, SourceClock()

    def _take(self) -> tuple[Image, float] | None:
        patience = time.monotonic() + _PATIENCE_S
        while not self._closed.is_set():
            taken = self._grab()
            if taken is not None:
                return taken
            if time.monotonic() > patience:
                raise CameraError(f"{self.name}: lost, or it sends nothing; {self._hint}")
            self._closed.wait(_RETRY_S)
        return None

    def _release(self) -> None:
        # OpenCV crashes when a capture is released under a reader; see `GuardedSource`.
        if self._capture is not None:
            self._capture.release()
        self._capture = None

    def _grab(self) -> tuple[Image, float] | None:
        if self._capture is None or not self._capture.grab():
            return None
        captured = self._stamp(self._capture)
        done, image = self._capture.retrieve()
        if done and image is not None and image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        if not done or image is None or image.ndim != 3 or image.shape[2] != 3:
            self.damaged += 1
            return None
        return np.asarray(image, np.uint8), captured

    def _stamp(self, capture: cv2.VideoCapture) -> float:
        """Return when the picture was taken: by the driver (V4L2) or by the stream (RTSP)."""
        now = time.monotonic()
        if not self._stamped:
            return now
        stamp = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3
        return self._clock.captured(stamp, now) if stamp > 0 else now


def _instead(capture: cv2.VideoCapture, asked: SourceOptions) -> str:
    """Return what the driver chose in place of what was asked; empty where it obeyed."""
    told: list[str] = []
    hw = (int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)))
    if asked.hw and hw != tuple(asked.hw):
        told.append(f"{hw[1]}x{hw[0]} pixels instead of {asked.hw[1]}x{asked.hw[0]}")
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    four = code.to_bytes(4, "little").decode("latin-1")
    if asked.pixel_format and four != asked.pixel_format.upper():
        told.append(f"{four} instead of {asked.pixel_format.upper()}")
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    if asked.fps and abs(rate - asked.fps) > 0.02 * asked.fps:
        told.append(f"{rate:g} frames a second instead of {asked.fps:g}")
    return ", ".join(told)


def v4l2_source(device: str, options: SourceOptions) -> OpenCvSource:
    """Return a USB or other V4L2 camera, `0` or `/dev/video0`; the size is 1280x720 by default."""
    path = f"/dev/video{device}" if device.isdigit() else device
    hint = f"another program may use it: fuser -v {path}"
    height, width = options.hw or (720, 1280)
    # Raw YUYV of this size is 5 to 10 frames a second through USB 2; Motion-JPEG is 30.
    fourcc = options.pixel_format or ("MJPG" if width * height > 640 * 480 else "YUYV")
    if len(fourcc) != 4:
        raise CameraError(f"{path}: pixel format {fourcc!r} is not four characters, such as MJPG")

    def connect() -> cv2.VideoCapture:
        if sys.platform.startswith("linux"):
            if reason := obstacle(Path(path)):
                raise CameraError(f"{path}: {reason}; edge camera --list shows what is here")
            capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
        else:
            capture = cv2.VideoCapture(int(device))
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*fourcc.upper()))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        if options.fps:
            capture.set(cv2.CAP_PROP_FPS, options.fps)
        return capture

    return OpenCvSource(path, connect, hint, stamped=True, asked=options)


def network_source(address: str) -> OpenCvSource:
    """Return an RTSP stream, or any stream over HTTP that FFmpeg knows, decoded on the CPU."""
    check_login(address)
    # Over HTTP it may be a file, whose first key frame "nobuffer" would lose.
    wanted = _RTSP_OPTIONS if address.startswith("rtsp") else "flags;low_delay"
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_MS]

    def connect() -> cv2.VideoCapture:
        key = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
        # OpenCV takes these from the environment alone, each time a stream is opened.
        with _environment:
            before = os.environ.get(key)
            os.environ[key] = before or wanted
            try:
                capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
            finally:
                if before is None:
                    del os.environ[key]
        if address.startswith("rtsp") and not capture.isOpened():
            raise CameraError(f"{public_name(address)}: {probe_rtsp(address)}; {hint}")
        return capture

    hint = "is the camera on, the address right and the password in it (rtsp://USER:PASSWORD@...)?"
    return OpenCvSource(public_name(address), connect, hint, stamped=True)


def has_gstreamer() -> bool:
    """Return whether this OpenCV was built with GStreamer; JetPack's is, pip's is not."""
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))


def gstreamer_source(name: str, pipeline: str, hint: str) -> OpenCvSource:
    """Return a source of the frames of a pipeline that ends in an `appsink` of BGR frames."""
    return OpenCvSource(name, lambda: cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), hint)


def probe_rtsp(address: str) -> str:
    """Ask an RTSP server without credentials what it says, and return that or why it is silent.

    A camera with a password says `401 Unauthorized` whatever the password is.
    """
    try:
        parts = urlsplit(address)
        place = (parts.hostname or "", parts.port or (322 if parts.scheme == "rtsps" else 554))
    except ValueError as error:
        return f"this is no address: {error}"
    if not place[0]:
        return "this is no address: it names no host"
    try:
        with socket.create_connection(place, _PATIENCE_S) as door:
            if parts.scheme == "rtsps":
                return f"{place[0]} answers on port {place[1]}, but gives no stream"
            request = f"DESCRIBE {bare_address(address)} RTSP/1.0\r\nCSeq: 1\r\n\r\n"
            door.sendall(request.encode())
            line = door.recv(1024).split(b"\r\n", 1)[0].decode("latin-1").strip()
    except OSError as error:
        return f"no answer from {place[0]} port {place[1]}: {error.strerror or error}"
    kind, _, status = line.partition(" ")
    if not kind.startswith("RTSP/"):
        return f"what answers on port {place[1]} does not speak RTSP"
    return f"the camera answers {status[:80]}"
