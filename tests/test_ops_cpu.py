"""Pre- and post-processing on the CPU against OpenCV's blobs and loops by definition."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.detections import Detections
from edge.letterbox import Letterbox
from edge.runtime.ops_cpu import Decoder, Preprocessor, nms, preprocess
from edge.spec import HeadSpec, InputContract, ModelSpec, ScoreCoding
from tests.support.tolerances import BLOB_ATOL, BOX_ATOL_PX, DECODE_RTOL

RNG = np.random.default_rng(7)
SIZES = [(48, 64), (33, 47), (5, 300), (300, 5), (1, 1), (1, 97), (720, 1280), (96, 96)]
CONTRACTS = {
    "darknet": InputContract((96, 96), resize="stretch"),
    "squeezedet": InputContract(
        (48, 156),
        resize="stretch",
        channel_order="BGR",
        mean=(103.939, 116.779, 123.68),
        scale=(1.0, 1.0, 1.0),
    ),
    "every field": InputContract(
        (50, 38), resize="stretch", mean=(1.5, 0.0, -3.0), scale=(1 / 255, 2.0, 1 / 58)
    ),
}


def picture(hw: tuple[int, int]) -> np.ndarray:
    return RNG.integers(0, 256, (*hw, 3), np.uint8)


def blob(image: np.ndarray, contract: InputContract) -> np.ndarray:
    """OpenCV's blob; it takes one scale and subtracts the mean in the blob's channel order."""
    swap = contract.channel_order == "RGB"
    raw = cv2.dnn.blobFromImage(image, 1.0, contract.hw[::-1], contract.mean, swapRB=swap)
    return raw * np.array(contract.scale, np.float32).reshape(1, 3, 1, 1)


def padded(image: np.ndarray, contract: InputContract) -> np.ndarray:
    """A letterbox by hand: resize, then a border."""
    fit = Letterbox.fit(image.shape[:2], contract)
    resized = cv2.resize(image, fit.resized_hw[::-1], interpolation=cv2.INTER_LINEAR)
    left, top = fit.pad_xy
    bottom = contract.hw[0] - top - fit.resized_hw[0]
    right = contract.hw[1] - left - fit.resized_hw[1]
    grey = [contract.pad_value] * 3
    return cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=grey)


def close(found: np.ndarray, wanted: np.ndarray, contract: InputContract) -> None:
    atol = BLOB_ATOL * max(1.0, 255 * max(contract.scale))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("name", CONTRACTS)
def test_stretch_equals_opencvs_blob(name: str, hw: tuple[int, int]) -> None:
    contract, image = CONTRACTS[name], picture(hw)
    tensor, fit = preprocess(image, contract)
    assert tensor.shape == (1, 3, *contract.hw) and tensor.dtype == np.float32
    assert fit == Letterbox.fit(hw, contract)
    close(tensor, blob(image, contract), contract)


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("name", CONTRACTS)
def test_letterbox_equals_opencvs_blob_of_a_padded_image(name: str, hw: tuple[int, int]) -> None:
    contract = replace(CONTRACTS[name], resize="letterbox", pad_value=114)
    image = picture(hw)
    tensor, _ = preprocess(image, contract)
    close(tensor, blob(padded(image, contract), contract), contract)


def test_sizes_may_change_from_frame_to_frame() -> None:
    contract = InputContract((64, 64))
    preprocessor = Preprocessor(contract)
    for hw in [(40, 60), (60, 40), (64, 64), (10, 64), (40, 60), (40, 60)]:
        image = picture(hw)
        tensor, fit = preprocessor(image)
        assert fit.source_hw == hw
        close(tensor, blob(padded(image, contract), contract), contract)


VIEWS = {
    "columns": lambda image: image[:, 3:-2],
    "every second": lambda image: image[::2, ::2],
    "upside down": lambda image: image[::-1],
    "mirrored": lambda image: image[:, ::-1],
    "RGB to BGR": lambda image: image[..., ::-1],
    "transposed": lambda image: image.transpose(1, 0, 2),
    "Fortran": np.asfortranarray,
    "planes": lambda image: np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
}


@pytest.mark.parametrize("view", VIEWS)
def test_frames_need_not_be_contiguous(view: str) -> None:
    contract = InputContract((64, 64))
    image = VIEWS[view](picture((50, 40)))
    assert not image.flags.c_contiguous
    tensor, _ = preprocess(image, contract)
    assert np.array_equal(tensor, preprocess(np.ascontiguousarray(image), contract)[0])


def test_a_read_only_frame_is_read() -> None:
    image = picture((50, 40))
    image.flags.writeable = False
    assert np.ptp(preprocess(image, InputContract((64, 64)))[0]) > 0


@pytest.mark.parametrize(
    ("mean", "scale", "quick"),
    [
        ((0, 0, 0), (1 / 255,) * 3, True),
        ((103.939, 116.779, 123.68), (1, 1, 1), False),
        ((0, 0, 0), (1 / 255, 1 / 128, 1.0), True),
        ((123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375), False),
        ((0, 0, 0), (1e-30, 1, 1), False),
    ],
)
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_every_byte_becomes_the_number_of_the_contract(
    mean: tuple[float, ...], scale: tuple[float, ...], quick: bool, order: Any
) -> None:
    contract = InputContract((16, 16), "stretch", channel_order=order, mean=mean, scale=scale)  # type: ignore[arg-type]
    preprocessor = Preprocessor(contract)
    assert (preprocessor._divisor is not None) == quick
    image = np.random.default_rng(0).permutation(768).reshape(16, 16, 3).astype(np.uint8)
    ordered = image[..., ::-1] if order == "RGB" else image
    wanted = ((ordered.astype(np.float64) - mean) * scale).astype(np.float32)
    assert np.array_equal(preprocessor(image)[0][0], wanted.transpose(2, 0, 1))


@pytest.mark.parametrize("hw", [(50, 40), (40, 50)])
def test_buffers_are_allocated_once(hw: tuple[int, int]) -> None:
    preprocessor = Preprocessor(InputContract((64, 64)))
    first, _ = preprocessor(picture(hw))
    before = first.copy()
    buffers = [id(preprocessor._resized), *(id(plane) for plane in preprocessor._split)]
    image = picture(hw)
    second, _ = preprocessor(image)
    assert second is first
    assert not np.array_equal(second, before)
    assert [id(preprocessor._resized), *(id(plane) for plane in preprocessor._split)] == buffers
    resized = padded(image, InputContract((64, 64)))
    left, top = Letterbox.fit(hw, InputContract((64, 64))).pad_xy
    height, width = preprocessor._resized.shape[:2]
    assert np.array_equal(preprocessor._resized, resized[top : top + height, left : left + width])
    assert np.array_equal(np.dstack(preprocessor._split), preprocessor._resized)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((40, 50), np.uint8),
        np.zeros((40, 50, 1), np.uint8),
        np.zeros((40, 50, 4), np.uint8),
        np.zeros((1, 40, 50, 3), np.uint8),
        np.zeros((40, 50, 3), np.float32),
        np.zeros((40, 50, 3), np.uint16),
        np.zeros((0, 50, 3), np.uint8),
    ],
    ids=lambda frame: f"{frame.shape} {frame.dtype}",
)
def test_other_frames_are_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a frame is \(H, W, 3\) uint8|cannot be resized"):
        preprocess(frame, InputContract((64, 64)))


# Decoding: the loops below follow the papers' formulas cell by cell in Python's float64.


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def probabilities(logits: list[float], activation: str) -> list[float]:
    if activation == "softmax":
        top = max(logits)
        powers = [math.exp(x - top) for x in logits]
        return [power / sum(powers) for power in powers]
    return [sigmoid(x) for x in logits] if activation == "sigmoid" else list(logits)


def yolo_cells(
    raw: np.ndarray, head: HeadSpec, classes: int, hw: tuple[int, int]
) -> Iterator[tuple[list[float], float, list[float]]]:
    rows, columns = head.grid_hw
    for a, (width, height) in enumerate(head.anchors):
        for y in range(rows):
            for x in range(columns):
                at = a * (5 + classes)
                tx, ty, tw, th, to, *logits = map(float, raw[0, at : at + 5 + classes, y, x])
                s = head.scale_xy
                cx = (x + s * sigmoid(tx) - (s - 1) / 2) / columns * hw[1]
                cy = (y + s * sigmoid(ty) - (s - 1) / 2) / rows * hw[0]
                w, h = width * math.exp(tw), height * math.exp(th)
                box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                yield box, sigmoid(to), probabilities(logits, head.class_activation)


def convdet_cells(
    raw: np.ndarray, head: HeadSpec, classes: int, hw: tuple[int, int]
) -> Iterator[tuple[list[float], float, list[float]]]:
    """Upstream's layout: all class logits, all confidences, all deltas; each by anchor."""
    rows, columns = head.grid_hw
    count = len(head.anchors)
    for a, (width, height) in enumerate(head.anchors):
        for y in range(rows):
            for x in range(columns):
                cell = raw[0, :, y, x].astype(float)
                logits = cell[a * classes : (a + 1) * classes].tolist()
                confidence = sigmoid(cell[count * classes + a])
                start = count * (classes + 1) + 4 * a
                dx, dy, dw, dh = cell[start : start + 4].tolist()
                cx = (x + 1) * hw[1] / (columns + 1) + dx * width
                cy = (y + 1) * hw[0] / (rows + 1) + dy * height
                w, h = width * math.exp(dw), height * math.exp(dh)
                box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                yield box, confidence, probabilities(logits, head.class_activation)


def by_definition(
    raw: list[np.ndarray], spec: ModelSpec, score: float, multi_label: bool
) -> list[tuple[int, float, list[float]]]:
    found = []
    for array, head in zip(raw, spec.heads, strict=True):
        cells = convdet_cells if head.kind == "convdet" else yolo_cells
        for box, objectness, chances in cells(array, head, len(spec.classes), spec.contract.hw):
            best = max(range(len(chances)), key=chances.__getitem__)
            for label in range(len(chances)) if multi_label else [best]:
                if objectness * chances[label] > score:
                    found.append((label, objectness * chances[label], box))
    return found


ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0))
CLASSES = ("a", "b", "c", "d")


def model(kind: str, activation: str, scale_xy: float = 1.0, grids: Any = ((3, 5),)) -> ModelSpec:
    heads = tuple(
        HeadSpec.of_grid(f"head{i}", kind, grid, ANCHORS[: 3 - i], activation, scale_xy)
        for i, grid in enumerate(grids)
    )
    return ModelSpec("net", "darknet", CLASSES, InputContract((96, 160)), heads)


def heads_of(spec: ModelSpec, spread: float = 2.0, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(0, spread, (1, head.channels(len(spec.classes)), *head.grid_hw)).astype("f4")
        for head in spec.heads
    ]


DECODERS = {
    "region softmax": model("region", "softmax"),
    "region sigmoid": model("region", "sigmoid"),
    "yolo": model("yolo", "sigmoid"),
    "yolo linear": model("yolo", "linear"),
    "yolo of two heads, scaled": model("yolo", "sigmoid", 1.05, ((3, 5), (6, 10))),
    "yolo strongly scaled": model("yolo", "sigmoid", 2.0),
    "convdet softmax": model("convdet", "softmax"),
    "convdet sigmoid": model("convdet", "sigmoid"),
    "convdet of two heads": model("convdet", "softmax", 1.0, ((3, 5), (4, 7))),
}


def assert_same(found: Detections, wanted: list[tuple[int, float, list[float]]]) -> None:
    """Whatever the order."""
    assert len(found) == len(wanted) > 0
    mine = sorted(
        zip(found.class_id.tolist(), found.score.tolist(), found.xyxy.tolist(), strict=True),
        key=lambda each: (each[0], each[2]),
    )
    expected = sorted(wanted, key=lambda each: (each[0], each[2]))
    assert [each[0] for each in mine] == [each[0] for each in expected]
    scores = [each[1] for each in expected]
    np.testing.assert_allclose([each[1] for each in mine], scores, rtol=DECODE_RTOL)
    boxes = np.array([each[2] for each in expected])
    np.testing.assert_allclose(
        np.array([each[2] for each in mine]), boxes, rtol=DECODE_RTOL, atol=BOX_ATOL_PX
    )


@pytest.mark.parametrize("score", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("name", DECODERS)
def test_decode_equals_a_loop_over_cells(name: str, score: float) -> None:
    spec = DECODERS[name]
    raw = heads_of(spec)
    if "linear" in name:  # a linear class head holds probabilities already
        raw = [np.clip(np.abs(array) / 5, 0, 1) for array in raw]
    assert_same(Decoder(spec)(raw, score), by_definition(raw, spec, score, False))


@pytest.mark.parametrize("name", ["yolo", "yolo of two heads, scaled", "convdet sigmoid"])
def test_multi_label_gives_every_class_of_an_anchor(name: str) -> None:
    spec = DECODERS[name]
    raw = heads_of(spec)
    found = Decoder(spec, multi_label=True)(raw, 0.1)
    wanted = by_definition(raw, spec, 0.1, True)
    assert len(wanted) > len(by_definition(raw, spec, 0.1, False))
    assert_same(found, wanted)


def test_multi_label_means_nothing_to_softmax() -> None:
    spec = DECODERS["region softmax"]
    raw = heads_of(spec)
    assert_same(Decoder(spec, multi_label=True)(raw, 0.1), by_definition(raw, spec, 0.1, False))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_nothing_found_is_an_empty_result(name: str, multi_label: bool) -> None:
    spec = DECODERS[name]
    decode = Decoder(spec, multi_label=multi_label)
    quiet = [np.full_like(array, -20) for array in heads_of(spec)]
    for score in (0.25, 1.0):
        found = decode(quiet, score)
        assert len(found) == 0 and found.xyxy.shape == (0, 4)
        assert len(nms(found)) == 0


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_nan_never_comes_out(name: str, multi_label: bool) -> None:
    spec = DECODERS[name]
    raw = heads_of(spec)
    rng = np.random.default_rng(1)
    for array in raw:
        array[rng.random(array.shape) < 0.1] = np.nan
    decode = Decoder(spec, multi_label=multi_label)
    for score in (0.0, 0.1):
        found = decode(raw, score)
        assert len(found) > 0
        assert np.isfinite(found.xyxy).all() and np.isfinite(found.score).all()
        assert len(nms(found)) > 0
    assert len(decode([np.full_like(array, np.nan) for array in raw], 0.0)) == 0


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("huge", [90.0, 1e4, 1e30])
@pytest.mark.parametrize("name", [name for name in DECODERS if "linear" not in name])
def test_huge_logits_do_not_overflow(name: str, huge: float, multi_label: bool) -> None:
    spec = DECODERS[name]
    raw = [np.sign(array) * np.float32(huge) for array in heads_of(spec)]
    # Underflow to zero is the right answer here, and numpy does not warn of it either.
    with np.errstate(all="raise", under="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Decoder(spec, multi_label=multi_label)(raw, 0.25)
    assert np.isfinite(found.xyxy).all() and np.isfinite(found.score).all()
    assert ((found.score > 0.25) & (found.score <= 1)).all()


@pytest.mark.parametrize("name", [name for name in DECODERS if "linear" not in name])
def test_infinite_logits_come_out_finite_or_not_at_all(name: str) -> None:
    raw = heads_of(DECODERS[name])
    for array in raw:
        array[:, ::3] = np.inf
        array[:, 1::7] = -np.inf
    with np.errstate(all="ignore"):
        found = Decoder(DECODERS[name])(raw, 0.1)
    assert np.isfinite(found.xyxy).all() and np.isfinite(found.score).all()


def test_a_gate_leaves_the_same_as_no_gate() -> None:
    spec = DECODERS["yolo of two heads, scaled"]
    raw = heads_of(spec)
    everything = Decoder(spec)(raw, 0.0)
    gated = Decoder(spec)(raw, 0.2)
    picked = everything[everything.score > 0.2]
    assert 0 < len(gated) < len(everything)
    assert np.array_equal(gated.xyxy, picked.xyxy)
    assert np.array_equal(gated.score, picked.score)


def test_raw_outputs_that_do_not_fit_are_refused() -> None:
    spec = DECODERS["yolo of two heads, scaled"]
    raw = heads_of(spec)
    with pytest.raises(ValueError, match="1 raw outputs for heads that read 2"):
        Decoder(spec)(raw[:1], 0.1)
    with pytest.raises(ValueError):
        Decoder(spec)([raw[0][:, :-1], raw[1]], 0.1)


def test_heads_of_different_activations_are_refused() -> None:
    spec = DECODERS["yolo of two heads, scaled"]
    mixed = (spec.heads[0], replace(spec.heads[1], score=ScoreCoding("softmax")))
    with pytest.raises(ValueError, match="different codings"):
        Decoder(replace(spec, heads=mixed))


# Suppression.


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return inter / (area - inter)


def greedy(found: Detections, iou: float, limit: int) -> list[int]:
    """Suppression by its definition; equal scores in the order they come."""
    boxes, labels = found.xyxy.astype(float).tolist(), found.class_id.tolist()
    kept: list[int] = []
    for i in sorted(range(len(found)), key=lambda i: -found.score[i]):
        if all(labels[i] != labels[k] or overlap(boxes[i], boxes[k]) <= iou for k in kept):
            kept.append(i)
    return kept[:limit]


box = st.tuples(
    st.integers(-20, 40), st.integers(-20, 40), st.integers(1, 30), st.integers(1, 30)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
# Few scores, so that many are equal; no IoU of whole boxes this small equals the thresholds.
row = st.tuples(box, st.sampled_from((0.2, 0.5, 0.9)), st.integers(0, 3))


def detections(rows: list[tuple[tuple[int, ...], float, int]]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(np.reshape(boxes, (-1, 4)), np.array(scores), np.array(labels))


@settings(max_examples=200)
@given(st.lists(row, max_size=30), st.sampled_from((0.123457, 0.45678, 0.7071)))
def test_nms_equals_the_definition(rows: list[Any], iou: float) -> None:
    found = detections(rows)
    for limit in (300, 3):
        wanted = found[np.array(greedy(found, iou, limit), int)]
        kept = nms(found, iou, limit)
        assert np.array_equal(kept.xyxy, wanted.xyxy)
        assert np.array_equal(kept.score, wanted.score)
        assert np.array_equal(kept.class_id, wanted.class_id)


@pytest.mark.parametrize("count", [300, 2000])
def test_nms_of_a_crowd_equals_the_definition(count: int) -> None:
    rng = np.random.default_rng(count)
    corner = rng.uniform(-50, 1900, (count, 2))
    boxes = np.hstack((corner, corner + rng.uniform(50, 500, (count, 2))))
    found = Detections(boxes, rng.random(count), rng.integers(0, 3, count))
    kept = nms(found, 0.45, 10_000)
    assert 10 < len(kept) < count
    assert np.array_equal(kept.xyxy, found[np.array(greedy(found, 0.45, 10_000))].xyxy)


def test_classes_do_not_suppress_each_other() -> None:
    same = detections([((0, 0, 10, 10), 0.9, label) for label in (0, 1, 2, 0)])
    assert nms(same).class_id.tolist() == [0, 1, 2]


def test_best_come_first_and_limit_cuts_the_rest() -> None:
    found = detections([((40 * i, 0, 40 * i + 9, 9), (i + 1) / 100, 0) for i in range(50)])
    assert np.allclose(nms(found, limit=5).score, [0.5, 0.49, 0.48, 0.47, 0.46])
    assert (np.diff(nms(found).score) < 0).all()


def test_touching_boxes_both_stay() -> None:
    assert len(nms(detections([((0, 0, 10, 10), 0.9, 0), ((10, 0, 20, 10), 0.8, 0)]), 0.0)) == 2


def test_a_box_far_outside_changes_nothing_for_the_others() -> None:
    near = [((0, 0, 10, 10), 0.9, 3), ((1, 0, 11, 10), 0.8, 3), ((30, 0, 40, 10), 0.7, 3)]
    far = ((-(10**11), -(10**11), 10**11, 10**11), 0.6, 0)
    kept = nms(detections([*near, far]))
    assert kept.score.round(1).tolist() == [np.float32(x) for x in (0.9, 0.7, 0.6)]
