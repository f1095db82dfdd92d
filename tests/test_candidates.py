"""Frames to choose calibration images from: bounded on the disk, and deleted however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.candidates import open_candidates
from edge.errors import DataError
from edge.video import disk
from tests.conftest import ROOT

HW = (48, 64)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, HW[::-1])
    assert writer.isOpened()
    rng = np.random.default_rng(0)
    for _ in range(40):
        writer.write(rng.integers(0, 256, (*HW, 3), np.uint8))
    writer.release()
    return path


def frames_of(names: list[str]) -> list[int]:
    return [int(name.partition(".")[0]) for name in names]


def test_frames_fit_into_the_bytes_and_are_evenly_spread(video: Path, tmp_path: Path) -> None:
    size = len(cv2.imencode(".png", cv2.VideoCapture(str(video)).read()[1])[1])
    with open_candidates(video, 100, tmp_path / "chosen", int(size * 12.5)) as dataset:
        files = [item.image for item in dataset.items]
        assert sum(path.stat().st_size for path in files) <= size * 12.5
        assert sorted(files[0].parent.iterdir()) == files
        assert files[0].parent.parent == tmp_path
        assert frames_of([path.name for path in files]) == list(range(0, 40, 4))
    assert list(tmp_path.iterdir()) == [video]


def test_no_more_than_so_many_frames_are_kept(video: Path, tmp_path: Path) -> None:
    with open_candidates(video, 15, tmp_path / "chosen") as dataset:
        names = [item.image.name for item in dataset.items]
    assert len(names) <= 15 and len(set(np.diff(frames_of(names)))) == 1
    assert frames_of(names)[-1] > 30


def test_a_full_disk_is_one_line_and_nothing_stays(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        disk.shutil, "disk_usage", lambda _: type("", (), {"free": 1, "total": 2**40})
    )
    with (
        pytest.raises(DataError, match=r"\.frames-.*the disk is full"),
        open_candidates(video, 15, tmp_path / "chosen"),
    ):
        pass
    assert list(tmp_path.iterdir()) == [video]


WAIT = """
import sys, time
from calibration.candidates import open_candidates
with open_candidates(sys.argv[1], 10, sys.argv[2]) as dataset:
    print(len(dataset), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_end_in_the_middle_deletes_the_frames(
    video: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", WAIT, str(video), str(tmp_path / "chosen")]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run under nohup hands its ignored signals down.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "10"
        assert len([path for path in tmp_path.iterdir() if path.name.startswith(".frames-")]) == 1
        child.send_signal(number)
        assert child.wait(timeout=30) != 0
    assert list(tmp_path.iterdir()) == [video]
