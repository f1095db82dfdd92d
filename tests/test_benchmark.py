"""`bench` measures what passes, interleaved, against a baseline of the same run."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import edge.runtime.detector
from apps.commands import bench as bench_arguments
from apps.commands.bench import print_bench, print_rebuilds
from edge.errors import ArtifactError, DataError
from edge.files import to_plain, write_json
from edge.measure.bench import BenchOptions, LayerTime, bench
from edge.measure.frames import hold_frames
from edge.measure.turns import affinity, open_runner, take_turns_until, warm_up
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec
from export.engine.rebuilds import rebuild
from tests.support.painted import write_painted

CALLS: list[str] = []


class Timed:
    """A network that takes as many milliseconds as its file's name says."""

    on_device = False
    name = "fake"

    def __init__(self, path: Path, **options: object) -> None:
        self.path, self.options = path, options
        contract = InputContract((64, 96), "stretch")
        spec = ModelSpec(
            path.stem,
            "darknet",
            ("cat",),
            contract,
            (HeadSpec.of_grid("head", "yolo", (2, 3), ((9, 9),)),),
        )
        sides = (TensorSpec("image", (1, 3, 64, 96)),), (TensorSpec("head", (1, 6, 2, 3)),)
        labels = ("random weights",) if path.stem.endswith("r") else ()
        self.manifest = Manifest(spec, "int8", *sides, labels=labels)

    def run(self, tensor: np.ndarray) -> list[np.ndarray]:
        assert tensor.shape == (1, 3, 64, 96)
        CALLS.append(self.path.stem)
        time.sleep(float(self.path.stem.strip("r")) / 1e3)
        return [np.full((1, 6, 2, 3), -9, np.float32)]

    def close(self) -> None:
        CALLS.append("closed")

    def __enter__(self) -> Timed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    CALLS.clear()
    monkeypatch.setattr(edge.runtime.detector, "open_backend", Timed)
    paths = [tmp_path / "3.onnx", tmp_path / "9r.onnx"]
    for path, size in zip(paths, (100, 2000), strict=True):
        path.write_bytes(b"x" * size)
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.full((48, 64, 3), i, np.uint8))
    return tmp_path / "images"


def test_rows_hold_what_was_measured(models: list[Path], folder: Path, tmp_path: Path) -> None:
    before = cv2.getNumThreads()
    options = BenchOptions(baseline=models[1], source=folder, frames=20, threads=1)
    result = bench(models[:1], options)
    assert cv2.getNumThreads() == before
    slow, fast = result.rows
    assert (slow.label, fast.label) == (
        "9r 96x64 int8 (random weights)",
        "3 96x64 int8",
    )
    assert (slow.speedup, slow.bytes, fast.bytes) == (1, 2000, 100)
    assert fast.speedup == pytest.approx(fast.fps_pipeline / slow.fps_pipeline)
    for row, ms in ((slow, 9), (fast, 3)):
        assert row.frames == 20
        assert 0 < row.fps_engine < 1e3 / ms
        assert row.fps_pipeline <= 1e3 / ms
        assert ms <= row.latency_ms["p50"] <= row.latency_ms["p95"]
        assert row.latency_ms["p95"] <= row.latency_ms["p99"]
        assert list(row.stages_ms) == ["decode_file", "preprocess", "engine", "decode", "nms"]
        assert row.stages_ms["engine"] >= ms
        assert row.stages_ms["decode_file"] > 0
    write_json(result, tmp_path / "b.json")
    written = json.loads((tmp_path / "b.json").read_text())
    assert written == to_plain(result) and "comparison" not in written
    assert not any("layers" in row for row in written["rows"])


def test_contestants_take_turns(models: list[Path], folder: Path) -> None:
    bench(models, BenchOptions(source=folder, frames=20))
    calls = [name for name in CALLS if name != "closed"]
    assert CALLS.count("closed") == 2
    runs = [0]
    for i in range(1, len(calls)):
        runs = [*runs[:-1], runs[-1] + 1] if calls[i] == calls[i - 1] else [*runs, 0]
    # Ten rounds; the order turns round each time, so that two neighbouring blocks join. Each
    # contestant's warm-up comes before them and lasts until its times are steady.
    assert len(runs) >= 11
    assert max(runs[4:]) <= 15


def test_seconds_bound_the_measurement(models: list[Path], folder: Path) -> None:
    row = bench(models[:1], BenchOptions(source=folder, seconds=0.4)).rows[0]
    assert 20 <= row.frames <= 100


def test_an_artifact_that_is_the_baseline_too_is_measured_once(
    models: list[Path], folder: Path
) -> None:
    rows = bench(models, BenchOptions(baseline=models[1], source=folder, frames=10)).rows
    assert [Path(row.artifact) for row in rows] == models[::-1]


def test_table_names_host_and_labels(
    models: list[Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench(models, BenchOptions(source=folder, frames=10))
    print_bench(result)
    printed = capsys.readouterr().out
    host = result.host
    for words in (host["cpu"], f"{host['cores']} cores", "random weights", "1.00x", "decode_file"):
        assert words in printed
    assert host["packages"]["numpy"] == np.__version__


def test_layers_of_an_onnx_file_are_onnxruntimes_nodes_by_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_painted(tmp_path / "wide.onnx", work=64)
    result = bench([path], BenchOptions(frames=4, rounds=2, threads=1, layers=True))
    row = result.rows[0]
    assert row.layers is not None
    times = [one.ms for one in row.layers]
    assert times == sorted(times, reverse=True)
    assert min(times) >= 0
    assert sum(one.share for one in row.layers) == pytest.approx(1)
    assert row.layers[0].share == pytest.approx(times[0] / sum(times))
    # The two wide convolutions are nearly all of this network.
    slowest = {one.name for one in row.layers[:2]}
    assert all(name.startswith("extra.") for name in slowest)
    assert sum(times) < 20 * max(row.stages_ms["engine"], 1)
    print_bench(result)
    printed = capsys.readouterr().out
    assert f"{len(times)} layers" in printed
    assert row.layers[0].name in printed
    plain = bench([path], BenchOptions(frames=2, rounds=2, threads=1)).rows[0]
    assert plain.layers is None and "layers" not in plain.to_json()


def test_layers_of_an_engine_are_its_own(models: list[Path], folder: Path) -> None:
    times = [("conv", 0.5), ("head", 1.5)]
    Timed.layer_times = lambda self, runs: times  # type: ignore[attr-defined]
    try:
        row = bench(models[:1], BenchOptions(source=folder, frames=2, rounds=2, layers=True)).rows[
            0
        ]
    finally:
        del Timed.layer_times  # type: ignore[attr-defined]
    assert row.layers == (LayerTime("head", 1.5, 0.75), LayerTime("conv", 0.5, 0.25))


def test_joules_of_a_frame_are_shown_where_they_are_counted(
    models: list[Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextmanager
    def counted() -> Iterator[list[float]]:
        spent: list[float] = []
        yield spent
        spent.append(0.25 * 2)

    print_bench(bench(models[:1], BenchOptions(source=folder, frames=4, rounds=2)))
    monkeypatch.setattr("edge.measure.turns.spent_energy", counted)
    result = bench(models[:1], BenchOptions(source=folder, frames=4, rounds=2))
    # Two frames a block.
    assert result.rows[0].energy_j == pytest.approx(0.25)
    print_bench(result)
    assert capsys.readouterr().out.count("J / frame") == 1


def test_wrong_arguments_are_refused(models: list[Path], folder: Path) -> None:
    for options in ({"seconds": 0}, {"frames": 0}):
        with pytest.raises(ValueError, match="positive"):
            bench(models, BenchOptions(source=folder, **options))
    with pytest.raises(ValueError, match="at least one"):
        bench([])


def test_world_frames_are_720p_and_not_decoded() -> None:
    frames, decode_ms = hold_frames(None, 2)
    assert [frame.shape for frame in frames] == [(720, 1280, 3)] * 2
    assert decode_ms == []
    assert (frames[0] != frames[1]).any()


def test_folder_image_and_video_are_decoded_and_timed(folder: Path, edge_data: Path) -> None:
    video = edge_data / "video" / "car-detection.mp4"
    for source, count, hw in (
        (folder, 3, (48, 64)),
        (folder / "1.png", 1, (48, 64)),
        (video, 5, (432, 768)),
    ):
        frames, decode_ms = hold_frames(source, 5)
        assert [frame.shape[:2] for frame in frames] == [hw] * count
        assert len(decode_ms) == count
        assert min(decode_ms) > 0
    capture = cv2.VideoCapture(str(video))
    np.testing.assert_array_equal(hold_frames(video, 1)[0][0], capture.read()[1])


def test_source_that_holds_no_frames_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    for source, words in ((tmp_path / "none", "no such"), (tmp_path / "x.mp4", "neither")):
        with pytest.raises(DataError, match=words) as error:
            hold_frames(source, 1)
        assert str(source) in str(error.value)


def test_intervals_hold_the_figures_they_belong_to(models: list[Path], folder: Path) -> None:
    slow, fast = bench(models, BenchOptions(baseline=models[1], source=folder, frames=30)).rows
    for row in (slow, fast):
        for name in ("p50", "p95", "p99"):
            low, high = row.interval_ms[name]
            assert low <= row.latency_ms[name] <= high
        assert len(row.rounds_ms["pipeline"]) == len(row.rounds_ms["engine"]) == 10
    low, high = fast.speedup_interval
    assert low <= fast.speedup * 1.2
    assert high >= fast.speedup / 1.2
    # Asleep four times as long: loaded or not, it is not the faster one.
    assert low > 1


def test_warm_up_ends_when_times_have_settled(models: list[Path]) -> None:
    held = [np.zeros((48, 64, 3), np.uint8)]
    runner = open_runner(models[0], held[0], 1)
    CALLS.clear()
    once = warm_up(runner, held)
    assert 8 <= len(CALLS) <= 40
    assert once >= 3
    wait = iter([0.1, 0.08, 0.06, 0.04, 0.02, 0.01, *[0.005] * 100])
    runner.detector.backend.run = lambda tensor: (  # type: ignore[method-assign]
        time.sleep(next(wait)),
        [np.full((1, 6, 2, 3), -9, np.float32)],
    )[1]
    assert warm_up(runner, held) < 20


def test_process_stays_on_the_cores_it_is_given() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    with affinity([one]):
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match="4096"), affinity([4096]):
        pass
    with pytest.raises(DataError, match=r"--cores.*4096"):
        bench(["x.onnx"], BenchOptions(cores=(4096,)))


def command(*argv: object) -> int:
    parser = argparse.ArgumentParser()
    bench_arguments.arguments(parser)
    return bench_arguments.run(parser.parse_args([str(arg) for arg in argv]))


def test_an_artifact_alone_is_not_compared_and_told_so(
    models: list[Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b.json"
    options = ("--source", folder, "--seconds", 0.2, "--rounds", 2)
    assert command(models[0], *options, "--json", path) == 0
    assert command(models[0], *options, "--compare", path) == 0
    assert "NOT COMPARED  3 96x64 int8: it takes a second artifact" in capsys.readouterr().err


def test_an_earlier_run_is_compared_by_its_ratios(
    models: list[Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    path = tmp_path / "b.json"
    options = ("--baseline", models[1], "--source", folder, "--seconds", 0.4, "--rounds", 12)
    assert command(models[0], *options, "--json", path) == 0
    data = json.loads(path.read_text())
    row = data["rows"][1]
    row["rounds_ms"]["pipeline"] = [ms / 9 for ms in row["rounds_ms"]["pipeline"]]
    path.write_text(json.dumps(data))
    assert command(models[0], *options, "--compare", path) == 1
    assert "WORSE  3 96x64 int8: latency +" in capsys.readouterr().err
    monkeypatch.setattr("os.getloadavg", lambda: (4096.0, 0.0, 0.0))
    assert command(models[0], *options, "--compare", path) == 0
    assert "CANNOT TELL  3 96x64 int8: latency +" in capsys.readouterr().err
    data["host"]["cpu"] = "Z80"
    path.write_text(json.dumps(data))
    assert command(models[0], *options, "--compare", path) == 0
    assert "NOT COMPARED  3 96x64 int8: cpu was Z80" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{}]}', '{"rows": []}'])
def test_what_is_no_earlier_run_is_refused(
    models: list[Path], folder: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(DataError, match=r"b\.json: not a result"):
        bench(models, BenchOptions(source=folder, frames=2, compare=tmp_path / "b.json"))


def test_rebuilds_show_how_far_builds_lie_apart(
    models: list[Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(source: Path, target: Path) -> SimpleNamespace:
        # The fake network takes as many milliseconds as the file's name says: 3.0, 3.1, 3.2.
        target.write_bytes(b"x" * (100 + int(target.stem[-1])))
        return SimpleNamespace(seconds=1.0)

    result = rebuild(models[0], 3, build=build, options=BenchOptions(source=folder, frames=20))
    assert [one.bytes for one in result.builds] == [100, 101, 102]
    assert len({one.sha256 for one in result.builds}) == 3
    spread = result.spread["p50_ms"]
    assert 3 <= spread.lowest <= spread.median <= spread.highest
    assert spread.apart == pytest.approx((spread.highest - spread.lowest) / spread.median)
    print_rebuilds(result)
    assert "3 builds" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match="count from 2"):
        rebuild(models[0], 1)
    with pytest.raises(DataError, match="without --baseline"):
        command(models[0], models[1], "--rebuilds", 2)


@pytest.mark.parametrize(("enough", "rounds"), [(1, 4), (2, 8), (99, 12)])
def test_a_run_goes_on_until_it_is_sure_enough(
    models: list[Path], enough: int, rounds: int
) -> None:
    held = [np.zeros((48, 64, 3), np.uint8)]
    runners = [open_runner(path, held[0], 1) for path in models]
    asked: list[int] = []

    def sure() -> bool:
        asked.append(1)
        return len(asked) >= enough

    take_turns_until(sure, runners, held, 4, 3)
    assert [len(runner.latency_ms) for runner in runners] == [rounds] * 2


def test_every_runner_follows_every_other(models: list[Path]) -> None:
    held = [np.zeros((48, 64, 3), np.uint8)]
    runners = [open_runner(path, held[0], 1) for path in models]
    for runner in runners:
        runner.whole = True
    CALLS.clear()
    take_turns_until(lambda: True, runners, held, 20, 2)
    # Blocks of two calls: one that does not count, one that does.
    blocks = CALLS[::2]
    assert blocks == CALLS[1::2]
    assert set(pairwise(blocks)) == {(a, b) for a in ("3", "9r") for b in ("3", "9r")}
