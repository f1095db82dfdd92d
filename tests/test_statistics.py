"""The bootstrap's average precision is pycocotools', and its verdicts are as sure as they say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edge.data.items import Dataset, Item, Label, make_item
from edge.data.metrics import evaluate_detections
from edge.decoding import decode
from edge.detections import Detections
from edge.files import to_plain
from edge.measure.results import ClassResults, Encoded, by_class, from_json, to_json
from edge.measure.slices import SIZES, sized
from edge.measure.statistics import (
    average_precision,
    compare_precision,
    compare_ratio,
    interval,
    judge,
    mean_precision,
    minimum_detectable_drop,
    quantile,
    resample,
    thinned,
)

NAMES = ("cat", "dog", "ape")
World = Callable[..., tuple[Dataset, list[Detections]]]


def scene(rng: np.random.Generator, number: int) -> tuple[Item, Detections]:
    """A labelled image and what a mediocre detector says of it; ties, crowds, all sizes."""
    labels, boxes, scores, ids = [], [], [], []
    for _ in range(rng.integers(0, 6)):
        label, side = int(rng.integers(3)), float(rng.choice((12, 20, 30, 40, 60, 120)))
        x, y = rng.uniform(0, 300, 2)
        box = (x, y, x + side, y + side)
        crowd, ignore = rng.random() < 0.05, rng.random() < 0.1
        labels.append(Label(label, box, "here", crowd=crowd, ignore=ignore))
        for _ in range(rng.integers(0, 3)):
            boxes.append(np.array(box) + rng.normal(0, side / 12, 4))
            scores.append(round(rng.uniform(0.2, 1), 2))
            ids.append(label if rng.random() < 0.9 else int(rng.integers(3)))
    for _ in range(rng.integers(0, 4)):
        x, y, side = *rng.uniform(0, 300, 2), rng.choice((14, 33, 80))
        boxes.append(np.array((x, y, x + side, y + side)))
        scores.append(round(rng.uniform(0, 0.7), 2))
        ids.append(int(rng.integers(3)))
    item = make_item(Path(f"{number}"), labels, (500, 500))[0]
    order = np.argsort(-np.array(scores), kind="stable")
    found = (np.array(part)[order] for part in (boxes, scores, ids)) if boxes else None
    return item, Detections(*found) if found else Detections.empty()


def world(count: int, seed: int = 0) -> tuple[Dataset, list[Detections]]:
    rng = np.random.default_rng(seed)
    pairs = [scene(rng, number) for number in range(count)]
    items = tuple(item for item, _ in pairs)
    return Dataset("world", "yolo", NAMES, items, "world"), [found for _, found in pairs]


def results(count: int, seed: int = 0) -> dict:
    dataset, found = world(count, seed)
    return by_class(evaluate_detections(dataset, found).matches, count)


@pytest.mark.parametrize("seed", range(4))
def test_equal_weights_give_pycocotools_average_precision(seed: int) -> None:
    dataset, found = world(60, seed)
    metrics = evaluate_detections(dataset, found)
    mine = by_class(metrics.matches, 60)
    assert set(mine) == set(metrics.by_class)
    for name, one in mine.items():
        for scale in (1, 1024):
            weights = np.full((1, 60), float(scale))
            wanted = metrics.by_class[name].ap50
            assert average_precision(one, weights)[0] == pytest.approx(wanted, abs=1e-6)
    assert mean_precision(mine, np.ones((1, 60)))[0] == pytest.approx(metrics.map50, abs=1e-6)
    assert 0.05 < metrics.map50 < 0.95


@pytest.mark.parametrize("seed", range(3))
def test_small_objects_are_judged_as_pycocotools_does(seed: int) -> None:
    dataset, found = world(60, seed)
    wanted = evaluate_detections(dataset, found).by_size["small"].map50
    mine = sized(dataset, found, NAMES, *SIZES["small"])
    assert mean_precision(mine, np.ones((1, 60)))[0] == pytest.approx(wanted, abs=1e-6)
    assert wanted != pytest.approx(evaluate_detections(dataset, found).map50, abs=1e-3)


def test_a_weight_of_two_is_the_image_twice() -> None:
    dataset, found = world(40, 7)
    # Scores of one image must not tie with another's, whose copies would stand between.
    found = [
        replace(f, score=np.sort(np.random.default_rng(i).random(len(f)))[::-1])
        for i, f in enumerate(found)
    ]
    counts = np.random.default_rng(1).integers(0, 4, 40)
    index = np.repeat(np.arange(40), counts)
    twice = replace(dataset, items=tuple(dataset.items[i] for i in index))
    wanted = evaluate_detections(twice, [found[i] for i in index])
    mine = by_class(evaluate_detections(dataset, found).matches, 40)
    weights = counts[None].astype(float)
    assert mean_precision(mine, weights)[0] == pytest.approx(wanted.map50, abs=1e-6)


def through_json(one: dict[str, ClassResults]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(to_plain(to_json(one)))))


def read_back(data: dict[str, Any]) -> dict[str, ClassResults]:
    return from_json(decode(data, dict[str, Encoded], "a.jsonl", "results"))


def test_results_survive_json() -> None:
    before = results(50)
    after = read_back(through_json(before))
    weights = resample(50, 20)
    np.testing.assert_array_equal(mean_precision(before, weights), mean_precision(after, weights))
    assert list(before) == list(after)


def test_a_class_that_is_never_found_survives_json_and_counts_as_zero() -> None:
    dataset, _ = world(20)
    none = [Detections.empty()] * 20
    mine = read_back(through_json(by_class(evaluate_detections(dataset, none).matches, 20)))
    assert mean_precision(mine, np.ones((2, 20))).tolist() == [0, 0]


@pytest.mark.filterwarnings("error")
def test_draws_without_an_object_say_nothing() -> None:
    dataset, found = world(3)
    items = (dataset.items[0], *(make_item(Path(f"{n}"), [], (500, 500))[0] for n in (1, 2)))
    assert len(items[0].class_id)
    matches = evaluate_detections(replace(dataset, items=items), found).matches
    mine = by_class(matches, 3)
    assert np.isnan(mean_precision(mine, np.array([[0.0, 1, 1]]))).all()
    comparison = compare_precision(mine, mine, margin=0.01, alarm=0.01)
    # Nothing changed, but one image with a few objects cannot show that nothing changes.
    assert comparison.loss == 0 and np.isfinite(comparison.spread)
    assert comparison.verdict == "cannot tell" and comparison.few == tuple(mine)


@pytest.mark.parametrize("damage", ["cut", "base64", "image", "missing"])
def test_damaged_results_are_refused(damage: str) -> None:
    data = through_json(results(30))
    one = data["cat"]
    if damage == "cut":
        one["detections"] += 8
    elif damage == "base64":
        one["columns"] = one["columns"][:-7] + "!!!"
    elif damage == "image":
        one["images"] = 0
    else:
        del one["images"]
    with pytest.raises(ValueError):
        read_back(data)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, weights = results(50), resample(50, 30)
    whole = mean_precision(mine, weights)
    monkeypatch.setattr("edge.measure.statistics._CHUNK", 100)
    np.testing.assert_array_equal(mean_precision(mine, weights), whole)


def test_bootstrap_spread_is_that_of_fresh_images() -> None:
    fresh = [mean_precision(results(80, 100 + i), np.ones((1, 80)))[0] for i in range(40)]
    spreads = [np.std(mean_precision(results(80, 200 + i), resample(80, 200))) for i in range(5)]
    # 40 draws know their standard deviation to some 11 %.
    assert np.mean(spreads) == pytest.approx(np.std(fresh), rel=0.35)


@pytest.mark.parametrize("freedom", [4, 9, 19, 60])
@pytest.mark.parametrize("level", [0.95, 0.99, 0.998])
def test_quantile_is_students(level: float, freedom: float) -> None:
    assert quantile(level, freedom) == pytest.approx(stats.t.ppf(level, freedom), rel=0.06)
    assert quantile(level) == pytest.approx(stats.norm.ppf(level), rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "spread", "verdict"),
    [
        (0.0, 0.0, "same"),
        (0.0, 0.001, "same"),
        (0.005, 0.0001, "same"),  # surely a loss, surely within the margin
        (0.03, 0.002, "worse"),
        (0.03, 0.02, "cannot tell"),
        (0.0, 0.05, "cannot tell"),
        (-0.03, 0.002, "better"),
        (0.011, 0.003, "worse"),
        (0.009, 0.003, "cannot tell"),
    ],
)
def test_verdicts(loss: float, spread: float, verdict: str) -> None:
    found = judge(loss, spread, 0.01, 0.005, 300)
    assert found.verdict == verdict
    assert found.low <= loss <= found.high
    assert (found.beyond > 0.5) == (loss > 0.01)
    if verdict != "cannot tell":
        assert found.more == 0


def test_the_images_that_are_said_to_be_missing_are_enough() -> None:
    found = judge(0.03, 0.02, 0.01, 0.005, 300)
    assert found.verdict == "cannot tell"
    spread = 0.02 * math.sqrt(300 / (300 + found.more))
    assert judge(0.03, spread * 0.999, 0.01, 0.005, 300 + found.more).verdict == "worse"
    assert judge(0.03, spread * 1.02, 0.01, 0.005, 300 + found.more).verdict == "cannot tell"
    assert judge(0.00999, 0.02, 0.01, 0.005, 300).more == 0


def test_the_same_results_are_the_same() -> None:
    mine = results(60)
    found = compare_precision(mine, mine, margin=0.0, alarm=0.005)
    assert (found.verdict, found.loss, found.spread, found.beyond) == ("same", 0, 0, 0)


def test_a_lossy_detector_is_worse_and_the_other_way_round_better() -> None:
    mine = results(150)
    lossy = thinned(mine, 0.3, np.random.default_rng(0))
    found = compare_precision(mine, lossy, margin=0.01, alarm=0.005)
    assert found.verdict == "worse"
    assert compare_precision(lossy, mine, margin=0.01, alarm=0.005).verdict == "better"
    plain = np.ones((1, 150))
    drop = mean_precision(mine, plain)[0] - mean_precision(lossy, plain)[0]
    assert found.loss == pytest.approx(drop)
    assert found.low < drop < found.high


def test_one_lost_object_is_no_regression() -> None:
    mine = results(60)
    one = mine["cat"]
    hit = one.hit.copy()
    hit[np.flatnonzero(hit)[0]] = False
    found = compare_precision(mine, {**mine, "cat": replace(one, hit=hit)}, margin=0, alarm=0.005)
    assert found.loss > 0
    assert found.verdict == "cannot tell"


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="different images"):
        compare_precision(results(40, 0), results(40, 1), margin=0, alarm=0.01)
    with pytest.raises(ValueError, match="no class"):
        compare_precision(
            {"cat": results(40)["cat"]}, {"dog": results(40)["dog"]}, margin=0, alarm=1
        )


def test_the_announced_drop_is_found_and_half_of_it_is_not() -> None:
    mine = results(150, 5)
    options = {"margin": 0.0, "alarm": 0.01}
    drop = minimum_detectable_drop(mine, **options)
    assert 0.01 < drop < 0.2
    rng = np.random.default_rng(2)
    plain = np.ones((1, 150))
    rates = []
    for size in (1.0, 0.3):
        verdicts = []
        while len(verdicts) < 30:
            before = thinned(mine, 0.02, rng)
            now = thinned(mine, 0.02 + rng.uniform(0.0, 0.3), rng)
            lost = (mean_precision(before, plain) - mean_precision(now, plain))[0]
            if abs(lost - size * drop) < 0.12 * drop:
                verdicts.append(compare_precision(before, now, **options, draws=150).verdict)
        rates.append(np.mean([verdict == "worse" for verdict in verdicts]))
    assert rates[0] >= 0.85
    assert rates[1] <= 0.35


def test_more_images_find_smaller_drops() -> None:
    drops = [minimum_detectable_drop(results(count), margin=0, alarm=0.01) for count in (100, 400)]
    # With the square root of the images, and faster where the losses themselves are the noise.
    assert 1 / 5 < drops[1] / drops[0] < 1 / 1.7


def test_a_margin_raises_the_detectable_drop() -> None:
    mine = results(80)
    small, large = (minimum_detectable_drop(mine, margin=m, alarm=0.01) for m in (0.0, 0.2))
    assert large > 0.2 > small


def noisy(rng: np.random.Generator, growth: float, rounds: int) -> np.ndarray:
    """Log ratios of a busy machine: some rounds are hit by something else."""
    hits = (rng.random(rounds) < 0.2) * rng.normal(0, 0.5, rounds)
    return math.log(growth) + rng.normal(0, 0.03, rounds) + hits


def test_false_alarms_stay_below_their_level_without_any_margin() -> None:
    rng = np.random.default_rng(0)
    verdicts = [
        compare_ratio(noisy(rng, 1, 20), margin=0, alarm=0.02, draws=200).verdict
        for _ in range(600)
    ]
    # 600 draws at 2 % give 12; 21 and more have a probability of one percent.
    assert sum(verdict == "worse" for verdict in verdicts) <= 20


def test_a_slow_down_of_ten_percent_is_found() -> None:
    rng = np.random.default_rng(1)
    verdicts = [
        compare_ratio(noisy(rng, 1.1, 30), margin=0.03, alarm=0.005, draws=200).verdict
        for _ in range(200)
    ]
    assert np.mean([verdict == "worse" for verdict in verdicts]) >= 0.95


def test_a_stored_ratio_adds_its_own_uncertainty() -> None:
    rng = np.random.default_rng(2)
    now, stored = noisy(rng, 2.2, 20), noisy(rng, 2.0, 20)
    alone = compare_ratio(now, margin=0.02, alarm=0.01)
    both = compare_ratio(now, stored, margin=0.02, alarm=0.01)
    assert both.spread > alone.spread
    assert both.loss == pytest.approx(math.log(1.1), abs=0.05)
    assert compare_ratio(stored, stored, margin=0.05, alarm=0.01).loss == 0


def test_an_interval_of_blocks_is_wider_where_blocks_differ() -> None:
    rng = np.random.default_rng(3)
    alike = rng.normal(10, 1, (10, 20))
    apart = alike + rng.normal(0, 3, (10, 1))
    widths = []
    for blocks in (alike, apart):
        low, high = interval(blocks.tolist(), 50)
        assert low <= np.median(blocks) <= high
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def of_class(boxes: list[int], hits: list[int], name: str = "cat") -> dict[str, ClassResults]:
    """Results in which so many objects of each image are there and found, and nothing else."""
    image = np.repeat(np.arange(len(hits)), hits).astype(np.int32)
    score = np.linspace(0.9, 0.5, len(image)).astype(np.float32)
    hit = np.ones(len(image), np.bool_)
    return {name: ClassResults(name, image, score, hit, np.array(boxes, np.int32))}


@pytest.mark.parametrize("now", [0, 1])
def test_one_object_tells_nothing(now: int) -> None:
    boxes = [1, *[0] * 29]
    before, after = of_class(boxes, boxes), of_class(boxes, [now, *[0] * 29])
    found = compare_precision(before, after, margin=0.01, alarm=0.01)
    assert found.verdict == "cannot tell" and found.few == ("cat",)
    assert 0 < found.beyond < 1
    assert -1 <= found.low <= found.loss <= found.high <= 1


def test_one_object_of_a_rare_class_does_not_decide_for_the_mean() -> None:
    boxes = [1, *[0] * 59]
    rare = of_class(boxes, boxes, "rare"), of_class(boxes, [0] * 60, "rare")
    usual = of_class([3] * 60, [3] * 60, "usual")
    found = compare_precision({**usual, **rare[0]}, {**usual, **rare[1]}, margin=0.01, alarm=0.01)
    assert found.loss == pytest.approx(0.5) and found.verdict == "cannot tell"
    assert found.few == ("rare",)


def test_many_objects_are_judged_as_before() -> None:
    same = of_class([2] * 50, [2] * 50)
    found = compare_precision(same, same, margin=0.01, alarm=0.01)
    assert (found.verdict, found.spread, found.few) == ("same", 0, ())
    lost = compare_precision(same, of_class([2] * 50, [1] * 50), margin=0.01, alarm=0.01)
    assert lost.verdict == "worse"


def test_chance_is_seldom_called_worse_with_few_objects() -> None:
    """The alarm holds where a detector finds each of a few objects by the same chance, twice."""
    rng = np.random.default_rng(0)
    boxes = [1] * 6 + [0] * 24
    alarms = 0
    for _ in range(200):
        sides = [of_class(boxes, [int(rng.random() < 0.7) * b for b in boxes]) for _ in range(2)]
        if not any(len(one["cat"].image) for one in sides):
            continue
        found = compare_precision(*sides, margin=0.01, alarm=0.01, draws=100)
        alarms += found.verdict == "worse"
    assert alarms <= 6
