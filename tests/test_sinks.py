"""Sinks on real disks: full, read-only, rotated, slow; what they leave can be read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from apps.camera import recording
from apps.camera.options import Outputs
from apps.camera.recording import VideoSink, has_index
from apps.camera.result import Result
from apps.camera.sinks import (
    EventSink,
    PictureSink,
    SinkWorker,
    WindowSink,
    start_sinks,
    why_no_window,
)
from edge.detections import Detections
from edge.errors import ArtifactError, CameraError
from edge.files import protect
from edge.video.frame import Frame
from tests.support.camera_parts import (
    ROOT,
    Held,
    count_frames,
    pictures,
    small_disk,
    wait_for,
    write_video,
)

CLASSES = ("car", "person")
IMAGES = pictures(8, (240, 320))


def result(
    index: int, seconds: float | None = None, image: np.ndarray | None = None, source: int = 0
) -> Result:
    found = Detections(np.array([[10, 20, 90, 80]]), np.array([0.75]), np.array([1]))
    captured = time.monotonic() if seconds is None else 1000 + seconds
    frame = Frame(IMAGES[index % 8] if image is None else image, captured, index)
    return Result(source, "cam", frame, found, CLASSES, np.array([7]), 12.5, {"engine": 9.0})


class Recorder:
    """A sink that remembers, may be slow and may fail."""

    name, pictures, depth, newest = "recorder", False, 2, False

    def __init__(self, pause_s: float = 0.0, fails: int = 0) -> None:
        self.seen: list[int] = []
        self.sizes: set[tuple[int, ...]] = set()
        self.pause_s, self.fails, self.closed = pause_s, fails, 0
        self.threads: set[int] = set()

    def write(self, one: Result) -> None:
        self.threads.add(threading.get_ident())
        time.sleep(self.pause_s)
        if self.fails:
            self.fails -= 1
            raise OSError(28, "No space left on device", "/there")
        self.seen.append(one.frame.index)
        self.sizes.add(one.frame.image.shape)

    def close(self) -> None:
        self.closed += 1


def test_a_slow_sink_holds_nobody_up_and_its_drops_are_counted() -> None:
    sink = Recorder(pause_s=0.1)
    worker = SinkWorker(sink, print)
    start = time.monotonic()
    for index in range(50):
        worker.offer(result(index))
    assert time.monotonic() - start < 0.1
    worker.close()
    assert sink.seen == sorted(sink.seen)
    assert len(sink.seen) + worker.dropped == 50
    assert worker.written == len(sink.seen) >= 2
    assert sink.seen[0] == 0 and 49 not in sink.seen
    assert sink.closed == 1
    assert sink.threads != {threading.get_ident()} and len(sink.threads) == 1


def test_where_the_newest_counts_the_last_result_arrives() -> None:
    sink = Recorder(pause_s=0.05)
    sink.newest = True
    worker = SinkWorker(sink, print)
    for index in range(50):
        worker.offer(result(index))
    worker.close()
    assert sink.seen[-2:] == [48, 49]


def test_with_files_nothing_is_lost() -> None:
    sink = Recorder(pause_s=0.005)
    worker = SinkWorker(sink, print, wait=True)
    for index in range(40):
        worker.offer(result(index))
    worker.close()
    assert sink.seen == list(range(40))
    assert worker.dropped == 0


def test_only_who_needs_pictures_keeps_them() -> None:
    sink, with_pictures = Recorder(), Recorder()
    with_pictures.pictures = True
    for each in (sink, with_pictures):
        worker = SinkWorker(each, print, only=1)
        worker.offer(result(0, source=0))
        worker.offer(result(1, source=1))
        worker.close()
        assert each.seen == [1]
    assert sink.sizes == {(0, 0, 3)}
    assert with_pictures.sizes == {(240, 320, 3)}


def test_a_sink_that_fails_is_told_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.camera.sinks._RETRY_S", 0.05)
    said: list[str] = []
    sink = Recorder(fails=2)
    worker = SinkWorker(sink, said.append, wait=True)
    for index in range(30):
        worker.offer(result(index))
        time.sleep(0.01)
    wait_for(lambda: sink.seen)
    worker.close()
    assert said == [
        "recorder: /there: No space left on device; detection goes on",
        "recorder: works again",
    ]
    assert worker.error == ""
    assert sink.seen[-1] == 29
    assert sink.closed == 3


def test_a_sink_that_never_returns_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    worker = SinkWorker(Recorder(pause_s=3), said.append)
    for index in range(3):
        worker.offer(result(index))
    start = time.monotonic()
    worker.close(wait_s=0.2)
    assert time.monotonic() - start < 1
    assert "left behind" in said[0]


def test_a_picture_is_drawn_once_and_cannot_be_changed() -> None:
    one = result(0)
    assert one.picture() is one.picture()
    assert not np.array_equal(one.picture(), one.frame.image)
    with pytest.raises(ValueError, match="read-only"):
        one.picture()[0, 0] = 0


def test_events_are_one_object_per_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    sink = EventSink(path)
    before = time.time()
    sink.write(result(3).bare())
    # Flushed: readable before the sink is closed.
    line = json.loads(path.read_text())
    assert line["source"] == "cam" and line["frame"] == 3 and line["age_ms"] == 12.5
    assert line["detections"] == [
        {
            "class": "person",
            "class_id": 1,
            "score": 0.75,
            "xyxy": [10.0, 20.0, 90.0, 80.0],
            "track": 7,
        }
    ]
    from datetime import datetime

    assert before - 1 <= datetime.fromisoformat(line["time"]).timestamp() <= time.time() + 1
    sink.close()
    with path.open("ab") as file:
        file.write(b'{"time":"20')  # a process that was killed
    sink.write(result(4).bare())
    sink.close()
    lines = path.read_text().splitlines()
    assert [json.loads(text)["frame"] for text in (lines[0], lines[2])] == [3, 4]


def test_when_the_reader_of_stdout_has_gone_the_app_ends(tmp_path: Path) -> None:
    flags = "--source scenes://?fps=50 --size 64x96 --headless --threads 1 --events -"
    child = subprocess.Popen(
        [sys.executable, "-m", "apps.cli", "camera", *flags.split()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None and child.stderr is not None
        assert "detections" in json.loads(child.stdout.readline())
        child.stdout.close()
        assert child.wait(60) == 0
        said = child.stderr.read()
    finally:
        child.kill()
        child.wait()
        child.stderr.close()
    assert "Traceback" not in said and "ignored" not in said


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        said: list[str] = []
        (disk / "ballast").write_bytes(b"x" * (900 << 10))
        worker = SinkWorker(EventSink(disk / "events.jsonl"), said.append, wait=True)
        for index in range(2000):
            worker.offer(result(index))
        worker.close()
        lines = (disk / "events.jsonl").read_text().splitlines()
    assert 100 < len(lines) < 2000
    assert [json.loads(line)["frame"] for line in lines] == list(range(len(lines)))
    assert len(said) == 1
    assert "events" in said[0] and "detection goes on" in said[0]


@pytest.mark.parametrize("kind", ["events", "video", "pictures"])
def test_a_read_only_folder_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    with small_disk(tmp_path / "disk", 1, read_only=True) as disk:
        sink = {
            "events": lambda: EventSink(disk / "e.jsonl"),
            "video": lambda: VideoSink(disk / "v.mp4", rate=10),
            "pictures": lambda: PictureSink(disk / "p"),
        }[kind]()
        said: list[str] = []
        worker = SinkWorker(sink, said.append, wait=True)
        for index in range(5):
            worker.offer(result(index))
        worker.close()
    assert len(said) == 1
    assert "Read-only file system" in said[0] and str(disk) in said[0]
    assert "\n" not in said[0]
    assert worker.dropped == 5


def test_a_recording_has_every_frame_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    sink = VideoSink(path, rate=12.5)
    for index in range(30):
        sink.write(result(index))
        assert not path.exists()
    sink.close()
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]
    assert count_frames(path) == 30
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    image = capture.read()[1]
    # The caption of a box is not in the frame: it is the annotated picture that is recorded.
    assert np.abs(image.astype(int) - result(0).picture()).mean() < 12
    capture.release()


def test_a_live_recording_plays_at_the_speed_of_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    sink = VideoSink(path)
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.uniform(0.05, 0.15, 80))
    for index, seconds in enumerate(times.tolist()):
        sink.write(result(index, seconds))
    sink.close()
    capture = cv2.VideoCapture(str(path))
    lasts = count_frames(path) / capture.get(cv2.CAP_PROP_FPS)
    assert lasts == pytest.approx(times[-1] - times[0], rel=0.05)


def test_a_gap_is_not_filled_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    sink = VideoSink(path)
    for index in range(40):
        sink.write(result(index, index / 10 + (3600 if index >= 20 else 0)))
    sink.close()
    assert 40 <= count_frames(path) <= 40 + 25


def test_few_frames_and_odd_sizes_are_recorded_too(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "a.mp4")
    sink.write(result(0, 0.0, np.full((97, 131, 3), 90, np.uint8)))
    sink.close()
    assert count_frames(tmp_path / "a.mp4") == 1
    VideoSink(tmp_path / "b.mp4").close()
    assert not (tmp_path / "b.mp4").exists()
    thin = VideoSink(tmp_path / "c.mp4", rate=5)
    for hw in ((1, 1), (2, 300), (99, 1)):
        thin.write(result(0, 0.0, np.full((*hw, 3), 90, np.uint8)))
    thin.close()
    assert [count_frames(path) for path in sorted(tmp_path.glob("c*.mp4"))] == [1, 1, 1]


def test_another_size_begins_another_file(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "a.mp4", rate=10)
    for index in range(12):
        hw = (96, 128) if index < 7 else (64, 96)
        sink.write(result(index, image=np.full((*hw, 3), 90, np.uint8)))
    sink.close()
    found = {path.name: count_frames(path) for path in tmp_path.iterdir()}
    assert found == {"a.mp4": 7, "a-0002.mp4": 5}


def test_rotation_by_time_and_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        sink = VideoSink(tmp_path / "a.mp4", rate=10, segment_s=1)
        for index in range(25):
            sink.write(result(index))
        sink.close()
    found = {path.name: count_frames(path) for path in sorted(tmp_path.iterdir())}
    assert list(found) == [f"a-000{number}.mp4" for number in range(1, 7)]
    assert list(found.values()) == [10, 10, 5] * 2


def test_rotation_by_size_keeps_to_the_total(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A program that encodes beside us is some frames behind.
    monkeypatch.setattr(recording, "_h264", lambda: "")
    rng = np.random.default_rng(0)
    sink = VideoSink(tmp_path / "a.mp4", rate=10, total_mib=4)
    most = 0
    for index in range(60):
        image = rng.integers(0, 256, (480, 640, 3), np.uint8)
        sink.write(result(index, image=image))
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    sink.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] != "a-0001.mp4"
    assert len(names) >= 3
    assert all(count_frames(tmp_path / name) for name in names)
    assert 2 << 20 < most <= 4 << 20


def test_several_sources_share_the_total_of_their_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A program that encodes beside us is some frames behind.
    monkeypatch.setattr(recording, "_h264", lambda: "")
    rng = np.random.default_rng(0)
    outputs = Outputs(record=tmp_path / "a.mp4", record_total_mib=8)
    sources = [Held(pictures(1)), Held(pictures(1))]
    workers = start_sinks(outputs, (), sources, lambda text: None, threading.Event())
    most = 0
    for index in range(60):
        image = rng.integers(0, 256, (480, 640, 3), np.uint8)
        for worker in workers:
            worker.sink.write(result(index, image=image))
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    for worker in workers:
        worker.close()
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"a-s0-", "a-s1-"}
    assert 4 << 20 < most <= 8 << 20


def test_a_full_disk_ends_the_recording_in_a_file_that_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The reserve of so small a disk holds no frames of a program that is some frames behind.
    monkeypatch.setattr(recording, "_h264", lambda: "")
    rng = np.random.default_rng(0)
    with small_disk(tmp_path / "disk", 2) as disk:
        said: list[str] = []
        worker = SinkWorker(VideoSink(disk / "a.mp4", rate=10), said.append, wait=True)
        for index in range(120):
            image = rng.integers(0, 256, (240, 320, 3), np.uint8)
            worker.offer(result(index, image=image))
        worker.close()
        assert [path.name for path in disk.iterdir()] == ["a.mp4"]
        played = count_frames(disk / "a.mp4")
    assert 5 < played < 120
    assert len(said) == 1
    assert "the disk is full but for a reserve" in said[0]
    assert worker.dropped > 0


def test_a_file_without_an_index_is_told_from_one_with(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "a.mp4", rate=10)
    for index in range(10):
        sink.write(result(index))
    sink.close()
    data = (tmp_path / "a.mp4").read_bytes()
    assert has_index(tmp_path / "a.mp4")
    for length in (0, 7, 40, len(data) // 2, len(data) - 1):
        (tmp_path / "b.mp4").write_bytes(data[:length])
        assert not has_index(tmp_path / "b.mp4")
    assert not has_index(tmp_path / "none.mp4")


def test_pictures_keep_to_their_interval_and_their_number(tmp_path: Path) -> None:
    sink = PictureSink(tmp_path / "p", every_s=1.0, limit=4)
    for index in range(80):
        sink.write(result(index, index / 10))
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert [int(name.split("-")[-1][:-4]) for name in names] == [40, 50, 60, 70]
    image = cv2.imread(str(tmp_path / "p" / names[0]))
    assert image.shape == (240, 320, 3)


def test_without_windows_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if not why_no_window():
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(CameraError, match="--headless"):
        WindowSink(threading.Event())


def test_two_apps_do_not_record_to_one_name(tmp_path: Path) -> None:
    said: list[str] = []
    first = VideoSink(tmp_path / "a.mp4", rate=10, say=said.append)
    second = SinkWorker(VideoSink(tmp_path / "a.mp4", rate=10, say=said.append), said.append)
    first.write(result(0))
    second.offer(result(1))
    wait_for(lambda: second.error)
    assert "another app is recording to this name" in second.error
    for index in range(1, 12):
        first.write(result(index))
    second.close()
    first.close()
    assert count_frames(tmp_path / "a.mp4") == 12
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    # What a killed app left behind holds nobody up.
    (tmp_path / "a.part.mp4").write_bytes(b"half")
    third = VideoSink(tmp_path / "a.mp4", rate=10, say=said.append)
    third.write(result(0))
    third.close()
    assert count_frames(tmp_path / "a.mp4") == 1


def test_numbered_recordings_of_two_apps_lie_side_by_side(tmp_path: Path) -> None:
    sinks = [VideoSink(tmp_path / "a.mp4", rate=10, segment_s=1) for _ in range(2)]
    for index in range(25):
        for sink in sinks:
            sink.write(result(index))
    for sink in sinks:
        sink.close()
    found = {path.name: count_frames(path) for path in sorted(tmp_path.iterdir())}
    assert len(found) == 6 and sum(found.values()) == 50


def test_an_input_is_not_recorded_over(tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", pictures(5))
    before = (tmp_path / "in.mp4").read_bytes()
    with protect([tmp_path / "in.mp4"]):
        for sink in (VideoSink(tmp_path / "in.mp4", rate=10), EventSink(tmp_path / "in.mp4")):
            with pytest.raises(ArtifactError, match="is an input of this command"):
                sink.write(result(0))
            sink.close()
    assert (tmp_path / "in.mp4").read_bytes() == before


def test_without_an_encoder_of_h264_the_app_says_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("apps.camera.recording._h264", lambda: "")
    sink = VideoSink(tmp_path / "a.mp4", rate=10, segment_s=1, say=said.append)
    for index in range(25):
        sink.write(result(index))
    sink.close()
    assert len(said) == 1 and "MPEG-4 part 2, which browsers do not play" in said[0]
    assert codec(tmp_path / "a-0001.mp4") == "FMP4"


def codec(path: Path) -> str:
    capture = cv2.VideoCapture(str(path))
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    capture.release()
    return code.to_bytes(4, "little").decode()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg program is here")
def test_the_ffmpeg_program_writes_h264(tmp_path: Path) -> None:
    recording._h264.cache_clear()
    how = recording._h264()
    assert how.startswith(("ffmpeg:", "opencv:", "gstreamer:"))
    said: list[str] = []
    sink = VideoSink(tmp_path / "a b.mp4", rate=12.5, say=said.append)
    for index in range(30):
        sink.write(result(index))
    sink.close()
    assert "H.264" in said[0]
    assert codec(tmp_path / "a b.mp4") in ("h264", "avc1", "H264")
    assert count_frames(tmp_path / "a b.mp4") == 30
    image = cv2.VideoCapture(str(tmp_path / "a b.mp4")).read()[1]
    assert np.abs(image.astype(int) - result(0).picture()).mean() < 12


def test_an_encoder_that_fails_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho libx264\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(recording, "_encoders", lambda: iter(["ffmpeg:libx264", "opencv:mp4v"]))
    recording._h264.cache_clear()
    assert recording._h264() == "opencv:mp4v"
    recording._h264.cache_clear()
