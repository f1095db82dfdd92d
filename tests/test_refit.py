"""Thresholds fitted again, scores compared, and slices with paired intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from apps.commands.evaluate import print_evaluation
from edge.artifact import read_manifest
from edge.data.datasets import load, open_dataset
from edge.data.metrics import ImageMatches, evaluate_detections
from edge.detections import Detections
from edge.measure.evaluate import EvaluateOptions, evaluate
from edge.measure.scores import THRESHOLDS, best_threshold, f1_by_class, f1_curve, score_shift
from edge.measure.selection import COPIES, Selection, moved, paired_drop
from edge.measure.slices import SIZES, compare_slices, sized
from export.search import search
from export.search import trials as mixed_trials
from tests.support.steps import exported

SCENES = "scenes://?seed=700000&count=6"
TWO = "scenes://?seed=700000&count=2"


def matches(scores: list[float], hits: list[bool], boxes: int, name: str = "a") -> ImageMatches:
    matched = np.repeat(np.array([hits], np.bool_), 10, axis=0)
    return ImageMatches(0, name, np.array(scores), matched, np.zeros_like(matched), boxes)


def noisy(seed: int, spread: float) -> tuple[object, list[Detections], list[Detections]]:
    """Scenes, their boxes found with random scores, and the same with some of them lost."""
    from dataclasses import replace

    rng = np.random.default_rng(seed)
    dataset = open_dataset(SCENES)
    items = [load(item)[1] for item in dataset.items]
    dataset = replace(dataset, items=tuple(items))
    first, second = [], []
    for item in items:
        score = rng.uniform(0.3, 1, len(item)).astype(np.float32)
        one = Detections(item.xyxy, score, item.class_id)
        kept = rng.random(len(item)) > spread
        first.append(one)
        second.append(one[kept])
    return dataset, first, second


def test_f1_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(3)
    scores, hits = np.sort(rng.random(40))[::-1], rng.random(40) < 0.6
    curve = f1_curve([matches(scores.tolist(), hits.tolist(), 30)])
    for score, f1 in zip(THRESHOLDS[::7], curve.f1[::7], strict=True):
        shown = scores > score
        right = int((hits & shown).sum())
        precision, recall = right / max(1, shown.sum()), right / 30
        wanted = 2 * precision * recall / (precision + recall) if right else 0.0
        assert f1 == pytest.approx(wanted)


def test_the_threshold_between_hits_and_false_alarms_is_found() -> None:
    found = matches([0.9, 0.8, 0.7, 0.3, 0.2], [True, True, True, False, False], 3)
    score = best_threshold(f1_curve([found]))
    assert 0.3 <= score < 0.7
    assert f1_curve([found]).at(score) == 1.0
    assert f1_by_class([found])["a"].boxes == 3


def test_nothing_found_has_no_threshold() -> None:
    with pytest.raises(ValueError, match="nothing is found"):
        best_threshold(f1_curve([matches([], [], 4)]))


def test_a_constant_shift_of_scores_is_measured() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)
    one = Detections(boxes, np.array([0.9, 0.5], np.float32), np.array([0, 1], np.int32))
    two = Detections(boxes + 1, np.array([0.8, 0.4], np.float32), np.array([0, 1], np.int32))
    assert score_shift([one], [two]) == pytest.approx(-0.1, abs=1e-4)
    assert score_shift([one], [one[one.score > 1]]) is None


def test_the_same_detector_differs_in_no_slice() -> None:
    dataset, first, _ = noisy(0, 0.0)
    found = compare_slices(dataset, first, first, dataset.classes)
    assert {"all", "small"} <= set(found.slices)
    assert all(one.difference == 0 for one in found.slices.values())
    assert found.scores.shift == 0


def test_lost_objects_show_in_the_interval_of_all_and_of_their_slice() -> None:
    dataset, first, second = noisy(1, 0.4)
    found = compare_slices(dataset, first, second, dataset.classes).slices["all"]
    assert found.before == pytest.approx(1.0, abs=1e-6)
    assert found.interval[0] < found.difference < found.interval[1] < 0


@pytest.mark.parametrize("size", list(SIZES))
def test_slices_by_size_are_pycocotools_own(size: str) -> None:
    from edge.measure.statistics import mean_precision

    dataset, _, second = noisy(2, 0.3)
    wanted = evaluate_detections(dataset, second, dataset.classes).by_size
    results = sized(dataset, second, dataset.classes, *SIZES[size])
    assert bool(results) == (size in wanted)
    if results:
        mine = float(mean_precision(results, np.ones((1, len(dataset))))[0])
        assert mine == pytest.approx(wanted[size].map50, abs=2e-6)


@pytest.mark.parametrize("copy", range(len(COPIES)))
def test_moved_copies_keep_boxes_on_their_objects(copy: int) -> None:
    from dataclasses import replace

    item = load(open_dataset(SCENES).items[0])[1]
    frame = np.zeros((720, 1280, 3), np.uint8)
    box = np.array([[400, 200, 520, 330]], np.float32)
    frame[200:330, 400:520] = 255
    one = replace(
        item,
        xyxy=box,
        class_id=np.zeros(1, np.int32),
        crowd=np.zeros(1, np.bool_),
        ignore=np.zeros(1, np.bool_),
        area=np.array([120 * 130], np.float32),
    )
    picture, known = moved(frame, one, COPIES[copy])
    rows, columns = np.nonzero(picture[..., 0] > 127)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(known.xyxy[0] - seen).max() < 1.6
    assert picture.shape == frame.shape and not known.ignore.any()
    assert known.area[0] == pytest.approx(
        float(np.prod(known.xyxy[0, 2:] - known.xyxy[0, :2])), 1e-3
    )


def test_copies_of_an_image_are_resampled_with_it() -> None:
    dataset, first, second = noisy(3, 0.3)
    sides = [evaluate_detections(dataset, one, dataset.classes).matches for one in (first, second)]
    once = paired_drop([sides[0]], [sides[1]], len(dataset))
    thrice = paired_drop([sides[0]] * 3, [sides[1]] * 3, len(dataset))
    # The very same copies tell nothing new: neither may the standard error shrink.
    assert thrice.loss == pytest.approx(once.loss, abs=0.02)
    assert thrice.spread == pytest.approx(once.spread, rel=0.15)
    assert thrice.pictures == 3 * once.pictures == 18


def test_export_with_labels_fits_a_threshold_and_keeps_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (mixed_trials, search):
        monkeypatch.setattr(module, "FEW_PICTURES", 4)
    result = exported(
        precision="int8",
        calib="scenes://?seed=500000&count=6",
        images=6,
        max_map_drop=0.9,
        accuracy_data=TWO,
        builder="none",
        verdict=False,
        output=tmp_path,
    )
    manifest = read_manifest(result["files"]["int8"])
    arguments = {name: json.loads(value) for name, value in manifest.arguments}
    assert arguments["score"] == result["scores"]["score"]
    assert 0.02 < arguments["score"] < 0.98
    assert result["search"]["holds"] and arguments["precision_search"]["budget"] == 0.9
    assert arguments["precision_search"]["drop_upper"] <= 0.9
    again = exported(
        precision="int8",
        calib=result["files"]["calibration"],
        precision_map=result["files"]["precision_map"],
        builder="none",
        verdict=False,
        output=tmp_path / "again",
    )
    kept = json.loads(dict(read_manifest(again["files"]["int8"]).arguments)["keep"])
    assert kept == arguments["keep"] == []
    compared = evaluate(
        result["files"]["int8"], TWO, EvaluateOptions(threads=1, against=result["files"]["fp32"])
    )
    assert compared.against is not None
    assert compared.against.slices["all"].now == pytest.approx(compared.map50, abs=1e-6)
    print_evaluation(compared)


def test_the_selection_is_what_evaluation_measures(tmp_path: Path) -> None:
    made = exported(precision="fp32", builder="none", output=tmp_path)
    classes = read_manifest(made["files"]["fp32"]).spec.classes
    selection = Selection.open(SCENES, classes, None, threads=1)
    wanted = evaluate(made["files"]["fp32"], SCENES, EvaluateOptions(threads=1)).map50
    assert selection.map50(Path(made["files"]["fp32"])) == pytest.approx(wanted, abs=2e-6)
