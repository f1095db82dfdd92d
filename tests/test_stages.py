"""Stages of smaller networks: times on a machine that others use too, files when it goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.cli import main
from edge.compress.finetune import fine_tune
from edge.compress.options import FineTuneOptions
from edge.data.datasets import open_dataset
from edge.errors import CompressionError
from edge.measure import turns
from edge.measure.sensors import Watch
from edge.models.checkpoint import load_safetensors, save_safetensors
from edge.train.augment import Labelled
from edge.train.start import write_model
from export.compress.stages import StageTimes, time_stages
from export.graph.writer import write_onnx
from tests.support.painted import write_pictures
from tests.support.small_models import CFG, small
from tests.test_prune import by_bytes, pretended

torch.set_num_threads(1)
WIDE = CFG.replace("filters=16", "filters=64").replace("filters=8", "filters=32")
WIDE = WIDE.replace("groups=8", "groups=32")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    module, spec = small(WIDE)
    return write_model(module, replace(spec, classes=("cat", "dog")), tmp_path, "pets")[0]


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[float], None]:
    """A machine on which a network takes a time by its bytes, times what others leave of it."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edge.compress.channels.latency_table.time_convolution", pretended)

    def disturb(spread: float) -> None:
        rng = np.random.default_rng(0)

        def engine(runner: turns.Runner, _held: object) -> None:
            slower = float(np.exp(rng.normal(0, spread)))
            runner.engine_ms.append([runner.artifact.stat().st_size / 1e6 * slower])

        def pipeline(runner: turns.Runner, _held: object) -> None:
            runner.latency_ms.append([1.0])

        monkeypatch.setattr(turns, "_engine_block", engine)
        monkeypatch.setattr(turns, "_pipeline_block", pipeline)

    return disturb


def prune(model: Path, tmp_path: Path, options: str) -> tuple[int, dict[str, Any]]:
    data, report = write_pictures(tmp_path / "data", 4), tmp_path / "r.json"
    base = f"prune {model} --data {data} --importance l1 --no-refit"
    code = main(f"{base} {options} -o {tmp_path / 'out'} --json {report}".split())
    return code, json.loads(report.read_text()) if code == 0 else {}


def test_on_a_restless_machine_times_are_taken_until_they_are_known(
    model: Path, tmp_path: Path, busy: Callable[[float], None]
) -> None:
    busy(0.0)
    calm = prune(model, tmp_path, "--target-ms 60%")[1]
    busy(0.08)
    restless = prune(model, tmp_path, "--target-ms 60%")[1]
    assert restless["plan"] == calm["plan"]
    full, narrow = (stage["ms"] for stage in restless["stages"])
    assert narrow / full < 0.63


def test_a_machine_that_cannot_tell_writes_no_plan_and_says_so(
    model: Path,
    tmp_path: Path,
    busy: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    busy(0.8)
    for target in ("60%", "0.2"):
        assert prune(model, tmp_path, f"--target-ms {target}")[0] == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "cannot tell on this machine now" in error and "--table" in error
    assert not list((tmp_path / "out").iterdir())


def test_times_of_one_network_beside_itself_are_one_and_their_spread_is_told(
    tmp_path: Path, busy: Callable[[float], None]
) -> None:
    module, spec = small()
    write_onnx(module, spec, tmp_path / "a.onnx")
    item = open_dataset("scenes://?count=1").items[0]
    busy(0.0)
    calm = time_stages([tmp_path / "a.onnx"] * 2, item, 1, Watch())
    assert calm.ms[0] == calm.ms[1] and calm.spread == (0.0, 0.0) and calm.doubt is None
    busy(0.8)
    restless = time_stages([tmp_path / "a.onnx"] * 2, item, 1, Watch())
    assert restless.spread[1] > 0.05 and "cannot tell" in str(restless.doubt)


def test_other_work_on_the_machine_is_said_and_written(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    code, result = prune(model, tmp_path, "--ratio 0.4")
    assert code == 0 and any("other work: load 99.0" in line for line in result["warnings"])
    assert "other work: load 99.0" in capsys.readouterr().err


def test_a_network_that_ends_far_from_its_plan_is_said_to_be_uncertain(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three networks are timed at the end alone: there the full one is twice as slow as before."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edge.compress.channels.latency_table.time_convolution", pretended)

    def measured(paths: list[Path], *_: object) -> StageTimes:
        found = by_bytes(paths)
        slower = 2.0 if any("fine-tuned" in path.name for path in paths) else 1.0
        return replace(found, ms=(found.ms[0] * slower, *found.ms[1:]))

    monkeypatch.setattr("export.compress.prune.time_stages", measured)
    code, result = prune(model, tmp_path, "--target-ms 60% --fine-tune 1 --batch 2")
    assert code == 0
    [warning] = result["warnings"]
    assert "cannot tell on this machine now: the plan was measured at" in warning


def test_a_damaged_table_in_the_cache_is_measured_again(
    model: Path, tmp_path: Path, busy: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    busy(0.0)
    assert prune(model, tmp_path, "--target-ms 60%")[0] == 0
    [table] = (tmp_path / "cache" / "latency").iterdir()
    whole = json.loads(table.read_text())
    table.write_text(table.read_text()[:-100])
    assert prune(model, tmp_path, "--target-ms 60%")[0] == 0
    assert "the convolutions are timed again" in capsys.readouterr().err
    assert json.loads(table.read_text())["rows"] == whole["rows"]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "apps.cli", *map(str, words)]


def test_a_killed_run_leaves_nothing_in_its_folder(model: Path, tmp_path: Path) -> None:
    data, out = write_pictures(tmp_path / "data", 4), tmp_path / "out"
    words = ("prune", model, "--data", data, "--ratio", "0.4", "--importance", "l1")
    tuning = ("--no-refit", "--fine-tune", "1000000", "--batch", "1", "-o", out)
    (tmp_path / "scratch").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    with subprocess.Popen(command(*words, *tuning), env=environment) as running:
        try:
            until = time.monotonic() + 60
            while not list(tmp_path.rglob("pruned.onnx")) and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("pruned.onnx")) and list(out.iterdir()) == []


def test_a_full_disk_ends_in_one_line_and_keeps_the_package_that_was_there(
    model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "s.edgez"
    target.write_bytes(b"of yesterday")
    for words in (("share", model), ("compress", model)):
        limited = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *command(*words, "-o", target)]
        done = subprocess.run(limited, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr and "cannot be written" in done.stderr
        assert target.read_bytes() == b"of yesterday"
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "words",
    [
        "share {cfg} -o {cfg}",
        "share {cfg} -o {weights}",
        "compress {cfg} -o {cfg}",
        "share {pack} -o {pack}",
        "compress {pack} -o {pack}",
        "compress {pack} --noise-db 20 -o {pack}",
        "compress {pruned} -o {stem}.edgez",
        "compress {cfg} --begin {pruned} -o {stem}.edgez",
        "prune {cfg} --data {data} --ratio 0.4 --name pets -o {folder}",
        "dissect {cfg} --data {data} --classes class0 --name pets -o {folder}",
        "share {cfg} --json {cfg} -o {stem}.edgez",
        "prune {cfg} --data {data} --plan {plan} --name old -o {folder}",
    ],
)
def test_no_output_replaces_an_input(
    model: Path, tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, spec = load_safetensors(model)
    files = {
        "cfg": tmp_path / "pets.cfg",
        "weights": tmp_path / "pets.weights",
        "pack": tmp_path / "old.edgez",
        "pruned": tmp_path / "old.pruned.safetensors",
        "plan": tmp_path / "old.plan.json",
    }
    assert main(["share", str(files["cfg"]), "-o", str(files["pack"])]) == 0
    save_safetensors(module, files["pruned"], spec)
    files["plan"].write_text('{"schema": 1, "model": "pets", "widths": {}, "kept": {}}')
    data = write_pictures(tmp_path / "data", 4)
    before = {path: path.read_bytes() for path in files.values()}
    capsys.readouterr()
    text = words.format(**files, stem=tmp_path / "old", folder=tmp_path, data=data)
    assert main(text.split()) == 2
    error = capsys.readouterr().err.strip()
    assert "is an input of this command" in error or "is called NAME.edgez" in error
    assert {path: path.read_bytes() for path in files.values()} == before


def test_a_loss_that_is_no_number_ends_in_one_line(model: Path) -> None:
    module, spec = load_safetensors(model)
    picture = Labelled(np.zeros((*spec.contract.hw, 3), np.uint8), np.empty((0, 5), "f4"))
    options = FineTuneOptions(steps=50, batch=1, peak=1e12)
    with pytest.raises(CompressionError, match=r"pets: training failed: .*--peak below 1e\+12"):
        fine_tune(module, spec, [picture], options, module, lambda _: None)
