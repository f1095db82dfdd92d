"""The engine beside the rest: nothing is lost or mixed up, and nobody waits who need not."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from apps.camera import app
from apps.camera.app import built_in
from apps.camera.loop import Overlap
from apps.camera.result import Result
from edge.artifact import read_manifest
from edge.edgez.graph import split_graph
from edge.edgez.package import write_package
from edge.errors import ArtifactError
from edge.runtime.backend_ort import OrtBackend
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import Preprocessor
from edge.video.frame import Frame
from tests.support.camera_parts import Held, pictures, run_camera
from tests.support.small_models import write_small


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    write_small(path)
    return path


def slower(monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, seconds: float) -> None:
    plain = getattr(kind, name)

    def slow(self: Any, *args: Any) -> Any:
        time.sleep(seconds)
        return plain(self, *args)

    monkeypatch.setattr(kind, name, slow)


@pytest.mark.parametrize("lanes", [1, 3])
def test_what_comes_out_is_what_the_detector_says_in_the_same_order(
    artifact: Path, lanes: int
) -> None:
    images = [*pictures(4, (96, 128)), *pictures(4, (64, 200)), *pictures(4, (96, 128))]
    frames = [Frame(image, time.monotonic(), index) for index, image in enumerate(images)]
    found = []
    with Detector.open(artifact, score=0.01, threads=1) as detector:
        with Overlap(detector, lanes) as overlap:
            for frame in frames:
                if overlap.full:
                    with pytest.raises(ValueError, match=f"{lanes + 1} frames are waiting"):
                        overlap.give(0, frame)
                    found.append(overlap.take(5))
                overlap.give(frame.index % 3, frame)
            while overlap.waiting:
                found.append(overlap.take())
        assert [one.frame.index for one in found if one] == list(range(12))
        assert [one.source for one in found if one] == [i % 3 for i in range(12)]
        for one in found:
            assert one is not None
            wanted = detector(one.frame.image)
            assert len(wanted) and np.array_equal(one.detections.xyxy, wanted.xyxy)
            assert np.array_equal(one.detections.score, wanted.score)


class Keeps:
    """A sink that notes which frames came."""

    name, pictures, newest, depth = "keeps", False, False, 100

    def __init__(self, seen: list[int]) -> None:
        self._seen = seen

    def write(self, result: Result) -> None:
        self._seen.append(result.frame.index)

    def close(self) -> None: ...


def test_frames_are_prepared_while_the_engine_runs(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower(monkeypatch, OrtBackend, "run", 0.05)
    slower(monkeypatch, Preprocessor, "__call__", 0.03)
    stats = run_camera(artifact, [Held(pictures(4), count=20)], threads=1)
    assert stats.frames == 20
    # 80 ms one after the other, 50 side by side; the rest is for a busy machine.
    assert stats.fps > 1 / 0.072


def test_of_a_file_each_core_takes_a_frame_of_its_own(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower(monkeypatch, OrtBackend, "run", 0.1)
    seen: list[int] = []
    sinks = [Keeps(seen)]
    stats = run_camera(artifact, [Held(pictures(4), count=24)], sinks=sinks, threads=4)
    assert seen == list(range(24)) and stats.dropped == 0
    assert stats.backend.endswith("CPU, 1 threads, 4 frames at once")
    # 10 a second one after the other, 40 side by side; the rest is for a busy machine.
    assert stats.fps > 25


def test_of_a_camera_all_cores_work_on_one_frame(artifact: Path) -> None:
    stats = run_camera(artifact, [Held(pictures(4), fps=50)], threads=2, frames=5)
    assert stats.backend.endswith("CPU, 2 threads")


def test_beside_a_baseline_a_file_has_one_frame_in_the_engine(artifact: Path) -> None:
    held = Held(pictures(4), count=5)
    stats = run_camera(artifact, [held], baseline=artifact, threads=2)
    assert stats.backend.endswith("CPU, 2 threads") and stats.baseline.frames > 0


def test_of_a_camera_the_frame_is_prepared_just_in_time(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower(monkeypatch, OrtBackend, "run", 0.08)
    stats = run_camera(artifact, [Held(pictures(4), fps=100)], threads=1, seconds=3)
    # One interval of 10 ms and one inference; prepared at once it would be two inferences.
    assert 80 <= stats.frame_age_ms["p50"] < 125
    assert stats.frames > 20


def test_an_engine_that_fails_ends_the_run_with_its_own_error(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls, before = OrtBackend.run, [0], sys.getswitchinterval()

    def run(self: OrtBackend, tensor: np.ndarray) -> list[np.ndarray]:
        calls[0] += 1
        if calls[0] == 5:
            raise RuntimeError("the engine has failed")
        return plain(self, tensor)

    monkeypatch.setattr(OrtBackend, "run", run)
    with pytest.raises(RuntimeError, match="the engine has failed"):
        run_camera(artifact, [Held(pictures(4), count=20)], threads=1)
    assert sys.getswitchinterval() == before
    assert not [one for one in threading.enumerate() if one.name.startswith("engine")]


def test_the_built_in_detector_fits_what_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "assets", type("Assets", (), {"__file__": tmp_path / "__init__.py"}))
    with pytest.raises(ArtifactError, match="no detector is built in"):
        built_in()
    write_small(tmp_path / "tiny-yolo-scenes.onnx")
    assert built_in(photos=True) == built_in() == tmp_path / "tiny-yolo-scenes.onnx"
    run_camera(None, [Held(pictures(2), count=2)], threads=1)
    assert "no ARTIFACT: tiny-yolo-scenes (trained on the built-in" in capsys.readouterr().err
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    _pack(tmp_path / "squeezedet-photo.edgez", tmp_path / "tiny-yolo-scenes.onnx")
    run_camera(None, [Held(pictures(2), count=2)], threads=1)
    assert "no ARTIFACT: squeezedet-photo\n" in capsys.readouterr().err
    (unfolded,) = (tmp_path / "cache").rglob("*.onnx")
    written = unfolded.stat().st_mtime_ns
    assert built_in(photos=True) == unfolded and unfolded.stat().st_mtime_ns == written
    run_camera(None, [Held(pictures(2), count=2, name="scenes://?seed=1")], threads=1)
    assert "no ARTIFACT: tiny-yolo-scenes\n" in capsys.readouterr().err


def _pack(target: Path, source: Path) -> None:
    """The same small network as a package of the photo detector's name."""
    model, manifest = onnx.load(str(source)), read_manifest(source)
    tensors = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    tensors = {name: array for name, array in tensors.items() if name.endswith(("weight", "bias"))}
    named = replace(manifest, spec=replace(manifest.spec, name="squeezedet-photo"))
    write_package(target, named, {}, tensors, graph=split_graph(model, tensors), half=False)
