"""Accuracy equals what pycocotools and the definitions say."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.data.datasets import Dataset, open_dataset
from edge.data.items import EVERY_CLASS, Label, make_item
from edge.data.metrics import (
    ClassAccuracy,
    Metrics,
    SizeAccuracy,
    evaluate_detections,
    voc_ap,
    voc_map,
)
from edge.detections import Detections
from edge.errors import DataError
from edge.files import to_plain

Box = tuple[float, float, float, float]
A: Box = (10, 10, 50, 50)
B: Box = (60, 60, 100, 100)
FAR: Box = (200, 200, 240, 240)


def dataset(*images: list[Label], classes: tuple[str, ...] = ("cat", "dog")) -> Dataset:
    items = tuple(make_item(Path(f"{i}.jpg"), labels)[0] for i, labels in enumerate(images))
    return Dataset("hand", "coco", classes, items, "hand")


def box(class_id: int, xyxy: Box, **flags: bool) -> Label:
    return Label(class_id, xyxy, "hand", **flags)  # type: ignore[arg-type]


def found(*rows: tuple[int, float, Box]) -> Detections:
    if not rows:
        return Detections.empty()
    class_id, score, xyxy = zip(*rows, strict=True)
    return Detections(np.array(xyxy), np.array(score), np.array(class_id))  # type: ignore[arg-type]


def noisy(truth: Dataset, seed: int) -> list[Detections]:
    """Most objects, displaced, some twice or with a wrong class, and some detections of nothing."""
    rng = np.random.default_rng(seed)
    every = []
    for item in truth.items:
        own = np.flatnonzero((rng.random(len(item)) < 0.8) & (item.class_id >= 0))
        own = np.concatenate((own, own[rng.random(len(own)) < 0.2]))
        sides = np.tile(item.xyxy[own, 2:] - item.xyxy[own, :2], 2)
        xyxy = item.xyxy[own] + rng.normal(0, 0.08, (len(own), 4)) * sides
        class_id = np.where(rng.random(len(own)) < 0.9, item.class_id[own], 5)
        nothing = rng.uniform(0, 300, (8, 2))
        xyxy = np.concatenate((xyxy, np.hstack((nothing, nothing + rng.uniform(5, 90, (8, 2))))))
        class_id = np.concatenate((class_id, rng.integers(0, len(truth.classes), 8)))
        every.append(Detections(xyxy, rng.random(len(xyxy)), class_id))  # type: ignore[arg-type]
    return every


def by_pycocotools(path: Path, truth: Dataset, every: list[Detections]) -> np.ndarray:
    """The twelve figures that pycocotools itself prints for this annotation file."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    document = json.loads(path.read_text())
    image_id = {image["file_name"]: image["id"] for image in document["images"]}
    category = [one["id"] for one in document["categories"]]
    results = []
    for item, one in zip(truth.items, every, strict=True):
        for xyxy, score, label in zip(one.xyxy, one.score, one.class_id, strict=True):
            x1, y1, x2, y2 = (float(side) for side in xyxy)
            xywh = [x1, y1, x2 - x1, y2 - y1]
            results.append(
                {
                    "image_id": image_id[item.image.name],
                    "category_id": category[label],
                    "bbox": xywh,
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        ran = COCOeval(coco, coco.loadRes(results), "bbox")
        ran.evaluate()
        ran.accumulate()
        ran.summarize()
    return np.asarray(ran.stats)


def test_coco_figures_equal_pycocotools_own(
    edge_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = edge_data / "coco" / "val" / "annotations.json"
    truth = open_dataset(path)
    every = noisy(truth, 3)
    stats = by_pycocotools(path, truth, every)
    capfd.readouterr()
    ours = evaluate_detections(truth, every)
    assert capfd.readouterr().out == ""
    sizes = [ours.by_size[size].map50_95 for size in ("small", "medium", "large")]
    assert 0.1 < stats[0] < 0.9
    np.testing.assert_allclose(
        [ours.map50_95, ours.map50, *sizes], stats[[0, 1, 3, 4, 5]], atol=2e-4
    )
    assert len(ours.by_class) == 80
    mean = np.mean([one.ap50_95 for one in ours.by_class.values()])
    assert mean == pytest.approx(ours.map50_95)


def test_perfect_detections_score_one() -> None:
    truth = dataset([box(0, A), box(1, B)], [])
    ours = evaluate_detections(truth, [found((0, 0.9, A), (1, 0.8, B)), found()])
    assert (ours.map50, ours.map50_95, ours.images) == (1, 1, 2)
    assert ours.by_class["cat"] == ClassAccuracy(ap50=1, ap50_95=1, boxes=1)
    assert ours.by_size == {"medium": SizeAccuracy(map50=1, map50_95=1)}


def test_no_detections_score_zero() -> None:
    ours = evaluate_detections(dataset([box(0, A)]), [found()])
    assert (ours.map50, ours.map50_95) == (0, 0)


def test_a_false_positive_above_the_hit_halves_precision() -> None:
    truth = dataset([box(0, A), box(0, B)])
    rows = ((0, 0.9, FAR), (0, 0.8, A), (0, 0.7, B))
    # Precision 1/2 at recall 1/2 and 2/3 at recall 1: the envelope is 2/3 throughout.
    assert evaluate_detections(truth, [found(*rows)]).map50 == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (box(0, B, crowd=True), "crowd"),
        (box(0, B, ignore=True), "difficult"),
        (box(EVERY_CLASS, B, crowd=True), "region of every class"),
    ],
)
def test_what_need_not_be_found_is_neither_hit_nor_miss(label: Label, why: str) -> None:
    truth = dataset([box(0, A), label])
    hit, on_it = (0, 0.8, A), (0, 0.9, B)
    assert evaluate_detections(truth, [found(hit)]).map50 == 1, why
    assert evaluate_detections(truth, [found(on_it, hit)]).map50 == 1, why
    assert evaluate_detections(truth, [found((0, 0.9, FAR), hit)]).map50 == pytest.approx(0.5)


def test_only_a_region_takes_more_than_one_detection() -> None:
    twice = found((0, 0.9, B), (0, 0.85, B), (0, 0.8, A))
    region, difficult = (
        evaluate_detections(dataset([box(0, A), box(0, B, **flag)]), [twice]).map50
        for flag in ({"crowd": True}, {"ignore": True})
    )
    assert (region, difficult) == (1, pytest.approx(0.5))


def test_classes_join_by_name_and_missing_ones_are_told() -> None:
    truth = dataset([box(0, A), box(1, B), box(2, FAR)], classes=("tvmonitor", "cow", "emu"))
    model = ("cow", "person", "TV")
    ours = evaluate_detections(truth, [found((2, 0.9, A), (0, 0.8, B), (1, 0.99, A))], model)
    assert (ours.map50, ours.left_out) == (1, {"emu": 1})
    assert sorted(ours.by_class) == ["TV", "cow"]


def test_kitti_van_is_no_false_car() -> None:
    labels = [box(0, A), box(1, B)]
    truth = replace(dataset(labels, classes=("Car", "Van", "Person_sitting")), kind="kitti")
    rows = found((0, 0.9, B), (0, 0.8, A))
    assert evaluate_detections(truth, [rows], ("car", "pedestrian")).map50 == 1
    assert evaluate_detections(truth, [rows], ("car", "van")).map50 == pytest.approx(0.25)


def test_matches_hold_what_each_detection_did() -> None:
    truth = dataset([], [box(0, A), box(0, B)])
    ours = evaluate_detections(truth, [found(), found((0, 0.3, FAR), (0, 0.9, A))])
    (match,) = ours.matches
    assert (match.image, match.name, match.boxes) == (1, "cat", 2)
    assert match.score == pytest.approx([0.9, 0.3])
    assert match.matched.tolist() == [[True, False]] * 10
    assert not match.ignored.any()


def test_figures_are_plain_json() -> None:
    ours: Metrics = evaluate_detections(dataset([box(0, A)]), [found((0, 0.9, A))])
    assert json.loads(json.dumps(to_plain(ours.by_class)))["cat"]["boxes"] == 1


def test_wrong_arguments_are_refused() -> None:
    truth = dataset([box(0, A)])
    with pytest.raises(ValueError, match="2 detections for 1 images"):
        evaluate_detections(truth, [found(), found()])
    with pytest.raises(ValueError, match="in_pixels"):
        waiting = replace(truth, items=(replace(truth.items[0], fraction=True),))
        evaluate_detections(waiting, [found()])
    with pytest.raises(DataError, match="no box"):
        evaluate_detections(dataset([]), [found()])


@pytest.mark.parametrize(
    ("recall", "precision", "area", "eleven"),
    [
        ([], [], 0, 0),
        ([1.0], [1.0], 1, 1),
        ([0.5], [1.0], 0.5, 6 / 11),
        ([0.0, 0.5, 1.0], [0.0, 0.5, 2 / 3], 2 / 3, 2 / 3),
        # 0.5 up to recall 0.4 (with the dip filled), 0.25 from there to 0.8, nothing beyond.
        ([0.2, 0.2, 0.4, 0.8], [0.4, 0.2, 0.5, 0.25], 0.3, (5 * 0.5 + 4 * 0.25) / 11),
    ],
)
def test_voc_ap_by_definition(
    recall: list[float], precision: list[float], area: float, eleven: float
) -> None:
    arrays = np.array(recall), np.array(precision)
    assert voc_ap(*arrays) == pytest.approx(area)
    assert voc_ap(*arrays, method="11-point") == pytest.approx(eleven)


def test_voc_map_by_hand() -> None:
    truth = dataset([box(0, A), box(0, B), box(1, FAR, ignore=True)], [box(1, A)])
    every = [found((0, 0.9, A), (0, 0.8, A), (0, 0.7, B), (1, 0.9, FAR)), found((1, 0.5, A))]
    # cat: right, wrong (A is taken), right: 1/2 * 1 + 1/2 * 2/3; dog: the difficult one is void.
    assert voc_map(truth, every) == {"cat": pytest.approx(5 / 6), "dog": pytest.approx(1)}
    assert voc_map(truth, [found(), found()]) == {"cat": 0, "dog": 0}


def test_voc_area_and_coco_agree_where_both_are_defined(edge_data: Path) -> None:
    truth = open_dataset(edge_data / "bccd")
    every = noisy(truth, 4)
    ours = evaluate_detections(truth, every).map50
    theirs = float(np.mean(list(voc_map(truth, every).values())))
    # 101 samples of the curve against its exact area; the best match of each may differ.
    assert theirs == pytest.approx(ours, abs=0.02)
