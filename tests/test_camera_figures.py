"""A suite's camera figures come from the app's own loop, and its margins fail what exceeds them."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.regress.camera_rounds import film
from apps.regress.gates import judge_all
from apps.regress.measurement import read_measurements
from apps.regress.run import Outcome, regress
from apps.regress.suite import read_suite
from edge.errors import CameraError, DataError
from edge.runtime.detector import Detector
from tests.support.painted import write_painted, write_pictures

SUITE = """schema = 1
data = "set"
source = "set/images"
camera_seconds = 3
seconds = 0.1
rounds = 2
threads = 1
[[artifact]]
name = "one"
path = "one.onnx"
[artifact.margins]
frame_age_p99 = 5000
camera_fps = 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("camera")
    write_pictures(folder / "set")
    write_painted(folder / "one.onnx")
    (folder / "s.toml").write_text(SUITE)
    return folder, regress(folder / "s.toml", update=True, report=folder / "out")


def test_figures_follow_from_the_recorded_rounds(made: tuple[Path, Outcome]) -> None:
    folder, outcome = made
    one = read_measurements(folder / "s.jsonl")[0]
    camera = one.camera
    assert camera is not None
    every = [age for block in camera.age_ms for age in block]
    for name, percent in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert one.frame_age_ms[name] == pytest.approx(np.percentile(every, percent))
    assert one.fps["camera"] == pytest.approx(np.median(camera.fps))
    assert (camera.source, camera.nominal_fps) == ("images", 30)
    for kind in ("", "paced_"):
        rates = [1e6 / np.mean(gaps) for gaps in getattr(camera, f"{kind}gaps_us")]
        assert getattr(camera, f"{kind}fps") == pytest.approx(rates)
    assert {len(each) for each in vars(camera).values() if isinstance(each, list)} == {10}
    # Ten rounds of 0.3 s at 30 a second, and 40 pictures are over sooner at full speed.
    assert 10 <= len(every) <= 95
    assert one.fps["camera"] > max(camera.paced_fps)
    assert {gate.name: gate.verdict for gate in outcome.gates} == {
        "frame_age_p99": "same",
        "camera_fps": "same",
    }


def test_report_shows_them(made: tuple[Path, Outcome]) -> None:
    text = (made[0] / "out" / "report.html").read_text()
    for words in (
        "Camera, stored below",
        "age p99 ms",
        "Frame age, images",
        'aria-label="frame age"',
    ):
        assert words in text


def test_what_exceeds_a_margin_is_worse_and_what_is_near_it_cannot_be_told(
    made: tuple[Path, Outcome],
) -> None:
    folder, outcome = made
    rng = np.random.default_rng(0)
    blocks = [rng.lognormal(3, 0.2, 40).tolist() for _ in range(10)]
    p99 = float(np.percentile(np.concatenate(blocks), 99))
    camera = replace(outcome.gathered.measurements["one"].camera, age_ms=blocks)
    camera = replace(camera, fps=[50.0, 51, 49, 50, 52, 48, 50, 51, 49, 50])
    now = replace(outcome.gathered.measurements["one"], camera=camera, warnings=[])

    def verdicts(age: float, fps: float, warnings: tuple[str, ...] = ()) -> list[str]:
        suite = read_suite(folder / "s.toml")
        entry = suite.entries[0]
        margins = replace(entry.margins, frame_age_p99=age, camera_fps=fps)
        suite = replace(suite, entries=(replace(entry, margins=margins),))
        measured = {"one": replace(now, warnings=list(warnings))}
        gathered = replace(outcome.gathered, measurements=measured)
        gates = judge_all(suite, gathered, {})
        assert f"{p99:.1f} ms" in gates[0].text
        assert "50.0 frames a second of images" in gates[1].text
        return [gate.verdict for gate in gates]

    assert verdicts(p99 * 2, 40) == ["same", "same"]
    assert verdicts(p99 / 2, 60) == ["worse", "worse"]
    assert verdicts(p99 * 1.01, 50) == ["cannot tell", "cannot tell"]
    assert verdicts(p99 / 2, 60, ("other work",)) == ["cannot tell", "cannot tell"]


def test_a_slow_detector_drops_frames_of_its_source_and_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.regress.camera_rounds._ROUNDS", 3)
    write_pictures(tmp_path / "set", 8)
    with Detector.open(write_painted(tmp_path / "a.onnx"), threads=1) as detector:
        run = detector.run
        pause = threading.Event()
        detector.run = lambda prepared: (pause.wait(0.1), run(prepared))[1]
        one = film({Path("a"): detector}, str(tmp_path / "set" / "images"), 1.5)[Path("a")]
    assert max(one.paced_fps) < 12
    assert sum(one.dropped) >= 5
    assert one.ages()["p50"] >= 100


def test_sources_that_cannot_be_filmed_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with Detector.open(write_painted(tmp_path / "a.onnx"), threads=1) as detector:
        for source, error, words in (
            (str(tmp_path / "x.mp4"), CameraError, r"x\.mp4: not a video"),
            ("scenes://?fast=1", DataError, "has no pace"),
        ):
            with pytest.raises(error, match=words):
                film({Path("a"): detector}, source, 1.0)
    assert not [one for one in threading.enumerate() if one.name.startswith("capture")]


def test_a_suite_without_a_source_runs_no_camera(made: tuple[Path, Outcome]) -> None:
    folder, _ = made
    text = SUITE.replace('source = "set/images"\n', "")
    (folder / "plain.toml").write_text(text)
    with pytest.raises(DataError, match=r"frame_age_p99.*needs a source of the suite"):
        read_suite(folder / "plain.toml")
    text = text.replace("frame_age_p99 = 5000\ncamera_fps = 1", "p99_ms = 5000")
    (folder / "plain.toml").write_text(text)
    one = regress(folder / "plain.toml").gathered.measurements["one"]
    assert (one.camera, one.frame_age_ms) == (None, None)
    assert set(one.fps) == {"engine", "pipeline"}
    assert "camera" in json.loads(one.to_json())


def test_rounds_too_short_for_two_frames_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "set", 2)
    with Detector.open(write_painted(tmp_path / "a.onnx"), threads=1) as detector:
        monkeypatch.setattr("apps.regress.camera_rounds._ROUNDS", 1)
        with pytest.raises(
            CameraError, match=r"[01] frames in a round of 0\.0 s; raise camera_seconds"
        ):
            film({Path("a"): detector}, str(tmp_path / "set" / "images"), 1e-9)
