"""Training of the built-in detectors: anchors, targets, losses, batches and the loop."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.artifact import read_manifest
from edge.built_in import BUILT_IN
from edge.data.datasets import load, open_dataset
from edge.data.metrics import evaluate_detections
from edge.data.world.world import CLASSES, Scene, render, scene_set
from edge.detections import Detections, iou_matrix
from edge.models.builtin import NAMES, build
from edge.models.checkpoint import load_safetensors
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg
from edge.models.initialise import initialise
from edge.models.squeezedet import SqueezeDet, SqueezeDetConfig, squeezedet_spec
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import Decoder, nms, preprocess
from edge.spec import HeadSpec, InputContract, ModelSpec
from edge.train.anchors import kmeans_anchors, shape_iou
from edge.train.fit import Schedule, fit, learning_rate
from edge.train.losses.ciou import ciou, convdet_loss, loss_for, yolo_loss
from edge.train.losses.targets import assign_convdet, assign_yolo
from tests.support.tools import load_tool

make_pool = load_tool("train/train_builtin").make_pool

HW = (64, 96)


def yolo_spec(scale_xy=2.0):
    small = HeadSpec.of_grid("a", "yolo", (8, 12), ((10.0, 12.0), (16.0, 30.0)), scale_xy=scale_xy)
    large = HeadSpec.of_grid("b", "yolo", (4, 6), ((40.0, 24.0),), scale_xy=scale_xy)
    return ModelSpec("tiny", "darknet", ("x", "y", "z"), InputContract(HW), (small, large))


def convdet_spec():
    anchors = ((10.0, 12.0), (16.0, 30.0), (40.0, 24.0))
    head = HeadSpec.of_grid("c", "convdet", (4, 6), anchors, class_activation="softmax")
    return ModelSpec("tiny", "squeezedet", ("x", "y", "z"), InputContract(HW, "stretch"), (head,))


def some_targets(seed, images=2, each=3):
    rng = np.random.default_rng(seed)
    rows = [
        (image, rng.integers(3), *rng.uniform((8, 8), (88, 56)), *rng.uniform(8, 44, 2))
        for image in range(images)
        for _ in range(each)
    ]
    return torch.tensor(np.array(rows), dtype=torch.float32)


def places(match):
    parts = (match.image, match.anchor, match.row, match.column)
    return list(zip(*(part.tolist() for part in parts), strict=True))


def from_centres(boxes):
    """xyxy of a pool's rows: class, centre, size."""
    return np.hstack([boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def logistic_loss(logit, wanted):
    return -wanted * math.log(sigmoid(logit)) - (1 - wanted) * math.log(1 - sigmoid(logit))


def corners(box):
    x, y, w, h = box
    return np.array([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])


def iou(a, b):
    return float(iou_matrix(corners(a), corners(b))[0, 0])


def test_anchors_are_the_centres_of_clear_clusters_small_to_large():
    rng = np.random.default_rng(0)
    centres = np.array([(10, 20), (60, 30), (100, 120)])
    sizes = np.concatenate([centre * rng.uniform(0.95, 1.05, (50, 2)) for centre in centres])
    assert np.allclose(kmeans_anchors(sizes, 3), centres, rtol=0.03)


def test_more_anchors_fit_better():
    sizes = np.random.default_rng(1).uniform(5, 200, (400, 2))
    fits = [shape_iou(sizes, kmeans_anchors(sizes, k)).max(axis=1).mean() for k in (1, 3, 9)]
    assert fits == sorted(fits)


def test_anchors_refuse_what_cannot_be_clustered():
    with pytest.raises(ValueError, match="different sizes"):
        kmeans_anchors(np.ones((9, 2)), 2)


def test_yolo_targets_are_where_the_definition_puts_them():
    spec, targets = yolo_spec(), some_targets(0)
    found = assign_yolo(targets, spec.heads, HW)
    anchors = [
        (h, a, size) for h, head in enumerate(spec.heads) for a, size in enumerate(head.anchors)
    ]
    wanted = set()
    for index, row in enumerate(targets.tolist()):
        fits = [iou((0, 0, *row[4:]), (0, 0, *size)) for *_, size in anchors]
        for (h, a, _), fit_of in zip(anchors, fits, strict=True):
            if fit_of > 0.3 or fit_of == max(fits):
                rows, columns = spec.heads[h].grid_hw
                x, y = row[2] * columns / HW[1], row[3] * rows / HW[0]
                dx, dy = (-1 if x % 1 < 0.5 else 1), (-1 if y % 1 < 0.5 else 1)
                for i, j in ((0, 0), (dx, 0), (0, dy)):
                    cell = int(x) + i, int(y) + j
                    if 0 <= cell[0] < columns and 0 <= cell[1] < rows:
                        wanted.add((h, int(row[0]), a, cell[1], cell[0], index))
    got = [
        (h, *(int(part) for part in parts))
        for h, m in enumerate(found)
        for parts in zip(m.image, m.anchor, m.row, m.column, m.target, strict=True)
    ]
    assert len(got) == len(set(got)) > len(targets)
    assert set(got) == wanted


def test_convdet_gives_each_anchor_one_object_and_each_object_an_anchor():
    spec = convdet_spec()
    for seed in range(20):
        targets = some_targets(seed, each=4)
        match = assign_convdet(targets, spec.heads[0], HW)
        assert len(set(places(match))) == len(match.target)
        assert torch.equal(match.image, targets[match.target, 0].long())
    alone = some_targets(3, images=4, each=1)
    assert set(assign_convdet(alone, spec.heads[0], HW).target.tolist()) == {0, 1, 2, 3}


def test_ciou_follows_its_definition():
    rng = np.random.default_rng(2)
    a, b = rng.uniform(5, 60, (2, 20, 4))
    got = ciou(torch.tensor(a), torch.tensor(b)).numpy()
    for (ax, ay, aw, ah), (bx, by, bw, bh), value in zip(a, b, got, strict=True):
        overlap = iou((ax, ay, aw, ah), (bx, by, bw, bh))
        wide = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
        high = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
        distance = ((ax - bx) ** 2 + (ay - by) ** 2) / (wide**2 + high**2)
        v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
        assert value == pytest.approx(overlap - distance - v * v / (1 - overlap + v), abs=1e-5)


def yolo_boxes(raw, head):
    """Every (n, a, r, c) of a raw head (N, A, 5+C, h, w) and its box, by YOLOv3's formulas."""
    rows, columns = head.grid_hw
    s = head.scale_xy
    for n, a, r, c in np.ndindex(len(raw), len(head.anchors), rows, columns):
        x, y, w, h = raw[n, a, :4, r, c].tolist()
        bx = (sigmoid(x) * s - (s - 1) / 2 + c) * HW[1] / columns
        by = (sigmoid(y) * s - (s - 1) / 2 + r) * HW[0] / rows
        size = head.anchors[a]
        yield (n, a, r, c), (bx, by, size[0] * math.exp(w), size[1] * math.exp(h))


@pytest.mark.parametrize("scale_xy", [1.0, 2.0])
def test_yolo_loss_equals_its_definition_in_plain_python(scale_xy):
    spec, targets = yolo_spec(scale_xy), some_targets(5)
    generator = torch.Generator().manual_seed(1)
    outputs = [
        torch.randn(2, head.channels(3), *head.grid_hw, generator=generator) for head in spec.heads
    ]
    box = objectness = label = 0.0
    count = 0
    matches = assign_yolo(targets, spec.heads, HW)
    for output, head, match in zip(outputs, spec.heads, matches, strict=True):
        raw = output.reshape(2, len(head.anchors), 8, *head.grid_hw).numpy()
        boxes = dict(yolo_boxes(raw, head))
        keys = places(match)
        count += len(keys)
        for key, target in zip(keys, match.target.tolist(), strict=True):
            own = torch.tensor([boxes[key]])
            box += 3.0 * (1 - float(ciou(own, targets[target : target + 1, 2:6])))
            n, a, r, c = key
            for k in range(3):
                label += logistic_loss(raw[n, a, 5 + k, r, c], float(k == int(targets[target, 1])))
        for key, value in boxes.items():
            n, a, r, c = key
            best = max(iou(value, t[2:]) for t in targets.tolist() if t[0] == n)
            if key in keys or best <= 0.6:
                objectness += logistic_loss(raw[n, a, 4, r, c], float(key in keys))
    total, parts = yolo_loss(outputs, targets, spec)
    assert parts["box"] == pytest.approx(box / count, rel=1e-4)
    assert parts["objectness"] == pytest.approx(objectness / count, rel=1e-4)
    assert parts["class"] == pytest.approx(label / count, rel=1e-4)
    assert total.item() == pytest.approx((box + objectness + label) / count, rel=1e-4)


def test_convdet_loss_equals_its_definition_in_plain_python():
    spec, targets = convdet_spec(), some_targets(6)
    head = spec.heads[0]
    raw = torch.randn(2, 24, 4, 6, generator=torch.Generator().manual_seed(2)) * 0.5
    match = assign_convdet(targets, head, HW)
    keys = places(match)
    aims = dict(zip(keys, match.target.tolist(), strict=True))
    box = objectness = label = 0.0
    for n, a, r, c in np.ndindex(2, 3, 4, 6):
        ax, ay = (c + 1) * HW[1] / 7, (r + 1) * HW[0] / 5
        aw, ah = head.anchors[a]
        values = raw[n, :, r, c].tolist()
        logits, confidence = values[a * 3 : a * 3 + 3], values[9 + a]
        dx, dy, dw, dh = values[12 + 4 * a : 16 + 4 * a]
        predicted = (ax + dx * aw, ay + dy * ah, aw * math.exp(dw), ah * math.exp(dh))
        if (n, a, r, c) in aims:
            _, k, x, y, w, h = targets[aims[n, a, r, c]].tolist()
            box += 5 * ((dx - (x - ax) / aw) ** 2 + (dy - (y - ay) / ah) ** 2)
            box += 5 * ((dw - math.log(w / aw)) ** 2 + (dh - math.log(h / ah)) ** 2)
            label += math.log(sum(math.exp(v) for v in logits)) - logits[int(k)]
            objectness += logistic_loss(confidence, iou(predicted, (x, y, w, h)))
        elif max(iou(predicted, t[2:]) for t in targets.tolist() if t[0] == n) <= 0.6:
            objectness += logistic_loss(confidence, 0.0)
    _, parts = convdet_loss(raw, targets, spec)
    assert len(keys) >= len(targets) - 1
    assert parts["box"] == pytest.approx(box / len(keys), rel=1e-4)
    assert parts["objectness"] == pytest.approx(objectness / len(keys), rel=1e-4)
    assert parts["class"] == pytest.approx(label / len(keys), rel=1e-4)


@pytest.mark.parametrize("spec", [yolo_spec(), convdet_spec()], ids=["yolo", "convdet"])
def test_pictures_without_objects_train_the_objectness_alone(spec):
    outputs = [
        torch.randn(1, head.channels(3), *head.grid_hw, requires_grad=True) for head in spec.heads
    ]
    total, parts = loss_for(spec)(outputs, torch.zeros(0, 6))
    total.backward()
    assert parts["box"] == parts["class"] == 0 and parts["objectness"] > 0


def test_learning_rate_warms_up_and_falls_by_a_cosine():
    schedule = Schedule(steps=1000, peak=0.1, warmup=100)
    rates = [learning_rate(step, schedule) for step in range(1000)]
    assert rates[0] == pytest.approx(0.001) and max(rates) == pytest.approx(0.1)
    assert rates[550] == pytest.approx(0.1 * 0.505, rel=1e-6)
    assert rates[:100] == sorted(rates[:100]) and rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] < 0.0011


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_training_sees_exactly_what_the_runtime_feeds(resize):
    contract = InputContract((256, 416), resize)
    scenes = list(scene_set(2, 900))
    pool = make_pool(scenes, 2, contract)
    for index, scene in enumerate(scenes):
        tensor, fit_of = preprocess(scene.image, contract)
        assert np.allclose(pool.tensor(pool.images[index : index + 1]).numpy(), tensor, atol=1e-6)
        xyxy = from_centres(pool.boxes[index])
        assert np.allclose(fit_of.to_source(xyxy), scene.xyxy, atol=1e-2)


def test_batches_flip_boxes_with_their_picture():
    image = np.zeros((64, 96, 3), np.uint8)
    image[10:30, 12:40] = 200
    scene = Scene(image, np.array([(12, 10, 40, 30)], np.float32), np.array([1], np.int32))
    pool = make_pool([scene], 1, InputContract(HW))
    images, targets = pool.batch(np.random.default_rng(0), 16)
    assert images.shape == (16, 3, 64, 96) and images.dtype == torch.float32
    left = set()
    for index, row in enumerate(targets.tolist()):
        ys, xs = np.nonzero(images[index].sum(dim=0).numpy() > 0.5)
        assert row[:2] == [index, 1]
        centre = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
        assert row[2:] == pytest.approx([*centre, 28, 20])
        left.add(int(xs.min()))
    assert left == {12, 56}


def test_the_same_generator_gives_the_same_batch():
    pool = make_pool(scene_set(3, 5), 3, InputContract((64, 96)))
    one, two = (pool.batch(np.random.default_rng(4), 5) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


TINY = """
[net]
width=96
height=64
channels=3
[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=32
size=3
stride=2
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=32
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=30
size=3
stride=1
pad=1
activation=linear
[yolo]
mask=0,1,2
anchors=8,12, 16,14, 30,24
classes=5
num=3
scale_x_y=2.0
"""


def tiny_yolo():
    model = Darknet(parse_cfg(TINY, "tiny.cfg"))
    return model, model.spec("tiny", CLASSES, "stretch")


def tiny_squeezedet():
    config = SqueezeDetConfig(
        HW, CLASSES, ((8.0, 12.0), (16.0, 14.0), (30.0, 24.0)), conv1=(16, 3),
        fires=((16, 24, 24),), pools=(), batch_norm=True, scale=(1 / 255,) * 3, mean=(0.0,) * 3,
    )  # fmt: skip
    return SqueezeDet(config), squeezedet_spec(config, "tiny")


@pytest.mark.parametrize("make", [tiny_yolo, tiny_squeezedet])
def test_two_pictures_are_learned_by_heart_and_found_by_the_runtime(make):
    model, spec = make()
    initialise(model, spec, 0)
    pool = make_pool([render(s) for s in (148, 320)], 2, spec.contract)
    targets = torch.from_numpy(
        np.concatenate([np.insert(boxes, 0, i, axis=1) for i, boxes in enumerate(pool.boxes)])
    )
    images = pool.tensor(pool.images)
    schedule = Schedule(steps=260, peak=1e-2, warmup=20, average=0.9)
    lines = []
    model = fit(model, loss_for(spec), lambda: (images, targets), schedule, lines.append, every=130)
    assert len(lines) == 2 and lines[-1].startswith("step   260")
    for index, boxes in enumerate(pool.boxes):
        with torch.no_grad():
            raw = [out.numpy() for out in model(images[index : index + 1])]
        found = nms(Decoder(spec)(raw, 0.3))
        assert recall(found, boxes) == 1.0
        assert len(found) <= len(boxes) + 1


def recall(found: Detections, boxes):
    overlap = iou_matrix(from_centres(boxes), found.xyxy) * (boxes[:, :1] == found.class_id[None])
    return float((overlap.max(axis=1, initial=0) > 0.5).mean())


def test_training_stops_when_the_loss_is_no_number():
    model, spec = tiny_yolo()
    images = torch.full((1, 3, *HW), float("nan"))
    with pytest.raises(FloatingPointError, match="learning rate"):
        fit(model, loss_for(spec), lambda: (images, torch.zeros(0, 6)), Schedule(1), print)


def test_the_built_in_detectors_together_hold_at_most_720_thousand_parameters():
    sizes = []
    for name in NAMES:
        model, spec, _ = build(name)
        assert spec.classes == CLASSES and spec.contract.hw == (256, 416)
        outputs = model(torch.zeros(1, 3, 256, 416))
        heads = [(head.channels(5), *head.grid_hw) for head in spec.heads]
        assert [tuple(out.shape[1:]) for out in outputs] == heads
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert sum(sizes) <= 720_000


def test_an_unknown_built_in_detector_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="tiny-yolo-scenes"):
        build("huge-yolo")


def test_the_training_command_leaves_a_detector_that_runs_and_can_be_trained_further(tmp_path):
    root, name = Path(__file__).parent.parent, "squeezedet-scenes"
    command = [sys.executable, "tools/train/train_builtin.py", name, "--out", str(tmp_path)]
    command += ["--scenes", "4", "--steps", "2", "--batch", "2", "--images", "2"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run(command, check=True, cwd=root, env=environment, stdout=subprocess.DEVNULL)
    log = (tmp_path / f"{name}.log").read_text("utf-8")
    assert "2 fresh scenes" in log and "--steps 2" in log
    manifest = read_manifest(tmp_path / f"{name}.onnx")
    module, spec = load_safetensors(tmp_path / f"{name}.safetensors")
    assert manifest.spec == spec and dict(manifest.arguments)["seed"]
    frame = render(1).image
    with Detector.open(tmp_path / f"{name}.onnx") as detector, torch.no_grad():
        tensor, _ = preprocess(frame, spec.contract)
        wanted = module(torch.from_numpy(tensor.copy()))[0].numpy()
        assert np.allclose(detector.backend.run(tensor)[0], wanted, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_detectors_know_their_world(name):
    _, spec, _ = build(name)
    asset = BUILT_IN[name]
    assert read_manifest(asset).spec == spec
    items, found = [], []
    dataset = open_dataset("scenes://?seed=2000000&count=40")
    with Detector.open(asset, score=0.005, multi_label=True) as detector:
        for item in dataset.items:
            frame, item = load(item)
            items.append(item)
            found.append(detector(frame))
    figures = evaluate_detections(replace(dataset, items=tuple(items)), found)
    assert figures.map50 > 0.8


def test_the_shipped_detectors_fit_into_three_megabytes():
    assert sum(BUILT_IN[name].stat().st_size for name in NAMES) < 2.9e6


def test_training_rounds_denormal_numbers_to_zero_and_leaves_them_alone_afterwards():
    model, small = torch.nn.Linear(1, 1), torch.tensor([1e-40])
    seen = []

    def loss(outputs, targets):
        seen.append(float(small * 0.5))
        return outputs[0].sum(), {}

    batch = torch.ones(1, 1), torch.zeros(1)
    fit(model, loss, lambda: batch, Schedule(1, 1e-3, 1), print)
    assert seen == [0.0]
    assert float(small * 0.5) > 0
