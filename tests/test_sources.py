"""Sources against OpenCV's own readers, real child processes, and faults made on purpose."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
import pytest

from edge.data.world.world import SceneStream
from edge.errors import CameraError
from edge.video import cameras as source_opencv
from edge.video import gstreamer as source_gst
from edge.video import mjpeg as source_mjpeg
from edge.video.address import filled_in, public_name
from edge.video.cameras import OpenCvSource, probe_rtsp
from edge.video.devices import list_cameras, obstacle
from edge.video.files import PacedSource
from edge.video.frame import Frame, Source, SourceOptions
from edge.video.gstreamer import PipeSource
from edge.video.mjpeg import MjpegSource
from edge.video.sources import make_source
from tests.support.camera_parts import (
    count_frames,
    free_port,
    mjpeg_camera,
    open_files,
    pictures,
    wait_for,
    write_video,
)

FAST = SourceOptions(fast=True)


def read_all(source: Source) -> list[Frame]:
    source.open()
    frames = []
    try:
        while (frame := source.read()) is not None:
            frames.append(frame)
    finally:
        source.close()
    return frames


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("0", OpenCvSource),
        ("/dev/video3", OpenCvSource),
        ("http://camera.local/stream", MjpegSource),
        ("rtsp://camera.local/stream", OpenCvSource),
        ("scenes://?seed=4", PacedSource),
        ("scenes", PacedSource),
        (".", PacedSource),
    ],
)
def test_a_word_names_a_kind(word: str, kind: type) -> None:
    assert isinstance(make_source(word), kind)


@pytest.mark.parametrize(
    "word",
    [
        "no/such/file.mp4",
        "ftp://user:secret@host/x",
        "scenes://?sead=3",
        "scenes://?size=3",
        "scenes://?size=0x0",
        "scenes://?size=99999x99999",
        "scenes://?fps=nan",
        "",
        "  ",
        "csi://front",
        "csi://0?turn=1",
        "csi://0?flip=8",
        "gst:",
    ],
)
def test_what_is_no_source_is_refused_in_one_line(word: str) -> None:
    with pytest.raises(CameraError) as caught:
        make_source(word)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("inside_opencv", [False, True])
def test_pipelines_of_a_jetson_name_the_sensor_and_keep_the_cameras_shape(
    monkeypatch: pytest.MonkeyPatch, inside_opencv: bool
) -> None:
    made: list[str] = []
    monkeypatch.setattr(source_gst, "has_gstreamer", lambda: inside_opencv)
    monkeypatch.setattr(source_gst, "has_element", lambda name: True)
    monkeypatch.setattr("edge.video.sources.has_element", lambda name: True)
    monkeypatch.setattr(source_gst, "gstreamer_source", lambda name, line, hint: made.append(line))
    monkeypatch.setattr(source_gst, "PipeSource", lambda name, line, *rest: made.append(line))
    for word in ("csi://1", "csi:1", "csi://1/?flip=2", "rtsp://cam/x"):
        make_source(word)
    make_source("rtsp://cam/x", SourceOptions(hw=(480, 640)))
    assert all("sensor-id=1 " in line for line in made[:3])
    assert "flip-method=2" in made[2]
    assert ("width=" in made[3]) is not inside_opencv
    assert "width=640,height=480" in made[4]


def test_passwords_are_in_no_name() -> None:
    for address in ("rtsp://u:secret@10.0.0.7:554/a?b=c", "http://u:secret@cam/stream"):
        assert "secret" not in make_source(address).name
    assert public_name("rtsp://u:secret@10.0.0.7:554/a?b=c") == "rtsp://10.0.0.7:554/a?b=c"
    assert public_name("gst:videotestsrc ! a@b") == "gst:videotestsrc ! a@b"
    assert public_name("http://u:p@ss@cam/?next=a@b") == "http://cam/?next=a@b"
    assert public_name("http://cam/v.cgi?usr=me&pwd=secret&rate=3") == (
        "http://cam/v.cgi?usr=me&pwd=***&rate=3"
    )
    pipeline = 'gst:rtspsrc location="rtsp://u:secret@cam/a" user-pw=secret ! decodebin'
    name = make_source(pipeline).name
    assert name == 'gst:rtspsrc location="rtsp://cam/a" user-pw=*** ! decodebin'


def test_a_video_gives_the_frames_that_opencv_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, pictures(12))
    frames = read_all(make_source(f"{path}?fast=1"))
    capture = cv2.VideoCapture(str(path))
    for index, frame in enumerate(frames):
        assert frame.index == index
        assert np.array_equal(frame.image, capture.read()[1])
    assert len(frames) == 12
    assert not capture.read()[0]


def test_a_paced_video_takes_its_own_time(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, pictures(16), fps=25)
    start = time.monotonic()
    frames = read_all(make_source(str(path)))
    assert time.monotonic() - start >= 15 / 25
    gaps = np.diff([frame.captured for frame in frames])
    assert np.median(gaps) == pytest.approx(1 / 25, abs=0.02)
    assert frames[-1].captured - frames[0].captured >= 15 / 25 - 0.001
    faster = read_all(make_source(str(path), SourceOptions(fps=100)))
    assert np.median(np.diff([f.captured for f in faster])) == pytest.approx(0.01, abs=0.008)


def test_closing_ends_a_wait(tmp_path: Path) -> None:
    source = make_source("scenes://?size=64x96&fps=0.1")
    source.open()
    assert source.read() is not None
    threading.Timer(0.2, source.close).start()
    start = time.monotonic()
    assert source.read() is None
    assert time.monotonic() - start < 3


def test_a_video_without_its_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, pictures(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(CameraError, match=r"a\.mp4.*cut off"):
        make_source(str(path)).open()


def test_a_video_that_ends_too_early_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_video(path, pictures(60), code="MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = make_source(str(path), FAST)
    frames = read_all(source)
    assert 10 < len(frames) < 50
    assert f"ended after {len(frames)} of" in source.note


def test_a_folder_is_read_by_name_and_damaged_images_are_left_out(tmp_path: Path) -> None:
    for index, image in enumerate(pictures(5)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    (tmp_path / "2.png").write_bytes(b"no image")
    source = make_source(str(tmp_path))
    frames = read_all(source)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 1, 3, 4]
    assert source.damaged == 1
    assert "2.png" in source.note
    assert not source.live
    assert len(read_all(make_source(str(tmp_path / "3.png")))) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(CameraError, match="no images"):
        make_source(str(tmp_path / "empty")).open()


def test_the_world_is_the_streams(tmp_path: Path) -> None:
    source = make_source("scenes://?seed=5&night=1&size=96x128&fps=10", FAST)
    source.open()
    for scene, _ in zip(SceneStream(5, (96, 128), 1.0, 10), range(3), strict=False):
        frame = source.read()
        assert frame is not None
        assert np.array_equal(frame.image, scene.image)
    source.close()


@pytest.mark.parametrize(
    ("kind", "declared"),
    [("plain", "frame"), ("lengthless", "frame"), ("plain", "--frame"), ("plain", '"frame"')],
)
def test_motion_jpeg_as_cameras_send_it(kind: str, declared: str) -> None:
    port = free_port()
    with mjpeg_camera(port, kind, declared):
        source = make_source(f"http://127.0.0.1:{port}/stream")
        source.open()
        frames = [source.read() for _ in range(9)]
        source.close()
        assert source.read() is None
    sizes = [frame.image.shape[:2] for frame in frames if frame]
    assert sizes == [(64, 80), *[(96, 128)] * 6, (64, 80), (96, 128)]
    for number, frame in enumerate(frames):
        assert frame is not None
        assert abs(int(frame.image[20, 20, 0]) - number * 9) <= 4


def test_damaged_pictures_are_counted_and_left_out() -> None:
    port = free_port()
    with mjpeg_camera(port, "faulty"):
        source = make_source(f"http://127.0.0.1:{port}/")
        source.open()
        for _ in range(12):
            assert source.read() is not None
        source.close()
    assert source.damaged == 2


def test_a_camera_may_want_a_password() -> None:
    port = free_port()
    with mjpeg_camera(port, "locked"):
        source = make_source(f"http://user:pass%20word@127.0.0.1:{port}/")
        source.open()
        assert source.read() is not None
        source.close()
        with pytest.raises(CameraError, match="401"):
            make_source(f"http://user:wrong@127.0.0.1:{port}/").open()


def test_a_camera_that_is_killed_or_silent_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_mjpeg, "_STALL_S", 0.5)
    monkeypatch.setattr(source_mjpeg, "_CONNECT_S", 1.0)
    port = free_port()
    before = open_files()
    source = make_source(f"http://127.0.0.1:{port}/")
    with mjpeg_camera(port) as child:
        source.open()
        assert source.read() is not None
        child.kill()
        with pytest.raises(CameraError, match="lost"):
            for _ in range(1000):
                source.read()
        source.close()
    with pytest.raises(CameraError, match="refused"):
        source.open()
    with mjpeg_camera(port, "silent"):
        source.open()
        with pytest.raises(CameraError, match="lost"):
            source.read()
        source.close()
    assert open_files() <= before


@pytest.mark.parametrize(
    "answer",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"\xff" * 70000],
)
def test_what_does_not_speak_http_is_no_camera(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            visitor, _ = door.accept()
            with visitor:
                visitor.recv(1000)
                visitor.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CameraError, match="no answer"):
            make_source(f"http://127.0.0.1:{door.getsockname()[1]}/").open()
        thread.join(5)


def test_another_stream_over_http_goes_to_ffmpeg(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", pictures(20))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = make_source(f"http://127.0.0.1:{server.server_address[1]}/a.mp4")
        source.open()
        assert source.fps == pytest.approx(25)
        for _ in range(20):
            frame = source.read()
            assert frame is not None
            assert frame.image.shape == (120, 160, 3)
        with pytest.raises(CameraError, match="lost"):
            source.read()
        source.close()
        server.shutdown()


def test_the_environment_of_ffmpeg_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
    monkeypatch.delenv(key, raising=False)
    with pytest.raises(CameraError, match="Connection refused"):
        source_opencv.network_source(f"rtsp://user:pw@127.0.0.1:{free_port()}/x").open()
    assert key not in os.environ


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"RTSP/1.0 404 Not Found\r\n\r\n", "the camera answers 404 Not Found"),
        (b"RTSP/1.0 401 Unauthorized\r\n\r\n", "the camera answers 401 Unauthorized"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak RTSP"),
        (b"", "does not speak RTSP"),
    ],
)
def test_an_rtsp_camera_says_itself_why_it_gives_no_stream(answer: bytes, reason: str) -> None:
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            visitor, _ = door.accept()
            with visitor:
                asked.append(visitor.recv(1000))
                visitor.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        port = door.getsockname()[1]
        assert reason in probe_rtsp(f"rtsp://user:secret@127.0.0.1:{port}/cam")
        thread.join(5)
    assert asked[0].startswith(b"DESCRIBE rtsp://127.0.0.1") and b"secret" not in asked[0]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("rtsp://", "names no host"),
        ("rtsp://127.0.0.1:99999/x", "out of range"),
        ("rtsp://127.0.0.1:1/x", "Connection refused"),
    ],
)
def test_an_rtsp_address_that_leads_nowhere_is_explained(address: str, reason: str) -> None:
    assert reason in probe_rtsp(address)


def test_a_device_that_is_no_camera_is_told_from_one_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fcntl

    with pytest.raises(CameraError, match="/dev/null: it is not a camera"):
        make_source("/dev/null").open()

    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    def metadata_only(handle: int, request: int, answer: bytearray) -> int:
        # struct v4l2_capability: capabilities of the whole and of this node; a UVC camera's
        # second node has V4L2_CAP_META_CAPTURE and V4L2_CAP_STREAMING only.
        answer[84:92] = struct.pack("=II", 0x84A00001, 0x04A00000)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", metadata_only)
        assert "metadata only" in obstacle(Path("/dev/null"))
        patch.setattr(os, "open", refuse)
        assert "usermod -aG video" in obstacle(Path("/dev/null"))


def test_a_camera_that_gives_something_else_than_it_was_asked_for_says_so() -> None:
    given = {
        cv2.CAP_PROP_FRAME_HEIGHT: 480.0,
        cv2.CAP_PROP_FRAME_WIDTH: 640.0,
        cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"YUYV")),
        cv2.CAP_PROP_FPS: 30.0,
    }
    capture = Mock()
    capture.get.side_effect = lambda key: given.get(key, 0.0)

    def note(**options: Any) -> str:
        source = OpenCvSource("cam", lambda: capture, "", asked=SourceOptions(**options))
        source.open()
        return source.note

    assert note() == note(hw=(480, 640), fps=30, pixel_format="yuyv") == ""
    assert note(hw=(1080, 1920), fps=60, pixel_format="mjpg") == (
        "cam: gives 640x480 pixels instead of 1920x1080, YUYV instead of MJPG, "
        "30 frames a second instead of 60"
    )


def test_grey_frames_of_a_pipeline_become_colour() -> None:
    capture = Mock()
    capture.get.return_value = 0.0
    capture.retrieve.return_value = (True, np.full((4, 6), 77, np.uint8))
    source = OpenCvSource("grey", lambda: capture, "")
    source.open()
    frame = source.read()
    source.close()
    assert frame is not None and frame.image.shape == (4, 6, 3) and (frame.image == 77).all()


def test_a_camera_that_is_not_there_tells_what_to_do() -> None:
    with pytest.raises(CameraError, match=r"/dev/video97.*no such device.*edge camera --list"):
        make_source("97").open()
    with pytest.raises(CameraError, match="four characters"):
        make_source("0", SourceOptions(pixel_format="RGB"))


# What gst-launch does for us: I420 frames on the file that fdsink names, chatter on stdout.
FAKE_LAUNCH = """#!{python}
import re, sys, time
import cv2, numpy as np
line = " ".join(sys.argv)
assert "format=I420" in line and "width=64,height=48" in line, line
fd = int(re.search(r"fdsink sync=false fd=(\\d+)", line)[1])
print("GST_ARGUS: Creating output stream", flush=True)
with open(fd, "wb", buffering=0) as pipe:
    for number in range({count}):
        image = np.full((48, 64, 3), (40 + number, 120, 200), np.uint8)
        data = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420).tobytes()
        pipe.write(data[:1000]); time.sleep(0.02); pipe.write(data[1000:])
    {end}
"""


@pytest.fixture
def fake_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def make(count: int, end: str) -> None:
        path = tmp_path / "gst-launch-1.0"
        path.write_text(FAKE_LAUNCH.format(python=sys.executable, count=count, end=end))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(source_gst, "has_gstreamer", lambda: False)

    return make


def test_frames_of_a_pipeline_come_through_the_child(fake_launch) -> None:
    fake_launch(5, "sys.exit(0)")
    before = open_files()
    source = make_source("gst:videotestsrc num-buffers=5", SourceOptions(hw=(48, 64)))
    assert isinstance(source, PipeSource)
    frames = read_all(source)
    assert len(frames) == 5
    for number, frame in enumerate(frames):
        assert frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image.astype(int) - (40 + number, 120, 200)).max() <= 3
    assert open_files() == before


def test_a_pipeline_that_dies_is_lost_with_its_own_words(fake_launch) -> None:
    fake_launch(2, "print('ERROR: from element /GstArgus: no cameras'); sys.exit(1)")
    source = make_source("csi://0", SourceOptions(hw=(48, 64), fps=30))
    source.open()
    assert source.read() and source.read()
    with pytest.raises(CameraError, match=r"csi://0.*no cameras.*nvargus-daemon"):
        source.read()
    source.close()


def test_a_pipeline_that_hangs_is_lost_and_closing_kills_it(
    fake_launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_gst, "_STALL_S", 0.5)
    fake_launch(1, "signal = __import__('signal'); time.sleep(60)")
    source = make_source("csi://0", SourceOptions(hw=(48, 64)))
    source.open()
    assert source.read() is not None
    with pytest.raises(CameraError, match="sends nothing"):
        source.read()
    child = source._child  # type: ignore[attr-defined]
    start = time.monotonic()
    source.close()
    assert time.monotonic() - start < 4
    assert child.returncode == -signal.SIGTERM


def test_ctrl_c_in_a_terminal_ends_the_app_and_not_first_its_pipeline(
    fake_launch, tmp_path: Path
) -> None:
    fake_launch(100000, "sys.exit(0)")
    flags = ["--source", "gst:videotestsrc", "--size", "48x64", "--headless", "--threads", "1"]
    command = [sys.executable, "-m", "apps.cli", "camera", "--events", str(tmp_path / "e"), *flags]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (tmp_path / "e").exists() and (tmp_path / "e").stat().st_size, 30)
        # As a terminal does: to the whole group.
        os.killpg(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=20)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 0
    assert "stopped" not in said


def test_sizes_that_gstreamer_pads_are_refused() -> None:
    for hw in ((720, 1284), (719, 1280)):
        with pytest.raises(CameraError, match="width of 8 n"):
            PipeSource("x", "videotestsrc", hw, "", None)


def test_without_gstreamer_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(source_gst, "has_gstreamer", lambda: False)
    with pytest.raises(CameraError, match=r"apt install gstreamer1\.0-tools"):
        make_source("csi://0").open()


def test_a_real_pipeline_shows_what_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    if not source_gst.has_element("videotestsrc"):
        pytest.skip("GStreamer (gst-launch-1.0, videotestsrc) is not installed")
    monkeypatch.setattr(source_gst, "has_gstreamer", lambda: False)
    # At 720 lines GStreamer's own choice of colours would be another one than OpenCV's.
    pipeline = "gst:videotestsrc num-buffers=3 pattern=red"
    frames = read_all(make_source(pipeline, SourceOptions(hw=(720, 1280))))
    assert 1 <= len(frames) <= 3  # the newest wins inside the child too
    assert np.abs(frames[0].image.astype(int) - (0, 0, 255)).max() <= 3
    with pytest.raises(CameraError, match=r"gst-inspect-1\.0 nosuchelement"):
        read_all(make_source("gst:nosuchelement"))
    if not source_gst.has_element("nvarguscamerasrc"):
        with pytest.raises(CameraError, match=r"nvarguscamerasrc.*on a Jetson only"):
            read_all(make_source("csi://0"))


# The system's Python has the bindings of GStreamer's RTSP server where they are installed.
RTSP_CAMERA = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(); server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( videotestsrc is-live=true pattern=green ! video/x-raw,format=I420,"
                   "width=320,height=240,framerate=20/1 ! jpegenc ! rtpjpegpay name=pay0 )")
server.get_mount_points().add_factory("/cam", factory)
server.attach(None); print("ready", flush=True); GLib.MainLoop().run()
"""


def test_rtsp_over_tcp() -> None:
    port = free_port()
    try:
        child = subprocess.Popen(
            ["/usr/bin/python3", "-c", RTSP_CAMERA, str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError:
        pytest.skip("no system Python with GStreamer's RTSP server")
    try:
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            pytest.skip("no system Python with GStreamer's RTSP server")
        source = make_source(f"rtsp://127.0.0.1:{port}/cam")
        source.open()
        for _ in range(5):
            frame = source.read()
            assert frame is not None
            assert np.abs(frame.image.astype(int) - (0, 255, 0)).mean() < 20
        child.kill()
        with pytest.raises(CameraError, match="lost"):
            for _ in range(300):
                source.read()
        source.close()
    finally:
        child.kill()
        child.communicate()


def test_cameras_are_listed_from_the_kernel(tmp_path: Path) -> None:
    sysfs, dev = tmp_path / "video4linux", tmp_path / "dev"
    dev.mkdir()
    assert list_cameras(sysfs, dev) == []
    for number, name in ((10, "vi-output, imx477 10-001a"), (2, "vi-output, imx219 9-0010")):
        (sysfs / f"video{number}").mkdir(parents=True)
        (sysfs / f"video{number}" / "name").write_text(f"{name}\n")
    (sysfs / "video0").mkdir()
    (dev / "video0").write_bytes(b"a file is no camera")
    found = list_cameras(sysfs, dev)
    assert [(one.source, one.kind) for one in found] == [("csi://0", "csi"), ("csi://1", "csi")]
    assert "imx219" in found[0].name


def test_the_videos_of_the_development_data_play(edge_data: Path) -> None:
    path = edge_data / "video" / "car-detection.mp4"
    source = make_source(str(path), FAST)
    source.open()
    assert source.fps == pytest.approx(12.5)
    frame = source.read()
    assert frame is not None
    assert frame.image.shape == (432, 768, 3)
    source.close()
    assert count_frames(path) == 377


SECRET = "s3/cr?e#t@ 'x\"!"


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://u:se/cret@cam/a",
        "rtsp://u:se?cret@cam/a",
        "rtsp://u:se#cret@cam/a",
        "rtsp://u:p@se/cret@cam/a",
        "http://u:12/secret@cam/a",
        "http://cam/v?access_token=secret",
        "http://cam/v?a=1&api_key=secret&b=2",
        "http://cam/v?user_password=secret",
        "http://cam/v?auth=secret",
        "http://cam/v?sessionid=1&sid=secret",
        "http://cam/v?loginuse=me&loginpas=secret",
        'gst:rtspsrc location=rtsp://cam user-pw="a secret" ! x',
        "gst:rtspsrc location=rtsp://cam user-pw='a secret' ! x",
    ],
)
def test_no_usual_form_of_a_secret_is_in_a_name(address: str) -> None:
    shown = public_name(address)
    assert "secret" not in shown and "cret" not in shown
    assert "cam" in shown


def test_what_is_no_secret_stays_in_a_name() -> None:
    for address in (
        "http://cam:8080/a.jpg?rate=3&size=640",
        "rtsp://[fe80::1]:554/a",
        "scenes://?seed=1&night=0.3",
        "http://cam/a@b",
    ):
        assert public_name(address) == address
    assert public_name("rtsp://cam/\x1b[31m") == "rtsp://cam/\ufffd[31m"


@pytest.mark.parametrize("word", ["rtsp://u:se/cret@127.0.0.1/a", "http://u:se?cret@127.0.0.1/a"])
def test_a_password_that_ends_the_address_is_explained_without_it(word: str) -> None:
    with pytest.raises(CameraError, match=r"%2F %3F %23.*\{env:NAME\}") as error:
        make_source(word).open()
    assert "cret" not in str(error.value)


def test_a_password_may_come_from_a_variable_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_PW", SECRET)
    (tmp_path / "pw").write_text(f"{SECRET}\n")
    for place in ("{env:CAMERA_PW}", f"{{file:{tmp_path / 'pw'}}}"):
        filled = filled_in(f"rtsp://admin:{place}@cam/a?x=1")
        assert unquote(urlsplit(filled).password or "") == SECRET
        assert urlsplit(filled).hostname == "cam"
        assert SECRET not in make_source(f"rtsp://admin:{place}@cam/a").name
        pipeline = filled_in(f"gst:rtspsrc location=rtsp://cam user-pw={place} ! x")
        assert shlex.split(pipeline)[2] == f"user-pw={SECRET}"
        assert "cr?e" not in public_name(pipeline)
    assert filled_in("scenes://?seed=1") == "scenes://?seed=1"
    with pytest.raises(CameraError, match="the variable NOT_THERE is not set"):
        make_source("rtsp://u:{env:NOT_THERE}@cam/")
    with pytest.raises(CameraError, match="none: cannot be read"):
        make_source(f"rtsp://u:{{file:{tmp_path / 'none'}}}@cam/")


def test_a_password_with_any_character_opens_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_PW", "pass word")
    port = free_port()
    word = f"http://user:{{env:CAMERA_PW}}@127.0.0.1:{port}/"
    with mjpeg_camera(port, "locked"), make_source(word) as source:
        source.open()
        assert source.read() is not None
        assert "pass" not in source.name


@pytest.mark.parametrize("inside_opencv", [False, True])
@pytest.mark.parametrize(
    "address",
    [
        "rtsp://cam/a\\",
        'rtsp://cam/a" ! filesink location=/tmp/x "',
        "rtsp://cam/a\tfilesrc",
        "rtsp://cam/a\nfakesink",
        "rtsp://cam/a\x0bfakesink",
        "rtsp://cam/a'b",
        "rtsp://cam/a!b",
        "rtsp://cam/a b",
        "rtsp://cam/caf\u00e9",
    ],
)
def test_an_rtsp_address_adds_nothing_to_a_pipeline(
    monkeypatch: pytest.MonkeyPatch, inside_opencv: bool, address: str
) -> None:
    monkeypatch.setattr(source_gst, "has_gstreamer", lambda: inside_opencv)
    with pytest.raises(CameraError, match="%XX"):
        source_gst.rtsp_source(address, SourceOptions())


def test_a_whole_rtsp_address_reaches_the_pipeline_as_one_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    monkeypatch.setattr(source_gst, "has_gstreamer", lambda: False)
    monkeypatch.setattr(source_gst, "PipeSource", lambda name, line, *rest: made.append(line))
    address = "rtsp://u:p%22%20x@[fe80::1]:554/a;b(c)*d?e=$f&g=h,i+j~k#l"
    source_gst.rtsp_source(address, SourceOptions())
    source_gst.rtsp_source("rtsp://cam/a", SourceOptions())
    words = [shlex.split(line) for line in made]
    assert words[0][1] == f"location={address}"
    assert len(words[0]) == len(words[1])


@pytest.mark.parametrize("word", ["csi://\u00b2", "csi://0?flip=8", "csi://0?flip=", "csi://0?x=1"])
def test_a_ribbon_cameras_address_is_numbers(word: str) -> None:
    with pytest.raises(CameraError, match="csi://NUMBER"):
        make_source(word)
