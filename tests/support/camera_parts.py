"""What the tests of the camera app share: a source of held frames, a Motion-JPEG camera."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from apps.camera.app import camera
from apps.camera.options import CameraOptions, Outputs
from apps.camera.sinks import Sink
from apps.camera.stats import CameraStats
from edge.video.frame import Frame, Source

ROOT = Path(__file__).resolve().parents[2]


def run_camera(
    artifact: Path | None,
    sources: Sequence[str | Source] = (),
    *,
    outputs: Outputs | None = None,
    sinks: Sequence[Sink] = (),
    beside: Sequence[Any] = (),
    **options: Any,
) -> CameraStats:
    """`camera` with its options as keywords."""
    return camera(artifact, sources, CameraOptions(**options), outputs, sinks=sinks, beside=beside)


class Held(Source):
    """Frames held in memory, as fast as they are taken or at `fps`."""

    def __init__(
        self,
        frames: Sequence[np.ndarray],
        count: int | None = None,
        fps: float | None = None,
        name: str = "held",
    ) -> None:
        self.name, self.live, self.fps = name, fps is not None, fps
        self.damaged, self.note = 0, ""
        self.frames, self.count, self.index = frames, count, 0
        self._closed = threading.Event()

    def open(self) -> None:
        self.start = time.monotonic()

    def read(self) -> Frame | None:
        if self._closed.is_set() or self.index == self.count:
            return None
        if self.fps is not None:
            due = self.start + self.index / self.fps
            self._closed.wait(max(0.0, due - time.monotonic()))
        frame = Frame(self.frames[self.index % len(self.frames)], time.monotonic(), self.index)
        self.index += 1
        return frame

    def close(self) -> None:
        self._closed.set()


def pictures(count: int, hw: tuple[int, int] = (120, 160), seed: int = 0) -> list[np.ndarray]:
    """Smooth pictures that differ from each other; the first pixel's blue is its number."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
        image = cv2.resize(coarse, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)
        image[:16, :16] = (index % 256, 0, 0)
        made.append(np.asarray(image, np.uint8))
    return made


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float = 25, code: str = "mp4v"):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()


def count_frames(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    capture.release()
    return count


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


# A camera as a child process: argv is port, boundary as declared, and whether parts have lengths.
# Every fifth picture is cut off, every seventh has another size; "silent" sends no picture.
MJPEG_CAMERA = """
import base64, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import cv2, numpy as np

port, declared, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]

def jpeg(number):
    hw = (96, 128) if number % 7 else (64, 80)
    image = np.full((*hw, 3), (number * 9 % 256, 128, 60), np.uint8)
    data = cv2.imencode(".jpg", image)[1].tobytes()
    return data[: len(data) // 2] if kind == "faulty" and number % 5 == 4 else data

class Camera(BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = "Basic " + base64.b64encode(b"user:pass word").decode()
        if kind == "locked" and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=" + declared)
        self.end_headers()
        if kind == "silent":
            time.sleep(60)
        for number in range(100000):
            data = jpeg(number)
            head = b"--frame\\r\\nContent-Type: image/jpeg\\r\\n"
            if kind != "lengthless":
                head += b"Content-Length: %d\\r\\n" % len(data)
            self.wfile.write(head + b"\\r\\n" + data + b"\\r\\n")
            time.sleep(0.03)
    def log_message(self, *words):
        pass

class Server(ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, request, client_address):
        pass

Server(("127.0.0.1", port), Camera).serve_forever()
"""


@contextmanager
def mjpeg_camera(
    port: int, kind: str = "plain", declared: str = "frame"
) -> Iterator[subprocess.Popen[bytes]]:
    """The camera above, ready for connections; killed at the end."""
    child = subprocess.Popen([sys.executable, "-c", MJPEG_CAMERA, str(port), declared, kind])
    try:
        wait_for(lambda: _answers(port), 20)
        yield child
    finally:
        child.kill()
        child.wait()


def _answers(port: int) -> bool:
    with socket.socket() as door:
        return door.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def small_disk(folder: Path, mib: int, read_only: bool = False) -> Iterator[Path]:
    """A tmpfs of so many MiB on `folder`; skips where that is not allowed."""
    folder.mkdir()
    options = f"size={mib}m" + (",ro" if read_only else "")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
