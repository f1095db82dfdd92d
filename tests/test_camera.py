"""The camera app as a whole: bounded age, faults on purpose, and figures that can be checked."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.camera import capture as capture_module
from apps.camera import live as live_module
from apps.camera.capture import Capture, Slots
from apps.camera.live import Facts, LiveState
from apps.camera.options import Outputs
from apps.camera.result import Result
from apps.camera.stats import Health
from apps.commands.camera import arguments, print_camera, run
from edge.errors import CameraError
from edge.files import to_plain
from edge.measure.distribution import Distribution
from edge.runtime.detector import Detector
from edge.video.frame import Frame, SourceOptions
from tests.support.camera_parts import (
    ROOT,
    Held,
    count_frames,
    free_port,
    mjpeg_camera,
    open_files,
    pictures,
    run_camera,
    small_disk,
    wait_for,
    write_video,
)
from tests.support.small_models import write_small

WORLD = "scenes://?size=96x128&fps=30"
OPTIONS: dict[str, Any] = {"threads": 1, "score": 0.01}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    write_small(path)
    # onnxruntime keeps files of its own open from its first session on.
    Detector.open(path, threads=1).close()
    return path


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not [t for t in set(threading.enumerate()) - before if not _of_python(t)])


def _of_python(thread: threading.Thread) -> bool:
    return thread.name.startswith(("Thread-", "Dummy"))


def frame(index: int) -> Frame:
    return Frame(np.zeros((4, 4, 3), np.uint8), time.monotonic(), index)


def test_in_a_slot_the_newest_frame_wins() -> None:
    slots = Slots(1)
    for index in range(5):
        slots.put(0, frame(index))
    taken = slots.take(0)
    assert taken is not None and taken[1].index == 4
    assert slots.dropped == [4]
    assert slots.take(0.01) is None


def test_sources_take_turns() -> None:
    slots = Slots(3)
    order = []
    for round_ in range(4):
        for source in (0, 1, 2):
            slots.put(source, frame(round_))
        slots.put(0, frame(99))  # a faster camera
        for _ in range(3):
            taken = slots.take(0)
            assert taken is not None
            order.append(taken[0])
    assert order == [0, 1, 2] * 4


def test_who_waits_for_a_slot_loses_nothing_and_is_let_go() -> None:
    slots = Slots(1)
    seen = []

    def fill() -> None:
        for index in range(20):
            slots.put(0, frame(index), wait=True)
        slots.end(0)

    thread = threading.Thread(target=fill, name="filler")
    thread.start()
    while not slots.finished:
        taken = slots.take(0.2)
        if taken:
            seen.append(taken[1].index)
    thread.join(5)
    assert seen == list(range(20)) and slots.dropped == [0]
    slots = Slots(1)
    for index in range(3):
        slots.put(0, frame(index), wait=True)
    thread = threading.Thread(target=slots.put, args=(0, frame(1), True), name="waits")
    thread.start()
    slots.close()
    thread.join(5)
    assert not thread.is_alive()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=300))
def test_percentiles_are_numpys_to_one_percent(values: list[float]) -> None:
    seen = Distribution()
    for value in values:
        seen.add(value)
    wanted = np.percentile(values, (50, 95, 99), method="inverted_cdf")
    assert seen.percentiles((50, 95, 99)) == pytest.approx(wanted.tolist(), rel=0.0101)
    assert seen.mean == pytest.approx(np.mean(values))
    assert seen.summary()["max"] == max(values)


def test_nothing_has_no_percentiles() -> None:
    assert Distribution().summary() == {"p50": 0, "p95": 0, "p99": 0, "mean": 0, "max": 0}


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    arguments(parser)
    return parser


class Keep:
    """A sink that keeps all results."""

    name, pictures, depth, newest = "keep", True, 64, False

    def __init__(self) -> None:
        self.results: list[Result] = []

    def write(self, result: Result) -> None:
        self.results.append(result)

    def close(self) -> None:
        pass


def test_every_frame_of_a_file_is_detected_as_the_detector_does(
    artifact: Path, tmp_path: Path
) -> None:
    path, kept = tmp_path / "a.mp4", Keep()
    write_video(path, pictures(25))
    stats = run_camera(
        artifact,
        [str(path)],
        source=SourceOptions(fast=True),
        sinks=[kept],
        outputs=Outputs(events=tmp_path / "e.jsonl"),
        **OPTIONS,
    )
    capture = cv2.VideoCapture(str(path))
    boxes = 0
    with Detector.open(artifact, **OPTIONS) as detector:
        for one in kept.results:
            wanted = detector(np.asarray(capture.read()[1], np.uint8))
            assert np.array_equal(one.detections.xyxy, wanted.xyxy)
            assert np.array_equal(one.detections.score, wanted.score)
            boxes += len(wanted)
    capture.release()
    assert boxes > 25
    assert stats.frames == 25 == len(kept.results) and stats.dropped == 0
    assert sum(stats.detections.values()) == boxes
    written = to_plain(stats)
    assert set(written) >= {
        *("frames", "dropped", "fps", "frame_age_ms", "stages_ms", "reconnects", "backend")
    }
    assert set(written["frame_age_ms"]) >= {"p50", "p95", "p99"}
    assert set(written["stages_ms"]) == {"preprocess", "engine", "decode", "nms"}
    assert written["sources"][0]["state"] == "ended"
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(25))
    assert sum(len(line["detections"]) for line in lines) == boxes


class Sleeper(Keep):
    """A sink that takes a second for each result."""

    name, pictures, depth = "sleeper", True, 2

    def write(self, result: Result) -> None:
        time.sleep(1)


def test_a_consumer_that_sleeps_does_not_make_frames_old(artifact: Path) -> None:
    source = Held(pictures(8, (480, 640)), fps=30)
    stats = run_camera(artifact, [source], sinks=[Sleeper()], seconds=4, frames=2000, **OPTIONS)
    assert stats.sinks[0].dropped > 30
    assert stats.frames > 40
    # One interval of the camera and one inference; the rest is for a busy machine.
    inference = sum(stats.stages_ms.values())
    assert stats.frame_age_ms["p50"] < 1000 / 30 + inference
    assert stats.frame_age_ms["p99"] < 1000 / 30 + 3 * inference + 100


def test_a_slow_detector_drops_frames_and_takes_the_newest(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge.runtime.backend_ort import OrtBackend

    plain = OrtBackend.run

    def slow(self: OrtBackend, tensor: np.ndarray) -> list[np.ndarray]:
        time.sleep(0.12)
        return plain(self, tensor)

    monkeypatch.setattr(OrtBackend, "run", slow)
    stats = run_camera(artifact, [Held(pictures(8), fps=50)], seconds=2.5, **OPTIONS)
    assert stats.dropped > 2 * stats.frames > 20
    assert stats.frames + stats.dropped == pytest.approx(2.5 * 50, abs=15)
    # 120 ms of inference, 20 ms until the next frame, and a machine that has other work.
    assert 120 <= stats.frame_age_ms["p50"] < 170
    assert stats.frame_age_ms["p99"] < 260
    assert stats.engine_share > 0.9


def test_limits_end_a_run(artifact: Path) -> None:
    assert run_camera(artifact, [WORLD], frames=7, **OPTIONS).frames == 7
    start = time.monotonic()
    run_camera(artifact, [WORLD], seconds=0.5, **OPTIONS)
    assert 0.5 <= time.monotonic() - start < 5
    for wrong in ({"seconds": 0}, {"frames": 0}, {"baseline_share": 0}):
        with pytest.raises(ValueError, match=r"baseline_share|positive"):
            run_camera(artifact, [WORLD], **wrong)


def test_several_sources_share_a_detector_fairly(artifact: Path, tmp_path: Path) -> None:
    held = [Held(pictures(4, (96, 128)), fps=20, name="a"), Held(pictures(4), fps=20, name="b")]
    stats = run_camera(
        artifact, held, outputs=Outputs(record=tmp_path / "r.mp4"), seconds=2, **OPTIONS
    )
    frames = [one.frames for one in stats.sources]
    assert [one.name for one in stats.sources] == ["a", "b"]
    assert sum(frames) == stats.frames and min(frames) > 15
    assert abs(frames[0] - frames[1]) <= 4
    assert [one.hw for one in stats.sources] == [(96, 128), (120, 160)]
    for index in range(2):
        assert count_frames(tmp_path / f"r-s{index}.mp4") > 10


def test_a_source_that_ends_does_not_end_the_others(artifact: Path) -> None:
    stats = run_camera(
        artifact, [Held(pictures(3), count=3), Held(pictures(3), count=30)], **OPTIONS
    )
    assert [one.frames for one in stats.sources] == [3, 30]
    assert {one.state for one in stats.sources} == {"ended"}


@contextmanager
def _nothing(live: LiveState) -> Iterator[None]:
    yield


def test_a_lost_camera_comes_back_and_nothing_leaks(
    artifact: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    port, seen = free_port(), {}
    before = open_files()

    @contextmanager
    def breaks(live: LiveState) -> Iterator[None]:
        def script() -> None:
            wait_for(lambda: live.snapshot().frames > 5)
            child[0].kill()
            wait_for(lambda: live.snapshot().sources[0].state == "lost")
            seen["health"] = live.health()
            with mjpeg_camera(port):
                wait_for(lambda: live.snapshot().reconnects == 1, 15)
                frames = live.snapshot().frames
                wait_for(lambda: live.snapshot().frames > frames + 5)
                seen["after"] = live.health()
                os.kill(os.getpid(), signal.SIGTERM)
                over.wait(10)

        over = threading.Event()
        thread = threading.Thread(target=script, name="script")
        thread.start()
        yield
        over.set()
        thread.join(20)

    with mjpeg_camera(port) as running:
        child = [running]
        stats = run_camera(artifact, [f"http://127.0.0.1:{port}/"], beside=[breaks], seconds=40)
    assert seen["health"].ok is False and seen["health"].alive is True
    assert "lost" in seen["health"].reasons[0]
    assert seen["after"].ok is True
    assert stats.reconnects == 1 and stats.sources[0].state == "live"
    assert stats.seconds < 39
    assert "back" in capfd.readouterr().err
    wait_for(lambda: open_files() <= before)


def test_whatever_opening_a_lost_camera_raises_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture_module, "_FIRST_WAIT_S", 0.02)
    errors: list[Exception] = [RuntimeError("a driver's surprise"), OSError(24, "too many files")]

    class Unsteady(Held):
        lost = False

        def open(self) -> None:
            if self.lost and errors:
                raise errors.pop()
            super().open()
            self._closed.clear()

        def read(self) -> Frame | None:
            if self.index == 3 and not self.lost:
                self.lost = True
                raise CameraError("held: lost")
            return super().read()

    capture = Capture(0, Unsteady(pictures(2), fps=50), Slots(1), lambda text: None)
    capture.open()
    wait_for(lambda: capture.reconnects == 1 and capture.frames > 5)
    assert capture.state == "live" and not errors
    assert "a driver's surprise" in capture.error
    capture.close()


def test_two_cameras_that_hang_are_waited_for_at_once(artifact: Path) -> None:
    class Hanging(Held):
        def close(self) -> None:
            if not self._closed.is_set():
                time.sleep(1)
            super().close()

    start = time.monotonic()
    sources = [Hanging(pictures(2), fps=20) for _ in range(4)]
    run_camera(artifact, sources, frames=8, **OPTIONS)
    assert time.monotonic() - start < 4


def test_a_camera_that_is_not_there_at_the_start_is_an_error(artifact: Path) -> None:
    before = open_files()
    with pytest.raises(CameraError, match="refused"):
        run_camera(artifact, [WORLD, f"http://127.0.0.1:{free_port()}/"], seconds=5, **OPTIONS)
    with pytest.raises(CameraError, match="has no frame"):
        run_camera(artifact, [Held([], count=0)], **OPTIONS)
    assert open_files() <= before


def test_outputs_that_cannot_be_written_do_not_end_detection(
    artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 1, read_only=True) as disk:
        outputs = Outputs(record=disk / "r.mp4", events=disk / "e.jsonl", pictures=disk)
        stats = run_camera(artifact, [Held(pictures(4), count=40)], outputs=outputs, **OPTIONS)
        for wrong in (disk / "no" / "s.json", tmp_path):
            with pytest.raises(SystemExit):
                flags().parse_args([str(artifact), "--stats", str(wrong)])
    assert stats.frames == 40
    lines = [line for line in capfd.readouterr().err.splitlines() if "goes on" in line]
    assert len(lines) == 3
    assert all("Read-only file system" in sink.error for sink in stats.sinks)


SCRIPT = """
import signal, sys
from apps.camera.app import camera
# A parent may ignore it, as nohup does, and the app heeds that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from apps.camera.options import CameraOptions, Outputs
from edge.files import write_json
artifact, folder = sys.argv[1:]
outputs = Outputs(record=folder + "/r.mp4", events=folder + "/e.jsonl", record_seconds=1)
stats = camera(artifact, ["scenes://?size=240x320&fps=30"],
               CameraOptions(threads=1, score=0.05, track=True), outputs)
write_json(stats, folder + "/s.json")
print("came to its end")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_mid_write_leaves_whole_files(
    artifact: Path, tmp_path: Path, number: signal.Signals
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(artifact), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: len(list(tmp_path.glob("r-*.part.mp4"))) and _lines(tmp_path) > 45, 30)
        child.send_signal(number)
        out, err = child.communicate(timeout=20)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 0, err
    assert out.strip() == "came to its end"
    videos = sorted(tmp_path.glob("*.mp4"))
    assert videos and not list(tmp_path.glob("*.part*"))
    assert all(count_frames(video) > 0 for video in videos)
    stats = json.loads((tmp_path / "s.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert len(lines) == stats["frames"]
    assert all(one["written"] > 0 for one in stats["sinks"])


def _lines(folder: Path) -> int:
    path = folder / "e.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_the_baseline_and_tracks_stand_in_the_figures(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = run_camera(
        artifact,
        [Held(pictures(1), count=20)],
        baseline=artifact,
        baseline_share=1,
        track=True,
        **OPTIONS,
    )
    beside = stats.baseline
    assert beside.frames == 20 and beside.agreement == 1.0
    assert beside.boxes == sum(stats.detections.values()) > 20
    assert beside.speedup == pytest.approx(beside.fps_edge / beside.fps)
    # The same picture twenty times: each box is one track.
    assert sum(stats.tracks.values()) == beside.boxes / 20
    assert "track" in stats.stages_ms
    print_camera(stats)
    shown = capsys.readouterr()
    assert "held" in shown.out
    assert "finds 100% of" in shown.err and "tracks:" in shown.err


def test_tracks_of_a_file_go_by_the_clock_of_the_file(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge.video.tracking import Tracker

    times: list[float] = []
    plain = Tracker.update

    def update(self: Tracker, found: Any, now: float) -> Any:
        times.append(now)
        return plain(self, found, now)

    monkeypatch.setattr(Tracker, "update", update)
    write_video(tmp_path / "a.mp4", pictures(10), fps=12.5)
    fast = SourceOptions(fast=True)
    run_camera(artifact, [str(tmp_path / "a.mp4")], source=fast, track=True, **OPTIONS)
    assert times == pytest.approx([index / 12.5 for index in range(10)])


def test_the_live_state_tells_pages_what_happens(artifact: Path) -> None:
    seen: dict[str, Any] = {}

    @contextmanager
    def page(live: LiveState) -> Iterator[None]:
        def read() -> None:
            first = live.wait(0, 0, 5)
            seen["second"] = live.wait(0, first, 5) > first
            found = live.jpeg(0, quality=90, max_side=80)
            assert found is not None
            seen["jpeg"] = cv2.imdecode(np.frombuffer(found[1], np.uint8), cv2.IMREAD_COLOR)
            number, data = found
            while (again := live.jpeg(0, quality=90, max_side=80)) and again[0] == number:
                assert again[1] is data
            wait_for(lambda: len(live.series()) >= 2)
            seen["series"] = live.series()
            seen["later"] = live.series(after=seen["series"][0]["t"])
            seen["snapshot"] = to_plain(live.snapshot())
            seen["health"] = live.health()

        thread = threading.Thread(target=read, name="page")
        thread.start()
        yield
        thread.join(10)

    run_camera(artifact, [Held(pictures(8), fps=30)], seconds=3.5, beside=[page], **OPTIONS)
    assert seen["second"]
    assert seen["jpeg"].shape == (60, 80, 3)
    assert all(sample["fps"] > 5 for sample in seen["series"])
    assert set(seen["series"][0]["stages_ms"]) == {"preprocess", "engine", "decode", "nms"}
    assert len(seen["later"]) == len(seen["series"]) - 1
    assert seen["snapshot"]["fps_now"] > 5
    assert seen["health"] == Health(True, True, ())


def test_while_no_frame_comes_the_series_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(live_module, "_EVERY_S", 0.05)
    live = LiveState(Facts(), ("a",), [])
    live.beat()
    assert live.series() == []
    for _ in range(3):
        time.sleep(0.21)
        live.beat()
    told = live.series()
    assert [one["fps"] for one in told] == [0, 0, 0]
    assert {one["age_ms"] for one in told} == {one["age_max_ms"] for one in told} == {None}
    assert told[0]["t"] < told[1]["t"] < told[2]["t"]


def test_systemd_hears_that_the_app_is_ready_alive_and_stopping(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "notify"))
        door.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        run_camera(artifact, [WORLD], seconds=1, **OPTIONS)
        heard = []
        while not heard or heard[-1] != b"STOPPING=1":
            heard.append(door.recv(100))
    assert heard[0] == b"READY=1"
    assert 3 <= heard.count(b"WATCHDOG=1") <= 11


def test_a_service_manager_that_never_reads_does_not_hold_up_the_camera(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000")
        # A hundred words, ten times what the queue of a datagram socket holds.
        assert run_camera(artifact, [WORLD], seconds=1, **OPTIONS).frames > 5


def test_systemd_hears_nothing_while_a_driver_holds_a_read(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.camera.live._STALL_S", 0.4)

    class Stuck(Held):
        def read(self) -> Frame | None:
            if self.index == 3:
                self._closed.wait(20)
            return super().read()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "150000")
        source = Stuck(pictures(2), fps=50)
        stats = run_camera(artifact, [source], seconds=2, **OPTIONS)
        door.setblocking(False)
        heard = []
        while not heard or heard[-1] != b"STOPPING=1":
            heard.append(door.recv(100))
    # Every 50 ms for a little more than 0.4 of the two seconds.
    assert 2 <= heard.count(b"WATCHDOG=1") <= 16
    assert stats.health.alive is False
    assert stats.health.reasons == ("held: no frame",)


def test_frames_that_change_their_size_are_detected(artifact: Path) -> None:
    frames = [*pictures(3, (96, 128)), *pictures(3, (64, 200)), *pictures(2, (480, 33))]
    stats = run_camera(artifact, [Held(frames, count=32)], **OPTIONS)
    assert stats.frames == 32


def test_the_command_line_reaches_the_app(artifact: Path, tmp_path: Path) -> None:
    parser = flags()
    given = ["--headless", "--threads", "1", "--score", "0.05", "--track", "--frames", "5"]
    given += ["--source", WORLD, "--size", "64x96", "--stats", str(tmp_path / "s.json")]
    assert run(parser.parse_args([str(artifact), *given])) == 0
    stats = json.loads((tmp_path / "s.json").read_text())
    assert stats["frames"] == 5 and stats["sources"][0]["hw"] == [64, 96]
    assert run(parser.parse_args(["--list"])) == 0
    for wrong in (
        ["--size", "3"],
        ["--size", "99999x99999"],
        ["--record", "x.avi"],
        ["--frames", "0"],
        ["--fps", "-1"],
        ["--fps", "inf"],
        ["--pictures-every", "-5"],
        ["--pictures-every", "nan"],
        ["video.mp4"],
        ["0"],
        ["/dev/video0"],
        ["rtsp://user:secret@cam/x"],
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)


@pytest.mark.slow
def test_the_loop_keeps_97_percent_of_the_engines_speed(tmp_path: Path) -> None:
    from tests.support.steps import exported

    made = exported(
        "yolov3-tiny", precision="fp32", random_weights=True, builder="none", output=tmp_path
    )
    held = pictures(8, (720, 1280))
    rounds = []
    with Detector.open(made["files"]["fp32"], threads=2) as detector:
        tensor = np.zeros((1, 3, *detector.contract.hw), np.float32)
        for _ in range(4):
            bare = _engine_fps(detector, tensor, 40)
            stats = run_camera(made["files"]["fp32"], [Held(held, count=40)], threads=2)
            again = _engine_fps(detector, tensor, 40)
            rounds.append(stats.fps / ((bare + again) / 2))
    assert np.median(rounds) >= 0.97


def _engine_fps(detector: Detector, tensor: np.ndarray, count: int) -> float:
    detector.backend.run(tensor)
    start = time.perf_counter()
    for _ in range(count):
        detector.backend.run(tensor)
    return count / (time.perf_counter() - start)
