"""Cameras that send too little, too much or nonsense: age and memory stay bounded, the app ends."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from apps.camera.result import Result
from apps.camera.sinks import SinkWorker
from edge.errors import CameraError
from edge.measure.sensors import memory_bytes
from edge.video import mjpeg
from edge.video.clock import SourceClock
from edge.video.frame import Frame, SourceOptions
from edge.video.mjpeg import MjpegSource, jpeg_hw
from edge.video.signals import until_signal
from edge.video.sources import make_source, open_source
from tests.support.camera_parts import ROOT, Held, pictures, run_camera, wait_for
from tests.support.small_models import write_small
from tests.test_sinks import Recorder, result

JPEG = cv2.imencode(".jpg", pictures(1, (96, 128))[0])[1].tobytes()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
Send = Callable[[bytes], None]


def part(data: bytes, extra: bytes = b"") -> bytes:
    head = b"--frame\r\nContent-Type: image/jpeg\r\n%sContent-Length: %d\r\n\r\n"
    return head % (extra, len(data)) + data + b"\r\n"


@contextmanager
def camera_that(sends: Callable[[Send], None]) -> Iterator[str]:
    """The address of a camera that does this for each visitor."""

    def serve(visitor: socket.socket) -> None:
        with visitor:
            try:
                visitor.recv(4096)
                sends(visitor.sendall)
            except OSError:
                return

    def listen() -> None:
        while True:
            try:
                visitor, _ = door.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(visitor,), daemon=True).start()

    door = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=listen, name="Thread-camera", daemon=True).start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}/video"
    finally:
        door.close()


def trickle(send: Send, data: bytes) -> None:
    for at in range(len(data)):
        send(data[at : at + 1])
        time.sleep(0.03)


def drips_in_the_answer(send: Send) -> None:
    trickle(send, HEAD[:-2] + b"X: " + b"a" * 100_000)


def drips_in_a_header(send: Send) -> None:
    send(HEAD + part(JPEG))
    trickle(send, b"--frame\r\nX: " + b"a" * 100_000)


def drips_in_a_picture(send: Send) -> None:
    send(HEAD + part(JPEG) + b"--frame\r\nContent-Length: 90000\r\n\r\n")
    trickle(send, b"a" * 90_000)


def drips_without_a_length(send: Send) -> None:
    send(HEAD + part(JPEG) + b"--frame\r\n\r\n\xff\xd8")
    trickle(send, b"a" * 90_000)


@pytest.mark.parametrize(
    "sends",
    [drips_in_the_answer, drips_in_a_header, drips_in_a_picture, drips_without_a_length],
)
def test_a_camera_that_trickles_is_lost_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, sends: Callable[[Send], None]
) -> None:
    monkeypatch.setattr(mjpeg, "_CONNECT_S", 1.0)
    monkeypatch.setattr(mjpeg, "_STALL_S", 1.0)
    began = time.monotonic()
    with camera_that(sends) as address, pytest.raises(CameraError, match="no whole picture"):
        source = MjpegSource(address)
        source.open()
        while source.read() is not None:
            pass
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("sends", [drips_in_a_header, drips_in_a_picture])
def test_closing_does_not_wait_for_a_reader(sends: Callable[[Send], None]) -> None:
    with camera_that(sends) as address:
        source = MjpegSource(address)
        source.open()
        assert source.read() is not None
        reader = threading.Thread(target=source.read, name="Thread-reader")
        reader.start()
        time.sleep(0.2)
        began = time.monotonic()
        source.close()
        assert time.monotonic() - began < 0.5
        reader.join(2)
        assert not reader.is_alive() and source._reply is None


def test_a_driver_that_hangs_does_not_hold_close_and_is_released_later() -> None:
    returned, released = threading.Event(), threading.Event()

    from unittest.mock import Mock

    from edge.video.cameras import OpenCvSource

    capture = Mock()
    capture.get.return_value = 0.0
    capture.grab.side_effect = lambda: returned.wait(10) and False
    capture.release.side_effect = released.set
    source = OpenCvSource("cam", lambda: capture, "")
    source.open()
    reader = threading.Thread(target=source.read, name="Thread-reader")
    reader.start()
    time.sleep(0.1)
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 0.5
    # OpenCV crashes when a capture is released under its reader.
    assert not released.is_set()
    returned.set()
    reader.join(5)
    assert released.wait(5)


def test_headers_without_end_cost_neither_memory_nor_time() -> None:
    def sends(send: Send) -> None:
        send(HEAD + b"--frame\r\n")
        for number in range(100_000):
            send(b"X-%d: %s\r\n" % (number, b"a" * 8000))

    before = memory_bytes() or 0
    with camera_that(sends) as address, pytest.raises(CameraError, match="more than 16384 bytes"):
        source = MjpegSource(address)
        source.open()
        source.read()
    assert (memory_bytes() or 0) - before < 40 << 20


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"--frame\r\nContent-Length: 99999999999\r\n\r\n", "at most"),
        (b"--frame\r\nContent-Length: -5\r\n\r\n", "at most"),
        (b"--frame\r\nContent-Length: x\r\n\r\n", "lost"),
        (b"--frame\r\nX: " + b"a" * 40_000, "a line of more than"),
    ],
)
def test_a_part_that_cannot_be_a_picture_is_refused(stream: bytes, words: str) -> None:
    with camera_that(lambda send: send(HEAD + stream)) as address:
        source = MjpegSource(address)
        source.open()
        with pytest.raises(CameraError, match=words):
            source.read()


def bomb(height: int, width: int) -> bytes:
    """A small JPEG whose header names a huge picture."""
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


def test_a_picture_bomb_is_left_out_before_it_is_decoded() -> None:
    assert jpeg_hw(JPEG) == (96, 128) and jpeg_hw(bomb(30_000, 30_000)) == (30_000, 30_000)
    scans = JPEG[:-2] + b"\xff\xda" * 5000 + b"\xff\xd9"

    def sends(send: Send) -> None:
        send(HEAD)
        for data in (bomb(30_000, 30_000), bomb(65_535, 65_535), scans, b"\xff\xd8\xff\xd9", JPEG):
            send(part(data))
        time.sleep(5)

    before = memory_bytes() or 0
    with camera_that(sends) as address:
        source = MjpegSource(address)
        source.open()
        frame = source.read()
        source.close()
    assert frame is not None and frame.image.shape == (96, 128, 3)
    assert source.damaged == 4
    assert (memory_bytes() or 0) - before < 40 << 20


@pytest.mark.parametrize("name", ["jpg", "grey", "progressive", "large"])
def test_the_size_in_a_jpegs_header_is_that_of_the_picture(name: str) -> None:
    hw = (1080, 1920) if name == "large" else (97, 131)
    image = pictures(1, hw)[0]
    image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if name == "grey" else image
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if name == "progressive" else []
    assert jpeg_hw(cv2.imencode(".jpg", image, options)[1].tobytes()) == hw


def test_a_camera_with_stamps_is_as_old_as_it_says() -> None:
    clock = SourceClock()
    assert clock.captured(100.0, 1000.01) == pytest.approx(1000.01)
    assert clock.captured(100.1, 1000.10) == pytest.approx(1000.10, abs=1e-6)
    # The reader stood still for 30 s; what waited is as old as it is, and then all is as before.
    ages = [1030.2 + 0.01 * i - clock.captured(100.2 + i, 1030.2 + 0.01 * i) for i in range(30)]
    assert ages == pytest.approx([30.0 - 0.99 * i for i in range(30)], abs=0.05)
    assert 1031.0 - clock.captured(131.0, 1031.0) == pytest.approx(0.0, abs=0.05)


def test_a_camera_whose_clock_was_set_back_is_not_old_for_ever() -> None:
    clock = SourceClock()
    for index in range(300):
        now = 500.0 + index / 10
        age = now - clock.captured(now - (100 if index < 100 else 4000), now)
    assert age < 0.1


def test_slow_crystals_do_not_make_frames_old() -> None:
    clock = SourceClock()
    for second in range(7200):
        age = second - clock.captured(second * (1 - 1e-4), float(second))
    assert age < 0.05


@pytest.mark.parametrize("stamped", [True, False])
def test_after_a_stop_no_frame_is_younger_than_it_is(stamped: bool) -> None:
    """A process that is stopped for 2 s: what the camera sent meanwhile waits in the kernel."""

    def sends(send: Send) -> None:
        send(HEAD)
        for number in range(400):
            image = np.full((48, 64, 3), number // 2, np.uint8)
            data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
            extra = b"X-Timestamp: %.6f\r\n" % time.time() if stamped else b""
            send(part(data, extra))
            time.sleep(0.02)

    script = (
        "import sys, time\n"
        "from edge.video.sources import make_source\n"
        "source = make_source(sys.argv[1]); source.open()\n"
        "print('open', flush=True)\n"
        "while (frame := source.read()) is not None:\n"
        "    now = time.monotonic()\n"
        "    print(int(frame.image[20, 20, 0]), now - frame.captured, time.time(), flush=True)\n"
    )
    with camera_that(sends) as address:
        child = subprocess.Popen(
            [sys.executable, "-c", script, address], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout is not None and child.stdout.readline() == "open\n"
            seen = [child.stdout.readline().split() for _ in range(20)]
            child.send_signal(signal.SIGSTOP)
            time.sleep(2)
            child.send_signal(signal.SIGCONT)
            resumed = time.time()
            seen += [child.stdout.readline().split() for _ in range(100)]
        finally:
            child.kill()
            child.communicate()
    late = [(int(number), float(age)) for number, age, at in seen[20:] if float(at) >= resumed]
    first = int(seen[19][0])
    # The numbers tell when each picture was made: twenty-five a second.
    backlog = [age for number, age in late if number < first + 35]
    if stamped:
        assert max(age for _, age in late) > 1.0
    else:
        assert len(backlog) <= 3
    assert late[-1][1] < 0.3


def start(tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    artifact = tmp_path / "small.onnx"
    if not artifact.exists():
        write_small(artifact)
    command = [sys.executable, "-m", "apps.cli", "camera", str(artifact), "--headless"]
    child = subprocess.Popen(
        [*command, "--threads", "1", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The detector is open, and the sources are next.
    assert child.stderr is not None and "onnxruntime" in child.stderr.readline()
    return child


def ends(child: subprocess.Popen[str], within_s: float) -> str:
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    try:
        _, said = child.communicate(timeout=20)
    finally:
        child.kill()
        child.communicate()
    assert time.monotonic() - began < within_s, said
    assert "Traceback" not in said
    return said


# 2 s, and what a busy machine adds to the end of a Python process.
WITHIN_S = 3.5


@pytest.mark.parametrize("sends", [drips_in_the_answer, drips_in_a_header, drips_in_a_picture])
def test_the_app_ends_at_one_sigterm_whatever_its_camera_does(
    tmp_path: Path, sends: Callable[[Send], None]
) -> None:
    with camera_that(sends) as address:
        child = start(tmp_path, "--source", address)
        time.sleep(1.5)
        ends(child, WITHIN_S)


def test_a_sink_that_hangs_holds_neither_the_app_nor_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    flags = ("--source", "scenes://?fps=20&size=96x128", "--events", str(tmp_path / "fifo"))
    child = start(tmp_path, *flags, "--stats", str(tmp_path / "s.json"))
    time.sleep(2.5)
    said = ends(child, WITHIN_S)
    assert "left behind" in said and (tmp_path / "s.json").exists()


def test_events_and_figures_go_through_a_pipe(tmp_path: Path) -> None:
    for name in ("events", "stats"):
        os.mkfifo(tmp_path / name)
    flags = ("--source", "scenes://?size=96x128&fast=1", "--frames", "9")
    flags += ("--events", str(tmp_path / "events"), "--stats", str(tmp_path / "stats"))
    child = start(tmp_path, *flags)
    try:
        with (tmp_path / "events").open() as file:
            assert len(file.read().splitlines()) == 9
        with (tmp_path / "stats").open() as file:
            assert '"frames": 9' in file.read()
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.communicate()
    assert (tmp_path / "events").is_fifo() and (tmp_path / "stats").is_fifo()


def test_a_sink_that_exits_is_a_sink_that_fails(tmp_path: Path) -> None:
    class Exits(Recorder):
        def write(self, one: Result) -> None:
            sys.exit("enough")

    said: list[str] = []
    worker = SinkWorker(Exits(), said.append, wait=True)
    for index in range(9):
        worker.offer(result(index))
    worker.close(2)
    assert said == ["recorder: SystemExit: enough; detection goes on"]
    assert worker.dropped == 9


def test_a_sink_that_hangs_is_told_and_does_not_stop_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.camera.sinks._HANGS_S", 0.4)
    monkeypatch.setattr("apps.camera.sinks._DRAIN_S", 0.2)
    write_small(tmp_path / "a.onnx")
    sink = Recorder(pause_s=5)
    source = Held(pictures(2), count=40)
    began = time.monotonic()
    stats = run_camera(tmp_path / "a.onnx", [source], sinks=[sink], threads=1, score=0.01)
    assert stats.frames == 40 and time.monotonic() - began < 4
    assert stats.sinks[0].dropped > 30 and stats.sinks[0].error


STUCK = """
import sys, threading, time
from edge.video.signals import until_signal
with until_signal(threading.Event()):
    print("ready", flush=True)
    # A call that Python does not interrupt, as one of a driver.
    import ctypes
    ctypes.CDLL(None).usleep.argtypes = [ctypes.c_uint]
    while True:
        ctypes.CDLL(None).pause() if len(sys.argv) < 2 else time.sleep(1)
"""


def test_two_signals_end_a_process_whose_main_thread_is_stuck() -> None:
    script = STUCK.replace("ctypes.CDLL(None).pause()", "ctypes.CDLL(None).sleep(60)")
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 128 + signal.SIGTERM
    finally:
        child.kill()
        child.communicate()


def test_the_first_signal_is_heard_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = threading.Event()
    with until_signal(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before
    wait_for(lambda: not [one for one in threading.enumerate() if one.name == "signals"])


def test_open_source_gives_every_frame_of_a_file_and_closes(tmp_path: Path) -> None:
    for number, image in enumerate(pictures(5)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    with open_source(tmp_path) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(5))
    assert source.read() is None
    with pytest.raises(CameraError, match="no such file"):
        open_source(tmp_path / "none.mp4")
    assert len(list(open_source(str(tmp_path)))) == 5


def test_open_source_gives_the_newest_frame_of_a_camera() -> None:
    with open_source("scenes://?fps=50&size=48x64", fast=False) as source:
        seen = []
        for frame in source:
            seen.append((frame.index, time.monotonic() - frame.captured))
            time.sleep(0.2)
            if len(seen) == 6:
                break
    assert seen[-1][0] > 30
    assert max(age for _, age in seen) < 0.19


def test_what_a_source_raises_reaches_the_loop() -> None:
    class Lost(Held):
        def read(self) -> Frame | None:
            if self.index == 2:
                raise CameraError("held: lost")
            return super().read()

    source = Lost(pictures(1), fps=50)
    source.open()
    with pytest.raises(CameraError, match="held: lost"):
        for _ in source:
            pass


def test_a_source_may_be_asked_for_its_size() -> None:
    with make_source("scenes://", SourceOptions(hw=(48, 64), fast=True)) as source:
        source.open()
        frame = source.read()
    assert frame is not None and frame.image.shape == (48, 64, 3)
