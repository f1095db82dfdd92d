"""The GPU's kernels equal `ops_cpu`: one test body for kernels.cu on the host and on the GPU.

On the host everything but the compiler is real: the packing of arguments, the driver's calls (of a
fake driver, strict about addresses and streams), the grid, the barriers. The GPU runs with the
marker `gpu`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import cv2
import numpy as np
import pytest

from edge.detections import Detections
from edge.letterbox import Letterbox
from edge.runtime import ops_cpu, ops_gpu
from edge.runtime.device import open_device
from edge.runtime.ops_gpu import CANDIDATES, Decoder, Kernels, Preprocessor, nms, taps
from edge.spec import HeadSpec, InputContract, ModelSpec

pytest_plugins = ("tests.support.fake_driver",)
RNG = np.random.default_rng
# Scores and boxes are float32 exponentials of one formula in another order.
DECODE_RTOL, DECODE_ATOL_PX = 1e-5, 1e-3
EDGES = [(1, 1), (1, 97), (97, 1), (2, 2), (3, 1000), (33, 47), (64, 64), (32, 32), (128, 128)]


def picture(rng: np.random.Generator, hw: tuple[int, int]) -> Any:
    return rng.integers(0, 256, (*hw, 3), np.uint8)


def contract_of(rng: np.random.Generator, hw: tuple[int, int]) -> InputContract:
    return InputContract(
        hw,
        resize=str(rng.choice(["letterbox", "stretch"])),  # type: ignore[arg-type]
        channel_order=str(rng.choice(["RGB", "BGR"])),  # type: ignore[arg-type]
        pad_value=int(rng.integers(0, 256)),
        mean=tuple(rng.uniform(-5, 130, 3)),
        scale=tuple(rng.uniform(1 / 300, 1, 3)),
    )


def same_tensor(
    kernels: Kernels, contract: InputContract, frame: Any, bgr: Any, **options: Any
) -> None:
    """Bit for bit: weights and sums are whole numbers, the rest is a table."""
    preprocessor = Preprocessor(contract, kernels, **options)
    tensor, fit = preprocessor(frame)
    wanted, place = ops_cpu.preprocess(bgr, contract)
    assert fit == place and tensor.dtype == options.get("dtype", "float32")
    np.testing.assert_array_equal(tensor, wanted.astype(tensor.dtype))
    preprocessor.close()
    preprocessor.tensor.close()


# ---------------------------------------------------------------- frame to tensor (800 cases)


@pytest.mark.parametrize("seed", range(7))
def test_letterbox_equals_the_cpu(kernels: Kernels, seed: int) -> None:
    rng = RNG(seed)
    for _ in range(100):
        source, target = (tuple(map(int, rng.integers(1, 100, 2))) for _ in range(2))
        frame = picture(rng, source)
        same_tensor(kernels, contract_of(rng, target), frame, frame)


@pytest.mark.parametrize("hw", EDGES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_letterbox_of_odd_sizes_equals_the_cpu(
    kernels: Kernels, hw: tuple[int, int], dtype: str
) -> None:
    rng = RNG(1)
    for target in ((1, 1), (64, 64), (31, 77)):
        frame = picture(rng, hw)
        same_tensor(kernels, contract_of(rng, target), frame, frame, dtype=dtype)


def test_a_large_frame_equals_the_cpu(kernels: Kernels) -> None:
    frame = picture(RNG(2), (1080, 1920))
    for resize in ("letterbox", "stretch"):
        same_tensor(kernels, InputContract((416, 416), resize=resize), frame, frame)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["nv12", "yuyv"])
def test_camera_formats_equal_opencvs_conversion(kernels: Kernels, layout: str, dtype: str) -> None:
    rng = RNG(3)
    for _ in range(15):
        height, width = (int(side) * 2 for side in rng.integers(1, 50, 2))
        shape = (height * 3 // 2, width) if layout == "nv12" else (height, width, 2)
        frame = rng.integers(0, 256, shape, np.uint8)
        code = cv2.COLOR_YUV2BGR_NV12 if layout == "nv12" else cv2.COLOR_YUV2BGR_YUY2
        options = {"layout": layout, "dtype": dtype}
        same_tensor(
            kernels, contract_of(rng, (48, 40)), frame, cv2.cvtColor(frame, code), **options
        )


def test_rows_may_be_longer_than_the_frame(kernels: Kernels) -> None:
    wide = picture(RNG(4), (30, 50))
    contract = InputContract((24, 24))
    preprocessor = Preprocessor(contract, kernels)
    preprocessor.place((30, 41))
    preprocessor.enqueue_from(kernels.upload(wide), pitch=wide.strides[0])
    wanted, _ = ops_cpu.preprocess(wide[:, :41], contract)
    np.testing.assert_array_equal(kernels.download(preprocessor.tensor), wanted)


def test_sizes_may_change_and_buffers_stay_while_they_do_not(kernels: Kernels) -> None:
    preprocessor = Preprocessor(InputContract((32, 32)), kernels)
    for hw in [(20, 40), (20, 40), (40, 20), (32, 32)]:
        before = preprocessor.frame
        frame = picture(RNG(5), hw)
        tensor, fit = preprocessor(frame)
        assert fit == Letterbox.fit(hw, preprocessor.contract)
        np.testing.assert_array_equal(tensor, ops_cpu.preprocess(frame, preprocessor.contract)[0])
        same = before is not None and before.array.shape[:2] == hw if before else False
        assert (preprocessor.frame is before) == same


def test_taps_are_two_neighbours_of_full_weight() -> None:
    for source, target in ((1, 5), (5, 1), (7, 7), (100, 33), (33, 100)):
        for rows in (False, True):
            table = taps(source, target, rows=rows)
            assert table.shape == (target, 4)
            assert ((table[:, :2] >= 0) & (table[:, :2] < source)).all()
            assert (table[:, 2:].sum(axis=1) == 2048).all()


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("bgr", (4, 4)), ("bgr", (4, 4, 4)), ("yuyv", (4, 5, 2)), ("nv12", (4, 4)), ("nv12", (6, 5))],
)
def test_frames_of_another_layout_are_refused(layout: Any, shape: tuple[int, ...]) -> None:
    for kind in (np.uint8, np.float32):
        with pytest.raises(ValueError, match=f"a {layout} frame is"):
            ops_gpu.frame_hw(np.zeros(shape, kind), layout)


# ---------------------------------------------------------------- heads to candidates (900 cases)

ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0))  # each head begins with another


def model(kind: Any, activation: Any, classes: int = 4, scale_xy: float = 1.0) -> ModelSpec:
    grids = ((3, 5), (6, 7), (1, 1))
    heads = tuple(
        HeadSpec.of_grid(f"head{i}", kind, grid, ANCHORS[i:], activation, scale_xy)
        for i, grid in enumerate(grids)
    )
    names = tuple(f"c{i}" for i in range(classes))
    return ModelSpec("net", "darknet", names, InputContract((96, 160)), heads)


MODELS = {
    "region softmax": model("region", "softmax"),
    "region sigmoid": model("region", "sigmoid"),
    "yolo": model("yolo", "sigmoid", scale_xy=1.05),
    "yolo linear": model("yolo", "linear"),
    "yolo of one class": model("yolo", "sigmoid", 1),
    "convdet softmax": model("convdet", "softmax"),
    "convdet sigmoid": model("convdet", "sigmoid"),
}


def heads_of(spec: ModelSpec, rng: np.random.Generator) -> list[Any]:
    return [
        rng.normal(0, 2, (1, head.channels(len(spec.classes)), *head.grid_hw)).astype(np.float32)
        for head in spec.heads
    ]


def same_detections(found: Detections, wanted: Detections, score: float) -> None:
    """In the same order; where one score is within rounding of the threshold, without it."""
    if len(found) != len(wanted):
        near = score * (1 + 10 * DECODE_RTOL)
        found, wanted = found[found.score > near], wanted[wanted.score > near]
    assert found.class_id.tolist() == wanted.class_id.tolist()
    np.testing.assert_allclose(found.score, wanted.score, rtol=DECODE_RTOL)
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, rtol=DECODE_RTOL, atol=DECODE_ATOL_PX)


@pytest.mark.parametrize("name", MODELS)
def test_decode_equals_the_cpu(kernels: Kernels, name: str) -> None:
    spec, rng = MODELS[name], RNG(6)
    total = 0
    for multi_label in (False, True):
        ours = Decoder(spec, kernels, multi_label=multi_label)
        theirs = ops_cpu.Decoder(spec, multi_label=multi_label)
        for case in range(65):
            raw, score = heads_of(spec, rng), (0.0, 0.05, 0.3, 0.7, 1.0)[case % 5]
            if case % 4 == 1:
                for array in raw:
                    array[rng.random(array.shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf])
            if case % 4 == 2:
                raw = [np.sign(array) * np.float32(1e4) for array in raw]
            with np.errstate(all="ignore"):
                wanted = theirs(raw, score)
            same_detections(ours(raw, score), wanted, score)
            total += len(wanted)
    assert total > 500


@pytest.mark.parametrize("multi_label", [False, True])
def test_decode_leaves_a_score_at_the_threshold_out(kernels: Kernels, multi_label: bool) -> None:
    spec = MODELS["yolo"]
    raw = [np.full_like(array, 1e3) for array in heads_of(spec, RNG(0))]
    for array in raw:
        array.reshape(-1, 5 + 4, *array.shape[2:])[:, :4] = 0
    decode = Decoder(spec, kernels, multi_label=multi_label)
    assert len(decode(raw, 0.5)) > 0 == len(decode(raw, 1.0))
    assert len(ops_cpu.Decoder(spec, multi_label=multi_label)(raw, 1.0)) == 0


def test_decode_gives_each_class_of_an_anchor_a_key_of_its_own(kernels: Kernels) -> None:
    """Equal keys would be sorted into one place."""
    spec = MODELS["yolo"]
    raw = [np.full_like(array, 2) for array in heads_of(spec, RNG(0))]
    decode = Decoder(spec, kernels, multi_label=True)
    found = decode(raw, 0.1)
    keys = kernels.download(decode.candidates.keys)[: len(found)]
    assert len(found) == len(np.unique(keys)) == decode.candidates.capacity


def test_decode_of_nothing_is_empty(kernels: Kernels) -> None:
    spec = MODELS["yolo"]
    decode = Decoder(spec, kernels)
    for fill in (-20.0, np.nan):
        quiet = [np.full_like(array, fill) for array in heads_of(spec, RNG(0))]
        assert len(decode(quiet, 0.25)) == 0


def test_raw_outputs_that_do_not_fit_are_refused(kernels: Kernels) -> None:
    spec = MODELS["yolo"]
    raw = heads_of(spec, RNG(0))
    decode = Decoder(spec, kernels)
    with pytest.raises(ValueError, match="1 raw outputs for heads that read 3"):
        decode(raw[:1], 0.1)
    with pytest.raises(ValueError, match="head0"):
        decode([raw[0][:, :-1], *raw[1:]], 0.1)


# ---------------------------------------------------------------- suppression (1000 cases)


def crowd(rng: np.random.Generator, count: int, classes: int = 3) -> Detections:
    corner = rng.uniform(-50, 300, (count, 2))
    boxes = np.hstack((corner, corner + rng.uniform(5, 150, (count, 2))))
    # Few scores, so that many are equal.
    scores = rng.integers(1, 20, count) / 20 if count % 2 else rng.random(count)
    return Detections(boxes, scores, rng.integers(0, classes, count))


def same_boxes(found: Detections, wanted: Detections) -> None:
    np.testing.assert_array_equal(found.xyxy, wanted.xyxy)
    np.testing.assert_array_equal(found.score, wanted.score)
    np.testing.assert_array_equal(found.class_id, wanted.class_id)


@pytest.mark.parametrize("seed", range(4))
def test_nms_equals_the_cpu(kernels: Kernels, seed: int) -> None:
    rng = RNG(seed)
    for _ in range(250):
        found = crowd(rng, int(rng.integers(1, 150)))
        iou, limit = float(rng.uniform(0.2, 0.8)), int(rng.choice([1, 5, 64, 300]))
        same_boxes(nms(found, iou, limit, kernels=kernels), ops_cpu.nms(found, iou, limit))


@pytest.mark.parametrize("count", [63, 64, 65, 128, 1000, CANDIDATES - 1, CANDIDATES, 3500])
def test_nms_of_many_and_of_more_than_it_takes_equals_the_cpu(kernels: Kernels, count: int) -> None:
    found = crowd(RNG(count), count, classes=20)
    kept = nms(found, 0.45, 5000, kernels=kernels)
    same_boxes(kept, ops_cpu.nms(found, 0.45, 5000))
    assert len(kept) > 20
    same_boxes(nms(found, 0.45, 7, kernels=kernels), kept[:7])


def test_nms_takes_as_many_as_the_cpu() -> None:
    assert ops_cpu.MAX_CANDIDATES == CANDIDATES <= 64 * 64


def test_nms_of_equal_boxes_keeps_the_first_of_each_class(kernels: Kernels) -> None:
    boxes = np.tile(np.array([[3, 4, 50, 60]]), (200, 1))
    found = Detections(boxes, np.full(200, 0.5), np.arange(200) % 3)
    same_boxes(nms(found, kernels=kernels), ops_cpu.nms(found))
    assert nms(found, kernels=kernels).class_id.tolist() == [0, 1, 2]


def test_nms_keeps_a_box_that_overlaps_by_just_the_limit(kernels: Kernels) -> None:
    found = Detections(np.array([[0, 0, 10, 10], [0, 0, 10, 5]]), np.array([0.9, 0.8]), np.zeros(2))
    for iou, count in ((0.5, 2), (0.499, 1)):
        kept = nms(found, iou, kernels=kernels)
        same_boxes(kept, ops_cpu.nms(found, iou))
        assert len(kept) == count


def test_nms_of_nothing_and_of_nan_scores(kernels: Kernels) -> None:
    assert len(nms(Detections.empty(), kernels=kernels)) == 0
    found = crowd(RNG(0), 40)
    found.score[::2] = np.nan
    found.score[1] = 0
    kept = nms(found, kernels=kernels)
    clean = found[found.score > 0]
    same_boxes(kept, ops_cpu.nms(clean))
    assert 0 < len(kept) < 20
    found.score[:] = np.nan
    assert len(nms(found, kernels=kernels)) == 0


def test_the_order_of_threads_changes_nothing(on_host: ctypes.CDLL) -> None:
    """Slots are handed out by atomics: here blocks and threads run in many orders."""
    spec = MODELS["yolo"]
    raw, found = heads_of(spec, RNG(7)), crowd(RNG(8), 201)
    with open_device() as device:
        kernels = Kernels.load(device)
        decode = Decoder(spec, kernels, multi_label=True)
        wanted, kept = decode(raw, 0.1), nms(found, kernels=kernels)
        slots = kernels.download(decode.candidates.keys)
        for seed in range(1, 6):
            on_host.host_shuffle(seed)
            same_boxes(decode(raw, 0.1), wanted)
            same_boxes(nms(found, kernels=kernels), kept)
            assert not np.array_equal(kernels.download(decode.candidates.keys), slots)
