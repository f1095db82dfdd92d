"""The tool that tries the gates: its short cuts change nothing, and it goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edge.data.items import Dataset
from edge.detections import Detections
from edge.errors import DataError
from edge.measure.accuracy import detect, labelled
from tests.support.painted import CLASSES, write_painted, write_pictures
from tests.test_statistics import NAMES, world

TOOLS = Path(__file__).resolve().parent.parent / "tools" / "gates"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))

    def load(name: str) -> ModuleType:
        return import_module(name)

    return load


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("painted")
    write_pictures(folder / "set", 16)
    return write_painted(folder / "a.onnx"), labelled(folder / "set", CLASSES)


def crowded(seed: int) -> tuple[Dataset, list[Detections]]:
    """Images with regions and with objects that need not be found, and many detections."""
    dataset, found = world(40, seed)
    rng = np.random.default_rng(seed)
    items = []
    for item in dataset.items:
        crowd, ignore = rng.random((2, len(item))) < 0.3
        items.append(replace(item, crowd=crowd, ignore=ignore & ~crowd))
    twice = [
        Detections(
            np.concatenate([one.xyxy, one.xyxy + rng.normal(0, 2, one.xyxy.shape)]).astype("f4"),
            np.round(rng.random(2 * len(one)), 1).astype("f4"),
            np.concatenate([one.class_id, one.class_id]),
        )
        for one in found
    ]
    return replace(dataset, items=tuple(items)), twice


@pytest.mark.parametrize("seed", range(6))
def test_hits_are_those_of_pycocotools(tool: Any, seed: int) -> None:
    dataset, found = crowded(seed)
    matcher = tool("gate_matching").Matcher(dataset, NAMES)
    matcher.check(found)
    hits = np.concatenate([one.hit for one in matcher.results(found).values()])
    assert 0.1 < hits.mean() < 0.9
    matcher._truth[0] = replace(matcher._truth[0], xyxy=matcher._truth[0].xyxy + 500)
    with pytest.raises(DataError, match="judges these images otherwise"):
        matcher.check(found)


def test_prepared_images_give_the_detections_of_an_evaluation(
    tool: Any, painted: tuple[Path, Dataset], tmp_path: Path
) -> None:
    artifact, dataset = painted
    module = tool("gate_accuracy")
    prepared = module.Prepared(artifact, dataset, tmp_path, 2)
    wanted, _, _ = detect(artifact, dataset, 1)
    for mine, theirs in zip(prepared.detect(artifact), wanted, strict=True):
        for name in ("xyxy", "score", "class_id"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert sum(map(len, wanted)) > 20
    some = np.array([5, 0, 11])
    mine = prepared.judge(artifact, some.tolist())
    theirs = module.subset(prepared.results, some)
    assert set(mine) == set(theirs) == set(CLASSES)
    for name, one in mine.items():
        np.testing.assert_array_equal(one.boxes, theirs[name].boxes)
        assert sorted(zip(one.image, one.score, one.hit, strict=True)) == sorted(
            zip(theirs[name].image, theirs[name].score, theirs[name].hit, strict=True)
        )


def run(tool: Any, painted: tuple[Path, Dataset], path: Path | None, count: int) -> list[Any]:
    trials = tool("gate_trials").Trials({"seed": 7}, path)
    artifact, dataset = painted
    tool("gate_accuracy").accuracy_trials(
        artifact,
        dataset,
        trials,
        images=8,
        count=count,
        margin=0.01,
        alarm=0.005,
        threads=1,
        seed=7,
    )
    lines: list[Any] = trials.lines
    return lines


def test_a_run_that_was_stopped_goes_on_and_is_the_same(
    tool: Any, painted: tuple[Path, Dataset], tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    whole = run(tool, painted, None, 3)
    run(tool, painted, path, 2)
    with path.open("a") as file:
        file.write('{"kind": "accuracy", "numb')
    assert run(tool, painted, path, 3) == whole
    assert [json.loads(line) for line in path.read_text().splitlines()] == whole
    assert [one["regression"] for one in whole[2:]] == [True, False] * 3
    assert len({one["what"] for one in whole[2:]}) > 3


def test_trials_with_other_settings_are_refused(tool: Any, tmp_path: Path) -> None:
    trials, path = tool("gate_trials").Trials, tmp_path / "t.jsonl"
    trials({"seed": 7, "rounds": 20}, path)
    with pytest.raises(DataError, match=r"t\.jsonl: was run with rounds 20, not 9"):
        trials({"seed": 7, "rounds": 9}, path)
    for text in ("", "{", "[]\n", '{"kind": "accuracy"}\n{}\n'):
        path.write_text(text)
        with pytest.raises(DataError, match="not the trials of this tool"):
            trials({}, path)


def test_table_counts_the_trials(tool: Any) -> None:
    accuracy = [(True, 0.001, "same"), (True, 0.1, "worse"), (True, 0.1, "cannot tell")]
    accuracy += [(False, 0.0, "same")] * 3
    lines = [{"kind": "announced", "drop": 0.08}]
    lines += [
        {"kind": "accuracy", "regression": r, "true": t, "verdict": v} for r, t, v in accuracy
    ]
    lines += [{"kind": "latency", "verdicts": {"+10 %, same run": v}} for v in ("worse", "same")]
    found = tool("gate_trials").summary(lines)
    counts = [(row["trials"], row["worse"], row["cannot_tell"]) for row in found["accuracy"]]
    assert counts == [(3, 0, 0), (1, 0, 0), (0, 0, 0), (0, 0, 0), (2, 1, 1), (0, 0, 0)]
    assert [(row["what"], row["trials"], row["worse"]) for row in found["latency"]] == [
        ("+10 %, same run", 2, 1)
    ]


@pytest.mark.parametrize(("hits", "trials"), [(0, 200), (3, 200), (190, 200), (5, 5)])
def test_interval_of_a_share_is_wilsons(tool: Any, hits: int, trials: int) -> None:
    wanted = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    assert tool("gate_trials").interval(hits, trials) == pytest.approx(tuple(wanted), abs=1e-6)


def test_command_prints_a_kept_table(tool: Any, tmp_path: Path) -> None:
    start = {"rounds": 20, "seconds": 1.0, "images": 8, "host": "x, 2 cores", "alarm": 0.005}
    trials = tool("gate_trials").Trials(start, tmp_path / "t.jsonl")
    trials.add({"kind": "latency", "verdicts": {"no change, same run": "same"}})
    argv = ["--summary", tmp_path / "t.jsonl", "--json", tmp_path / "table.json"]
    done = subprocess.run(
        [sys.executable, TOOLS / "gate_sensitivity.py", *argv],
        capture_output=True,
        text=True,
        cwd=TOOLS.parent,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "no change, same run" in done.stdout
    assert json.loads((tmp_path / "table.json").read_text())["latency"][0]["trials"] == 1


def test_a_trial_of_latency_gives_a_verdict_of_each_kind(
    tool: Any, painted: tuple[Path, Dataset], tmp_path: Path
) -> None:
    module = tool("gate_latency")
    trials = tool("gate_trials").Trials({}, tmp_path / "t.jsonl")
    timing = module.Timing(4, 0.02, 1, 0.05, 0.005, 1)
    module.latency_trials(painted[0], painted[0], trials, 2, timing)
    first, second = (one["verdicts"] for one in trials.of("latency"))
    same = {"no change, same run", "+10 %, same run"}
    assert set(first) == same
    assert set(second) == same | {"no change, stored", "+10 %, stored"}
    assert len(trials.lines[1]["stored"]) == 4
