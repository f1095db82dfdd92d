"""`edge regress` fails what got worse, names where, and says what it cannot measure."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from apps.commands.regress import arguments, moved, run
from apps.regress.gate import Gate, gate_names
from apps.regress.gates import judge_all
from apps.regress.measurement import Measurement, read_measurements, write_measurements
from apps.regress.run import Outcome, regress
from apps.regress.suite import read_suite
from edge.errors import ArtifactError, DataError
from edge.measure.accuracy import data_digest, labelled
from tests.support.painted import write_painted, write_painted_int8, write_pictures
from tests.test_measurement import measurement

ROOT = Path(__file__).resolve().parent.parent
SUITE = """schema = 1
data = "set"
source = "set/images"
camera_seconds = 0
baseline = "full.onnx"
seconds = 0.2
rounds = 6
threads = 1
[margins]
map50 = 0.05
small = 0.05
classes = {dog = 0.1}
slowdown = 0.5
bytes = 0.1
[[artifact]]
name = "int8"
path = "now.onnx"
reference = "fp32.onnx"
[artifact.margins]
reference = 0.05
noise_db = 12
speedup = 0.2
p99_ms = 10000
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite with its stored results."""
    folder = tmp_path_factory.mktemp("suite")
    write_pictures(folder / "set")
    write_painted(folder / "fp32.onnx")
    write_painted(folder / "full.onnx", work=48)
    write_painted_int8(folder / "fp32.onnx", folder / "now.onnx")
    (folder / "s.toml").write_text(SUITE)
    regress(folder / "s.toml", update=True)
    return folder


@pytest.fixture
def suite(measured: Path, tmp_path: Path) -> Path:
    """A copy of the suite that a test may damage."""
    shutil.copytree(measured, tmp_path / "s")
    return tmp_path / "s" / "s.toml"


def command(*argv: object) -> int:
    parser = argparse.ArgumentParser()
    arguments(parser)
    return run(parser.parse_args([str(arg) for arg in argv]))


def verdicts(outcome: Outcome) -> dict[str, str]:
    return {gate.name: gate.verdict for gate in outcome.gates}


def text(outcome: Outcome, name: str) -> str:
    return next(gate.text for gate in outcome.gates if gate.name == name)


def test_nothing_changed_is_no_regression(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--suite", suite) == 0
    printed = capsys.readouterr()
    assert "a drop of" in printed.err
    assert "SAME  int8, map50: mAP@.5 is the same" in printed.err
    assert "40 images of set" in printed.out


def test_a_stale_calibration_is_found_and_its_layer_is_named(suite: Path) -> None:
    folder = suite.parent
    write_painted_int8(folder / "fp32.onnx", folder / "now.onnx", stale=0.1)
    report = folder / "report"
    assert command("--suite", suite, "--report", report) == 1
    outcome = regress(suite)
    found = verdicts(outcome)
    for name in ("map50", "small", "class dog", "reference", "noise_db"):
        assert found[name] == "worse", name
    for name in ("bytes", "p99_ms"):
        assert found[name] == "same", name
    words = text(outcome, "map50")
    assert "first layer that departs: layers.1.pool.dequantized" in words
    assert "most in: " in words
    assert "small -" in words
    stored = read_measurements(folder / "s.jsonl")[0].map50
    fell = (stored - outcome.gathered.measurements["int8"].map50) * 100
    assert f"fell by {fell:.1f} points" in words
    assert outcome.detectable["int8", "map50"].drop < fell / 100


def test_what_fell_is_the_last_line(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_painted(suite.parent / "now.onnx", work=32)
    assert command("--suite", suite) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("got worse: ")
    assert "int8 bytes" in last
    assert last.endswith(f"edge regress --suite {suite} --update")


def test_the_projects_own_suite_has_its_stored_results() -> None:
    own = read_suite(ROOT / "tests" / "suite" / "builtin.toml")
    stored = {one.name: one for one in read_measurements(own.results)}
    assert list(stored) == [entry.name for entry in own.entries]
    assert own.results.stat().st_size < 200_000
    for entry in own.entries:
        # Machines of a CI differ: no gate of it may need a stored time.
        assert entry.margins.slowdown is None
        assert set(gate_names(entry)) >= {"map50", "small", "bytes", "speedup"}
        assert stored[entry.name].images == 300
    digest = data_digest(labelled(own.data, ("person", "car")))
    assert {one.data_sha256 for one in stored.values()} == {digest}


def test_a_blind_spot_for_one_class_names_that_class(suite: Path) -> None:
    write_painted(suite.parent / "now.onnx", dog=0.0)
    outcome = regress(suite)
    assert verdicts(outcome)["class dog"] == "worse"
    assert "most in: dog" in text(outcome, "map50")


def test_a_slower_artifact_is_found_in_the_same_run(suite: Path) -> None:
    folder = suite.parent
    shutil.copy(folder / "now.onnx", folder / "last.onnx")
    write_painted(folder / "now.onnx", work=64)
    changed = SUITE.replace('reference = "fp32.onnx"', 'faster_than = "last.onnx"')
    changed = changed.replace("reference = 0.05\nnoise_db = 12\n", "")
    suite.write_text(changed)
    outcome = regress(suite)
    assert verdicts(outcome)["slowdown"] == "worse"
    assert "last.onnx of the same run" in text(outcome, "slowdown")
    ratio = math.exp(np.median(outcome.gathered.measurements["int8"].rival_pairs))
    assert ratio > 1.5
    assert f"latency {(ratio - 1) * 100:+.1f} %" in text(outcome, "slowdown")


def turns(pipeline_us: int, baseline_us: int) -> dict[str, list[list[int]]]:
    """Times of ten rounds that a quiet machine could take."""
    steps = range(10)
    return {
        "engine": [[pipeline_us + step] for step in steps],
        "pipeline": [[pipeline_us + step, pipeline_us + 3 * step] for step in steps],
        "baseline": [[baseline_us - step] for step in steps],
    }


def judged(outcome: Outcome, before: Measurement | None, **changes: Any) -> dict[str, Gate]:
    """The gates of what was measured with some of its fields changed."""
    now = replace(outcome.gathered.measurements["int8"], warnings=[], **changes)
    gathered = replace(outcome.gathered, measurements={"int8": now})
    stored = {} if before is None else {"int8": before}
    return {gate.name: gate for gate in judge_all(outcome.suite, gathered, stored)}


@pytest.fixture(scope="module")
def outcome(measured: Path) -> Outcome:
    return regress(measured / "s.toml")


@pytest.mark.parametrize(("speedup", "verdict"), [(0.1, "worse"), (0.3, "same")])
def test_a_speed_up_that_is_not_reached_is_worse(
    outcome: Outcome, speedup: float, verdict: str
) -> None:
    times = turns(10_000, round(10_000 * speedup))
    found = judged(outcome, None, frames_us=times, speedup=speedup)["speedup"]
    assert found.verdict == verdict
    assert found.said.startswith(f"{speedup:.2f} times as fast as the baseline of the same run")
    assert found.change is not None
    assert found.change.margin == "at least 0.2"


def test_a_larger_file_is_worse(suite: Path) -> None:
    write_painted(suite.parent / "now.onnx", work=32)
    assert verdicts(regress(suite))["bytes"] == "worse"


def test_speed_follows_from_the_raw_times_in_the_file(measured: Path) -> None:
    """From the JSON alone, by the definitions of the documents."""
    one = json.loads((measured / "s.jsonl").read_text().splitlines()[0])
    times, stages = one["frames_us"], one["stages_us"]
    frames = {kind: np.concatenate(blocks) for kind, blocks in times.items()}
    for kind in ("engine", "pipeline"):
        assert one["fps"][kind] == pytest.approx(1e6 / np.median(frames[kind]), rel=1e-12)
    medians = {kind: [np.median(block) for block in blocks] for kind, blocks in times.items()}
    ratios = np.divide(medians["baseline"], medians["pipeline"])
    assert one["speedup"] == pytest.approx(np.exp(np.median(np.log(ratios))), rel=1e-12)
    every = {"pipeline": times["pipeline"], **stages}
    assert set(one["latency_ms"]) == set(every) > {"preprocess", "engine", "decode", "nms"}
    for name, found in one["latency_ms"].items():
        wanted = np.percentile(np.concatenate(every[name]) / 1e3, (50, 95, 99))
        assert list(found.values()) == pytest.approx(wanted.tolist(), rel=1e-12)
    blocks = {len(blocks) for blocks in times.values()}
    assert blocks == {len(times["pipeline"])}
    assert blocks.pop() >= 6
    lengths = [len(block) for block in times["pipeline"]]
    assert all([len(block) for block in each] == lengths for each in stages.values())
    # A frame is its stages and little else.
    spent = sum(np.concatenate(each) for each in stages.values())
    assert np.median(spent / frames["pipeline"]) == pytest.approx(1, abs=0.3)
    assert one["bytes"] == (measured / "now.onnx").stat().st_size


def drawn(results: dict[str, Any]) -> tuple[COCO, list[dict[str, Any]]]:
    """Raw results as boxes for pycocotools: a hit lies on an object of its own, a miss on none."""
    names = list(results)
    boxes, found = [], []
    for number, name in enumerate(names, 1):
        one, place = results[name], Counter[int]()
        for image, count in enumerate(one.boxes.tolist()):
            boxes += [(image + 1, number, [200 * i, 200 * number, 100, 100]) for i in range(count)]
        for image, score, hit in zip(one.image.tolist(), one.score, one.hit, strict=True):
            at = [200 * place[image] if hit else 9e5, 200 * number, 100, 100]
            place[image] += int(hit)
            found.append((image + 1, number, at, float(score)))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i + 1} for i in range(len(results[names[0]].boxes))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": k, "bbox": box, "area": 1e4, "iscrowd": 0}
            for i, (image, k, box) in enumerate(boxes, 1)
        ],
    }
    truth.createIndex()
    keys = ("image_id", "category_id", "bbox", "score")
    return truth, [dict(zip(keys, each, strict=True)) for each in found]


@pytest.mark.parametrize("kind", ["results", "small"])
def test_pycocotools_finds_the_same_precision_in_the_raw_results(measured: Path, kind: str) -> None:
    one = read_measurements(measured / "s.jsonl")[0]
    results = getattr(one, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = drawn(results)
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.params.iouThrs, judge.params.maxDets = np.array([0.5]), [1000]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][0, :, :, 0, -1].mean(axis=0)
    if kind == "small":
        assert precision.mean() == pytest.approx(one.by_size["small"]["map50"], abs=1e-6)
    else:
        assert precision.mean() == pytest.approx(one.map50, abs=1e-6)
        for name, value in zip(results, precision, strict=True):
            assert value == pytest.approx(one.by_class[name]["ap50"], abs=1e-6)
    assert 0.05 < precision.mean() < 0.999


def test_another_host_falls_back_to_the_ratio_of_this_run(suite: Path) -> None:
    path = suite.with_suffix(".jsonl")
    one = read_measurements(path)[0]
    write_measurements([replace(one, host={**one.host, "cpu": "Z80"})], path)
    outcome = regress(suite)
    assert verdicts(outcome)["slowdown"] == "not compared"
    words = text(outcome, "slowdown")
    assert "cannot be compared with the stored figure (cpu was Z80" in words
    assert "times as fast as its baseline" in words
    assert verdicts(outcome)["speedup"] in ("same", "cannot tell")
    assert verdicts(outcome)["map50"] == "same"


@pytest.mark.parametrize(
    ("warnings", "verdict"), [([], "worse"), (["other work: load 9"], "cannot tell")]
)
def test_a_stored_ratio_accuses_nobody_on_a_disturbed_machine(
    outcome: Outcome, measured: Path, warnings: list[str], verdict: str
) -> None:
    one = read_measurements(measured / "s.jsonl")[0]
    names = outcome.gathered.measurements["int8"].latency_ms
    stages = {name: dict.fromkeys(("p50", "p95", "p99"), 1.0) for name in names}
    stored = replace(
        one,
        frames_us=turns(5_000, 30_000),
        warnings=warnings,
        latency_ms=stages | {"nms": {"p50": 0}},
    )
    now = {"frames_us": turns(10_000, 30_000), "latency_ms": stages}
    found = judged(outcome, stored, **now)["slowdown"]
    assert found.verdict == verdict
    assert found.comparison is not None
    assert found.comparison.loss == pytest.approx(math.log(2), abs=0.01)
    assert ("other work: load 9: a stored figure cannot tell" in found.said) == bool(warnings)
    assert ("give faster_than" in found.said) == bool(warnings)
    assert found.where == ([] if warnings else ["most in: nms +1.00 ms (0.00 -> 1.00 ms)"])


def test_another_baseline_is_not_compared(suite: Path) -> None:
    write_painted(suite.parent / "full.onnx", work=40)
    assert verdicts(regress(suite))["slowdown"] == "not compared"
    assert "the baseline was painted" in text(regress(suite), "slowdown")


def refused(suite: Path, words: str, error: type[Exception] = DataError) -> None:
    with pytest.raises(error, match=words) as found:
        regress(suite)
    assert "\n" not in str(found.value)


def test_other_images_are_refused(suite: Path) -> None:
    cv2.imwrite(str(suite.parent / "set" / "images" / "007.png"), np.zeros((128, 128, 3)))
    refused(suite, "measured on other images or labels.*--update")


def test_other_labels_are_refused(suite: Path) -> None:
    (suite.parent / "set" / "labels" / "007.txt").write_text("0 .5 .5 .1 .1")
    refused(suite, "measured on other images or labels")


def test_another_schema_is_refused(suite: Path) -> None:
    path = suite.with_suffix(".jsonl")
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 9'))
    refused(suite, "schema 9, this reads 1 and 2; measure again: --update")


def test_a_missing_artifact_is_named(suite: Path) -> None:
    (suite.parent / "now.onnx").unlink()
    refused(suite, r"now\.onnx", ArtifactError)


def test_results_that_are_not_there_are_asked_for(suite: Path) -> None:
    suite.with_suffix(".jsonl").unlink()
    refused(suite, "--update")
    suite.write_text(SUITE.replace('name = "int8"', 'name = "new"'))
    (suite.parent / "s.jsonl").write_text(
        (regress(suite, update=True), suite.with_suffix(".jsonl").read_text())[1]
    )
    suite.write_text(SUITE)
    refused(suite, "no result of 'int8'.*--update")


def test_too_few_images_for_the_statistics_are_refused(suite: Path) -> None:
    suite.write_text(SUITE.replace('data = "set"', 'data = "set"\nimages = 29'))
    refused(suite, "29 images; the statistics need at least 30")


def test_a_suite_of_in_run_margins_needs_no_stored_results(suite: Path) -> None:
    suite.with_suffix(".jsonl").unlink()
    start, _, rest = SUITE.partition("[margins]")
    suite.write_text(start + rest[rest.index("[[artifact]]") :])
    assert set(verdicts(regress(suite))) == {"reference", "speedup", "p99_ms", "noise_db"}


def test_update_stores_what_got_worse_and_the_next_run_accepts_it(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_painted(suite.parent / "now.onnx", dog=0.0)
    stored = read_measurements(suite.with_suffix(".jsonl"))[0]
    assert command("--suite", suite, "--update") == 0
    now = read_measurements(suite.with_suffix(".jsonl"))[0]
    printed = capsys.readouterr().out
    assert f"{stored.map50 * 100:.2f} -> {now.map50 * 100:.2f}" in printed
    assert now.map50 < stored.map50 - 0.1
    table = [line.replace("│", " ").split() for line in printed.splitlines()]
    for name, old, new, objects in (
        ("dog", stored.by_class["dog"]["ap50"], now.by_class["dog"]["ap50"], 80),
        ("small", stored.by_size["small"]["map50"], now.by_size["small"]["map50"], None),
    ):
        figures = [f"{old * 100:.2f}", f"{new * 100:.2f}", f"{(new - old) * 100:+.2f}"]
        assert [name, *([str(objects)] if objects else []), *figures] in table
    assert verdicts(regress(suite))["map50"] == "same"


def test_an_update_says_why_it_has_no_diff(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (suite.parent / "set" / "labels" / "007.txt").write_text("0 .5 .5 .1 .1")
    assert command("--suite", suite, "--update") == 0
    printed = capsys.readouterr().err
    assert "no diff: " in printed
    assert "measured on other images or labels" in printed
    assert "int8: new" in printed


def test_slices_that_come_go_and_stay_are_told_apart() -> None:
    before, now = (
        measurement(
            map50=whole,
            by_class={name: {"ap50": ap, "boxes": 7} for name, ap in classes.items()},
            by_size={"small": {"map50": 0.5}, "large": {"map50": large}},
        )
        for whole, large, classes in (
            (0.5, 0.25, {"ape": 0.5, "cat": 0.5, "dog": 0.25, "owl": 0.75}),
            (0.25, 0.25, {"cat": 0.25, "dog": 0.5, "owl": 0.75, "yak": 0.125}),
        )
    )
    rows, still = moved(before, now)
    assert rows == [
        ("all", "", "50.00", "25.00", "-25.00"),
        ("ape", "7", "50.00", "-", "-"),
        ("cat", "7", "50.00", "25.00", "-25.00"),
        ("yak", "7", "-", "12.50", "-"),
        ("dog", "7", "25.00", "50.00", "+25.00"),
    ]
    # AP@.5:.95, both sizes, owl.
    assert still == 4


def test_strict_fails_what_cannot_be_told(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import apps.regress.run as app

    real = app.judge_all

    def unsure(*args: object) -> list:
        return [replace(gate, verdict="cannot tell") for gate in real(*args)]

    monkeypatch.setattr(app, "judge_all", unsure)
    assert command("--suite", suite) == 0
    assert command("--suite", suite, "--strict") == 2


def test_ci_files_say_the_same_as_the_gates(suite: Path) -> None:
    write_painted(suite.parent / "now.onnx", dog=0.0)
    folder = suite.parent / "out" / "report"
    outcome = regress(suite, report=folder)
    root = ElementTree.parse(folder / "junit.xml").getroot()
    cases = root.findall(".//testcase")
    assert [case.get("name") for case in cases] == [gate.name for gate in outcome.gates]
    failed = {case.get("name") for case in cases if case.find("failure") is not None}
    assert failed == {gate.name for gate in outcome.worse} >= {"map50", "class dog"}
    assert root.get("failures") == str(len(failed))
    markdown = (folder / "report.md").read_text()
    assert f"{len(failed)} regressions" in markdown
    for gate in outcome.worse:
        assert f"**int8, {gate.name}**: {gate.said}" in markdown
        assert all(f"\n  - {line}\n" in markdown for line in gate.where)
    lines = (folder / "measurements.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["int8"]
