"""One small graph of each family of detectors, with objects that its published coding plants.

The encoders here are written from each family's definition and know nothing of `edge`'s decoder: an
object becomes the numbers that the family's own decoder would turn into it again. The graphs
compute nothing; their outputs are constants that a zero times the picture is added to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FAMILIES", "HW", "Family", "Planted", "write_graph"]

Array = NDArray[Any]
HW = (256, 320)
CLASSES = 4


@dataclass(frozen=True)
class Planted:
    """An object: class, score and box x1 y1 x2 y2 in pixels of the input."""

    class_id: int
    score: float
    xyxy: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.xyxy
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def size(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.xyxy
        return x2 - x1, y2 - y1


OBJECTS = (
    Planted(0, 0.9, (10.0, 12.0, 52.0, 90.0)),
    Planted(1, 0.8, (100.0, 20.0, 180.0, 84.0)),
    Planted(2, 0.7, (200.0, 100.0, 310.0, 240.0)),
    Planted(3, 0.6, (60.0, 150.0, 100.0, 190.0)),
    Planted(1, 0.5, (130.0, 180.0, 160.0, 230.0)),
)
FACES = tuple(Planted(0, each.score, each.xyxy) for each in OBJECTS)


@dataclass(frozen=True)
class Family:
    """A graph to write and what must be read out of it.

    Attributes:
        kinds: the word of `--head` that must be found.
        outputs: by name.
        objects: what is planted.
        classes: how many names are given; 0 for none.
        hw: of the input.
        nhwc, byte: form of the input.
        inputs: names of further inputs, [1, 2] int64.
        contract: fields of the contract that the family has.
    """

    kind: str
    outputs: dict[str, Array]
    objects: tuple[Planted, ...] = OBJECTS
    classes: int = CLASSES
    hw: tuple[int, int] = HW
    nhwc: bool = False
    byte: bool = False
    inputs: tuple[str, ...] = ()
    contract: dict[str, Any] = field(default_factory=dict)


def write_graph(
    family: Family, target: Path, metadata: dict[str, str] | None = None, opset: int = 13
) -> Path:
    """Write the family's graph as ONNX."""
    height, width = family.hw
    shape = [1, height, width, 3] if family.nhwc else [1, 3, height, width]
    kind = TensorProto.UINT8 if family.byte else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["picture"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nought"], ["nothing"]),
    ]
    constants = [numpy_helper.from_array(np.zeros((), np.float32), "nought")]
    outputs = []
    for name, array in family.outputs.items():
        integer = array.dtype.kind == "i"
        made = TensorProto.INT64 if integer else TensorProto.FLOAT
        constants.append(numpy_helper.from_array(array.astype(np.float32), f"{name}_constant"))
        nodes.append(helper.make_node("Add", [f"{name}_constant", "nothing"], [f"{name}_sum"]))
        nodes.append(helper.make_node("Cast", [f"{name}_sum"], [name], to=made))
        outputs.append(helper.make_tensor_value_info(name, made, list(array.shape)))
    inputs = [helper.make_tensor_value_info("picture", kind, shape)]
    for name in family.inputs:
        inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, [1, 2]))
    graph = helper.make_graph(nodes, "family", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(target))
    return target


# ------------------------------------------------------------------ the usual grid


def cells(hw: tuple[int, int], stride: int) -> tuple[int, int]:
    return ceil(hw[0] / stride), ceil(hw[1] / stride)


def grid(
    hw: tuple[int, int], strides: Sequence[int], anchors: int = 1, inner: bool = False
) -> Array:
    """(N, 3): column, row and stride of each row of a table."""
    parts = []
    for stride in strides:
        rows, columns = cells(hw, stride)
        y, x = np.divmod(np.arange(rows * columns), columns)
        level = np.stack((x, y, np.full(len(x), stride)), axis=1)
        parts.append(np.repeat(level, anchors, 0) if inner else np.tile(level, (anchors, 1)))
    return np.concatenate(parts).astype(np.float64)


def row_of(table: Array, each: Planted, number: int) -> int:
    """The row of an object: its centre's cell, in the level that its number chooses."""
    strides = sorted(set(table[:, 2]))
    stride = strides[number % len(strides)]
    x, y = each.centre
    (found,) = np.nonzero(
        (table[:, 0] == x // stride) & (table[:, 1] == y // stride) & (table[:, 2] == stride)
    )
    return int(found[number % len(found)])


def logit(score: float) -> float:
    return log(score / (1 - score))


def around(table: Array, rng: np.random.Generator) -> Array:
    """Centre and size (N, 4) of boxes near their cells, as an empty place gives them."""
    stride = table[:, 2:]
    centre = (table[:, :2] + 0.5 + rng.normal(0, 0.3, (len(table), 2))) * stride
    return np.concatenate((centre, stride * rng.uniform(1, 4, (len(table), 2))), axis=1)


def low(rng: np.random.Generator, *shape: int) -> Array:
    return rng.uniform(0, 0.02, shape)


def corners(centred: Array) -> Array:
    return np.concatenate(
        (centred[:, :2] - centred[:, 2:] / 2, centred[:, :2] + centred[:, 2:] / 2), axis=1
    )


RNG = np.random.default_rng(7)
LEVELS = (8, 16, 32)


def yolov8(end: bool = False) -> Family:
    """ultralytics: centre and size in pixels, class probabilities, columns by candidates."""
    table = grid(HW, LEVELS)
    boxes, scores = around(table, RNG), low(RNG, len(table), CLASSES)
    for number, each in enumerate(OBJECTS):
        row = row_of(table, each, number)
        boxes[row] = (*each.centre, *each.size)
        scores[row, each.class_id] = each.score
    return Family("yolov8", {"output0": np.concatenate((boxes, scores), 1).T[None]})


def yolov5(unit: str = "pixels", extra: bool = False) -> Family:
    """ultralytics/yolov5: three anchors, objectness; old exports add their raw maps."""
    table = grid(HW, LEVELS, 3)
    boxes, objectness = around(table, RNG), low(RNG, len(table), 1)
    scores = RNG.uniform(0, 0.3, (len(table), CLASSES))
    for number, each in enumerate(OBJECTS):
        row = row_of(table, each, number)
        boxes[row] = (*each.centre, *each.size)
        objectness[row], scores[row, each.class_id] = each.score / 0.95, 0.95
    if unit == "input":
        boxes /= (HW[1], HW[0], HW[1], HW[0])
    outputs = {"output": np.concatenate((boxes, objectness, scores), 1)[None]}
    if extra:
        for stride in LEVELS:
            shape = (1, 3, *cells(HW, stride), 5 + CLASSES)
            outputs[f"map{stride}"] = RNG.normal(0, 1, shape)
    return Family("yolov5", outputs)


def yolox(decoded: bool) -> Family:
    """Megvii YOLOX: offsets from the cell's corner, sizes as exp times stride."""
    table = grid(HW, LEVELS)
    stride = table[:, 2:]
    raw = np.concatenate(
        (RNG.normal(0.5, 0.3, (len(table), 2)), RNG.normal(0, 0.7, (len(table), 2))), 1
    )
    objectness, scores = low(RNG, len(table), 1), RNG.uniform(0, 0.3, (len(table), CLASSES))
    for number, each in enumerate(OBJECTS):
        row = row_of(table, each, number)
        at, step = table[row, :2], table[row, 2]
        raw[row, :2] = np.array(each.centre) / step - at
        raw[row, 2:] = np.log(np.array(each.size) / step)
        objectness[row], scores[row, each.class_id] = each.score / 0.95, 0.95
    if decoded:
        raw[:, :2] = (raw[:, :2] + table[:, :2]) * stride
        raw[:, 2:] = np.exp(raw[:, 2:]) * stride
    outputs = {"output": np.concatenate((raw, objectness, scores), 1)[None]}
    contract = {"channel_order": "BGR", "placement": "top left", "scale": (1.0,) * 3}
    return Family("yolox" if decoded else "yolox-raw", outputs, contract=contract)


def bins_of(distance: float, count: int) -> Array:
    """Logits whose mean over 0 .. count - 1 is the distance: weight on its two neighbours."""
    lower = min(int(distance), count - 2)
    share = distance - lower
    values = np.full(count, -30.0)
    values[lower], values[lower + 1] = log(1 - share + 1e-12), log(share + 1e-12)
    return values


def distances(each: Planted, at: Array, stride: float, shift: float) -> list[float]:
    x, y = (at + shift) * stride
    x1, y1, x2, y2 = each.xyxy
    return [(x - x1) / stride, (y - y1) / stride, (x2 - x) / stride, (y2 - y) / stride]


def level_for(table: Array, each: Planted, most: float, shift: float) -> int:
    """A row from whose cell every side is less than `most` cells away."""
    x, y = each.centre
    for stride in sorted(set(table[:, 2])):
        (found,) = np.nonzero(
            (table[:, 0] == x // stride) & (table[:, 1] == y // stride) & (table[:, 2] == stride)
        )
        sides = distances(each, table[found[0], :2], float(stride), shift)
        if min(sides) >= 0 and max(sides) < most:
            return int(found[0])
    raise AssertionError(f"no level takes {each}")


def nanodet(bins: int) -> Family:
    """RangiLyu/nanodet: a table of classes and one of distances for each level."""
    table = grid(HW, LEVELS)
    scores = low(RNG, len(table), CLASSES)
    sides = RNG.normal(0, 1, (len(table), 4 * bins)) if bins else RNG.uniform(0, 3, (len(table), 4))
    for each in OBJECTS:
        row = level_for(table, each, (bins or 20) - 1, 0.5)
        own = distances(each, table[row, :2], table[row, 2], 0.5)
        sides[row] = np.concatenate([bins_of(d, bins) for d in own]) if bins else own
        scores[row, each.class_id] = each.score
    outputs = {}
    for what, values in (("cls_pred", scores), ("dis_pred", sides)):
        for stride in LEVELS:
            outputs[f"{what}_stride_{stride}"] = values[table[:, 2] == stride][None]
    return Family("nanodet", outputs, contract={"channel_order": "BGR"})


def nanodet_plus() -> Family:
    """RangiLyu/nanodet, plus: classes and 8 bins a side in one table, centres at cells' corners."""
    table = grid(HW, (8, 16, 32, 64))
    scores, sides = low(RNG, len(table), CLASSES), RNG.normal(0, 1, (len(table), 32))
    for each in OBJECTS:
        row = level_for(table, each, 7, 0.0)
        own = distances(each, table[row, :2], table[row, 2], 0.0)
        sides[row] = np.concatenate([bins_of(d, 8) for d in own])
        scores[row, each.class_id] = each.score
    outputs = {"output": np.concatenate((scores, sides), 1)[None]}
    return Family("nanodet-plus", outputs, contract={"channel_order": "BGR"})


def dfl_maps(split: bool) -> Family:
    """ultralytics v8 before decoding: 16 bins a side and class logits as maps."""
    outputs = {}
    table = grid(HW, LEVELS)
    logits = RNG.normal(-6, 0.5, (len(table), CLASSES))
    sides = RNG.normal(0, 1, (len(table), 64))
    for each in OBJECTS:
        row = level_for(table, each, 15, 0.5)
        own = distances(each, table[row, :2], table[row, 2], 0.5)
        sides[row] = np.concatenate([bins_of(d, 16) for d in own])
        logits[row, each.class_id] = logit(each.score)
    for stride in LEVELS:
        rows = table[:, 2] == stride
        maps = [values[rows].T.reshape(1, -1, *cells(HW, stride)) for values in (sides, logits)]
        if split:
            outputs |= {f"box{stride}": maps[0], f"cls{stride}": maps[1]}
        else:
            outputs[f"map{stride}"] = np.concatenate(maps, 1)
    return Family("yolov8-maps", outputs)


def fastestdet() -> Family:
    """dog-qiuqiu/FastestDet: objectness, box, classes; score obj ** .6 * class ** .4."""
    hw = (352, 352)
    table = grid(hw, (16,))
    raw = np.concatenate(
        (RNG.normal(0, 0.3, (len(table), 2)), RNG.normal(-2, 0.5, (len(table), 2))), 1
    )
    objectness, scores = low(RNG, len(table), 1), low(RNG, len(table), CLASSES)
    for each in OBJECTS:
        x, y = each.centre
        (row,) = np.nonzero((table[:, 0] == x // 16) & (table[:, 1] == y // 16))
        offset = np.array(each.centre) / 16 - table[row[0], :2]
        share = np.array(each.size) / 352
        raw[row[0]] = (*np.arctanh(offset), *np.log(share / (1 - share)))
        objectness[row[0]], scores[row[0], each.class_id] = each.score, each.score
    joined = np.concatenate((objectness, raw, scores), 1)
    outputs = {"output": joined.T.reshape(1, -1, 22, 22)}
    contract = {"channel_order": "BGR", "resize": "stretch"}
    return Family("fastestdet", outputs, hw=hw, contract=contract)


def padded(objects: Sequence[Planted], count: int, *columns: Callable[[Planted], float]) -> Array:
    rows = np.zeros((count, len(columns)))
    for number, each in enumerate(objects):
        rows[number] = [column(each) for column in columns]
    return rows


def rows(batch: bool = False) -> Family:
    """v10, 26 and `nms=True`: box, score, label; YOLOv7 has the picture's number in front."""
    box = [lambda e, i=i: e.xyxy[i] for i in range(4)]
    own = padded(OBJECTS, 300, *box, lambda e: e.score, lambda e: e.class_id)
    if batch:
        number = [lambda e: 0.0]
        own = padded(OBJECTS, 100, *number, *box, lambda e: e.class_id, lambda e: e.score)
    return Family("rows", {"output0": own[None]})


def deepstream(apart: bool) -> Family:
    """marcoslucianops/DeepStream-Yolo: corners, best score and its label for every cell."""
    table = grid(HW, LEVELS)
    boxes, scores = corners(around(table, RNG)), low(RNG, len(table), 1)
    labels = RNG.integers(0, CLASSES, (len(table), 1)).astype(np.float64)
    for number, each in enumerate(OBJECTS):
        row = row_of(table, each, number)
        boxes[row], scores[row], labels[row] = each.xyxy, each.score, each.class_id
    if apart:
        outputs = {"boxes": boxes[None], "scores": scores[None], "classes": labels[None]}
        return Family("detections", outputs)
    joined = np.concatenate((boxes, scores, labels), 1)[None]
    return Family("rows-overlapping", {"output": joined})


def tensorflow(integer: bool = False) -> Family:
    """TensorFlow's own post-processing: y1 x1 y2 x2 of 0..1, labels from 1."""
    height, width = HW
    sides = (height, width, height, width)
    box = [lambda e, i=i: e.xyxy[(1, 0, 3, 2)[i]] / sides[i] for i in range(4)]
    labels = padded(OBJECTS, 100, lambda e: e.class_id + 1)[None, :, 0]
    labels[0, len(OBJECTS) :] = 1
    outputs = {
        "detection_boxes": padded(OBJECTS, 100, *box)[None],
        "detection_classes": labels.astype(np.int64) if integer else labels,
        "detection_scores": padded(OBJECTS, 100, lambda e: e.score)[None, :, 0],
        "num_detections": np.array([float(len(OBJECTS))]),
    }
    contract = {"resize": "stretch", "channel_order": "RGB", "scale": (1.0,) * 3}
    return Family("detections", outputs, nhwc=True, byte=True, contract=contract)


def tensorflow_2() -> Family:
    """TensorFlow 2's eight outputs: finished boxes beside the raw ones and other numbers."""
    family = tensorflow()
    rng = np.random.default_rng(5)
    rows = np.concatenate((rng.uniform(0, 0.5, (1917, 2)), rng.uniform(0.5, 1, (1917, 2))), 1)
    outputs = {
        "detection_anchor_indices": np.arange(100.0)[None],
        **family.outputs,
        "detection_multiclass_scores": low(rng, 1, 100, CLASSES + 1),
        "raw_detection_boxes": rows[None],
        "raw_detection_scores": low(rng, 1, 1917, CLASSES + 1),
    }
    return replace(family, outputs=outputs)


def auxiliary() -> Family:
    """WongKinYiu/yolov9: the auxiliary head's table, then its own, then maps."""
    own = yolov8().outputs["output0"]
    other = own.copy()
    other[0, 4:] *= 0.1
    maps = RNG.normal(0, 1, (1, 64 + CLASSES, *cells(HW, 8)))
    return Family("yolov8", {"output0": other, "output1": own, "map": maps})


def paddle() -> Family:
    """PaddleDetection: label, score and box, with the picture's size as an input."""
    box = [lambda e, i=i: e.xyxy[i] for i in range(4)]
    own = padded(OBJECTS, 100, lambda e: e.class_id, lambda e: e.score, *box)
    return Family("rows", {"output0": own[None]})


def detr(unit: str) -> Family:
    """RT-DETR and torchvision: int64 labels, boxes and scores."""
    box = [lambda e, i=i: e.xyxy[i] for i in range(4)]
    rng = np.random.default_rng(3)
    boxes = padded(OBJECTS, 300, *box)
    rest = rng.uniform(0, 200, (300 - len(OBJECTS), 2))
    boxes[len(OBJECTS) :] = np.concatenate((rest, rest + rng.uniform(5, 60, rest.shape)), 1)
    scores = padded(OBJECTS, 300, lambda e: e.score)[:, 0]
    scores[len(OBJECTS) :] = low(rng, 300 - len(OBJECTS))
    labels = padded(OBJECTS, 300, lambda e: e.class_id)[:, 0]
    if unit == "input":
        boxes /= (HW[1], HW[0], HW[1], HW[0])
    outputs = {
        "labels": labels.astype(np.int64)[None],
        "boxes": boxes[None],
        "scores": scores[None],
    }
    return Family("detections", outputs, inputs=("orig_target_sizes",) if unit == "pixels" else ())


def detr_raw(background: bool) -> Family:
    """DETR (softmax with no object last) and RT-DETR (sigmoid): logits beside boxes in 0..1."""
    rng = np.random.default_rng(4)
    centred = np.concatenate((rng.uniform(0.2, 0.8, (100, 2)), rng.uniform(0.02, 0.3, (100, 2))), 1)
    logits = rng.normal(-5, 0.5, (100, CLASSES + background))
    if background:
        logits[:, -1] = 5
    for row, each in enumerate(OBJECTS):
        scale = np.array((HW[1], HW[0]))
        centred[row] = (*(np.array(each.centre) / scale), *(np.array(each.size) / scale))
        if background:
            rest = (1 - each.score) / CLASSES
            logits[row] = np.log(rest)
            logits[row, each.class_id] = np.log(each.score)
        else:
            logits[row, each.class_id] = logit(each.score)
    outputs = {"logits": logits[None], "pred_boxes": centred[None]}
    return Family("detr", outputs, contract={"resize": "stretch"})


def mmdetection() -> Family:
    """mmdeploy: boxes with their score, labels apart."""
    box = [lambda e, i=i: e.xyxy[i] for i in range(4)]
    labels = padded(OBJECTS, 100, lambda e: e.class_id)[:, 0].astype(np.int64)
    outputs = {
        "dets": padded(OBJECTS, 100, *box, lambda e: e.score)[None],
        "labels": labels[None],
    }
    return Family("detections", outputs)


def yolov4() -> Family:
    """Tianxiaomo/pytorch-YOLOv4: boxes (N, 1, 4) in 0..1 beside confidences."""
    table = grid(HW, LEVELS, 3)
    boxes, scores = corners(around(table, RNG)), low(RNG, len(table), CLASSES)
    for number, each in enumerate(OBJECTS):
        row = row_of(table, each, number)
        boxes[row], scores[row, each.class_id] = each.xyxy, each.score
    boxes /= (HW[1], HW[0], HW[1], HW[0])
    return Family("yolov5", {"boxes": boxes[None, :, None], "confs": scores[None]})


def priors_of_retinaface(hw: tuple[int, int]) -> Array:
    """(N, 4) centre and size in 0..1: biubug6/Pytorch_Retinaface layers/functions/prior_box.py."""
    found = []
    for stride, sizes in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        down, across = cells(hw, stride)
        for i in range(down):
            for j in range(across):
                for size in sizes:
                    found.append(
                        (
                            (j + 0.5) * stride / hw[1],
                            (i + 0.5) * stride / hw[0],
                            size / hw[1],
                            size / hw[0],
                        )
                    )
    return np.array(found)


def offsets(priors: Array, each: Planted, hw: tuple[int, int], row: int) -> Array:
    """SSD's coding with variances .1 and .2."""
    scale = np.array((hw[1], hw[0]))
    centre, size = np.array(each.centre) / scale, np.array(each.size) / scale
    prior = priors[row]
    return np.concatenate(((centre - prior[:2]) / prior[2:] / 0.1, np.log(size / prior[2:]) / 0.2))


def nearest(priors: Array, each: Planted, hw: tuple[int, int]) -> int:
    scale = np.array((hw[1], hw[0]))
    wanted = np.concatenate((np.array(each.centre) / scale, np.array(each.size) / scale))
    return int(np.abs(priors - wanted).sum(axis=1).argmin())


def retinaface(joined: bool) -> Family:
    priors = priors_of_retinaface(HW)
    count = len(priors)
    loc, conf = RNG.normal(0, 1, (count, 4)), np.tile((0.99, 0.01), (count, 1))
    for each in FACES:
        row = nearest(priors, each, HW)
        loc[row] = offsets(priors, each, HW, row)
        conf[row] = (1 - each.score, each.score)
    landmarks = RNG.normal(0, 1, (count, 10))
    outputs = {"loc": loc[None], "conf": conf[None], "landms": landmarks[None]}
    if joined:
        outputs = {"output": np.concatenate((loc, conf, landmarks), 1)[None]}
    contract = {"channel_order": "BGR", "mean": (104.0, 117.0, 123.0)}
    return Family("retinaface", outputs, FACES, 0, contract=contract)


def ssd_decoded() -> Family:
    """SSD with its priors decoded in the graph: scores with background, corners in 0..1."""
    hw = (300, 300)
    priors = np.concatenate(
        (RNG.uniform(0.1, 0.9, (1500, 2)), RNG.uniform(0.05, 0.2, (1500, 2))), 1
    )
    boxes, scores = corners(priors), np.zeros((1500, CLASSES + 1))
    scores[:, 0] = 0.98
    scores[:, 1:] = 0.02 / CLASSES
    for row, each in enumerate(OBJECTS):
        boxes[row] = np.array(each.xyxy) / 320
        scores[row] = (1 - each.score) / CLASSES
        scores[row, 1 + each.class_id] = each.score
    objects = tuple(
        Planted(o.class_id, o.score, tuple(v * 300 / 320 for v in o.xyxy))  # type: ignore[arg-type]
        for o in OBJECTS
    )
    outputs = {"scores": scores[None], "boxes": boxes[None]}
    return Family("ssd", outputs, objects, hw=hw, contract={"resize": "stretch"})


def ssd_raw(activated: bool = True) -> Family:
    """qfgaohao/pytorch-ssd: mobilenet at 300x300, offsets from 3000 priors."""
    hw = (300, 300)
    priors = []
    for cell, step, smallest, largest in (
        (19, 16, 60, 105),
        (10, 32, 105, 150),
        (5, 64, 150, 195),
        (3, 100, 195, 240),
        (2, 150, 240, 285),
        (1, 300, 285, 330),
    ):
        for j in range(cell):
            for i in range(cell):
                x, y = (i + 0.5) * step / 300, (j + 0.5) * step / 300
                small, large = smallest / 300, sqrt(smallest * largest) / 300
                priors += [(x, y, small, small), (x, y, large, large)]
                for ratio in (2, 3):
                    root = sqrt(ratio)
                    priors.append((x, y, small * root, small / root))
                    priors.append((x, y, small / root, small * root))
    table = np.clip(np.array(priors), 0, 1)
    loc = RNG.normal(0, 1, (len(table), 4))
    conf = np.tile((0.98, *((0.02 / CLASSES,) * CLASSES)), (len(table), 1))
    objects = []
    for each in OBJECTS:
        own = Planted(each.class_id, each.score, tuple(v * 300 / 320 for v in each.xyxy))  # type: ignore[arg-type]
        row = nearest(table, own, hw)
        loc[row] = offsets(table, own, hw, row)
        conf[row] = (1 - each.score) / CLASSES
        conf[row, 1 + each.class_id] = each.score
        objects.append(own)
    scores = conf if activated else np.log(conf) + RNG.normal(0, 1, (len(table), 1))
    outputs = {"scores": scores[None], "boxes": loc[None]}
    return Family("ssd-raw", outputs, tuple(objects), hw=hw, contract={"resize": "stretch"})


def scrfd(landmarks: bool) -> Family:
    """deepinsight SCRFD: two anchors a cell, distances in cells, tables without a batch."""
    outputs: dict[str, Array] = {}
    table = grid(HW, LEVELS, 2, inner=True)
    scores, sides = low(RNG, len(table), 1), RNG.uniform(0, 3, (len(table), 4))
    for each in FACES:
        row = level_for(table, each, 60, 0.0)
        sides[row] = distances(each, table[row, :2], table[row, 2], 0.0)
        scores[row] = each.score
    for what, values in (("score", scores), ("bbox", sides)):
        for stride in LEVELS:
            outputs[f"{what}_{stride}"] = values[table[:, 2] == stride]
    if landmarks:
        for stride in LEVELS:
            outputs[f"kps_{stride}"] = RNG.normal(0, 1, ((table[:, 2] == stride).sum(), 10))
    contract = {"channel_order": "RGB", "mean": (127.5,) * 3}
    return Family("scrfd", outputs, FACES, 0, contract=contract)


def yunet() -> Family:
    """ShiqiYu/libfacedetection.train: offsets from the cell's corner, exp sizes, two scores."""
    outputs: dict[str, Array] = {}
    table = grid(HW, LEVELS)
    classes, objectness = low(RNG, len(table), 1), low(RNG, len(table), 1)
    raw = RNG.normal(0, 0.5, (len(table), 4))
    for number, each in enumerate(FACES):
        row = row_of(table, each, number)
        step = table[row, 2]
        raw[row, :2] = np.array(each.centre) / step - table[row, :2]
        raw[row, 2:] = np.log(np.array(each.size) / step)
        classes[row] = objectness[row] = sqrt(each.score)
    for what, values in (("cls", classes), ("obj", objectness), ("bbox", raw)):
        for stride in LEVELS:
            outputs[f"{what}_{stride}"] = values[table[:, 2] == stride][None]
    return Family("yunet", outputs, FACES, 0, contract={"channel_order": "BGR"})


def region() -> Family:
    """Tiny YOLOv2 for VOC: five anchors of 25 numbers, softmax over 20 classes."""
    hw = (416, 416)
    anchors = ((1.08, 1.19), (3.42, 4.41), (6.63, 11.38), (9.42, 5.11), (16.62, 10.52))
    raw = RNG.normal(0, 0.5, (5, 25, 13, 13))
    raw[:, 4] = -6
    for number, each in enumerate(OBJECTS):
        x, y = each.centre
        column, row, a = int(x // 32), int(y // 32), number % 5
        own = raw[a, :, row, column]
        own[0], own[1] = logit(x / 32 - column), logit(y / 32 - row)
        own[2] = log(each.size[0] / 32 / anchors[a][0])
        own[3] = log(each.size[1] / 32 / anchors[a][1])
        own[4] = logit(each.score / 0.99)
        own[5:] = 0
        own[5 + each.class_id] = log(0.99 * 19 / 0.01)
    return Family("yolov2-maps", {"grid": raw.reshape(1, 125, 13, 13)}, classes=20, hw=hw)


FAMILIES: dict[str, Callable[[], Family]] = {
    "yolov8, v9, v11, v12 and 26 decoded": yolov8,
    "yolov8 raw maps": lambda: dfl_maps(False),
    "yolov8 raw maps, boxes and classes apart": lambda: dfl_maps(True),
    "yolov5 and v7 decoded": yolov5,
    "yolov5 decoded to 0..1": lambda: yolov5("input"),
    "yolov5 of 2020 with its raw maps": lambda: yolov5(extra=True),
    "yolox raw": lambda: yolox(False),
    "yolox decoded": lambda: yolox(True),
    "nanodet, distances": lambda: nanodet(0),
    "nanodet, bins": lambda: nanodet(8),
    "nanodet plus": nanodet_plus,
    "fastestdet": fastestdet,
    "v10 and 26 rows": rows,
    "yolov7 rows": lambda: rows(True),
    "deepstream rows": lambda: deepstream(False),
    "deepstream, apart": lambda: deepstream(True),
    "tensorflow detections": tensorflow,
    "tensorflow detections, integer labels": lambda: tensorflow(True),
    "tensorflow 2's eight outputs": tensorflow_2,
    "yolov9 with its auxiliary head": auxiliary,
    "paddle rows": paddle,
    "rt-detr": lambda: detr("pixels"),
    "detr in 0..1": lambda: detr("input"),
    "detr logits, softmax": lambda: detr_raw(True),
    "rt-detr logits, sigmoid": lambda: detr_raw(False),
    "mmdetection": mmdetection,
    "yolov4": yolov4,
    "retinaface": lambda: retinaface(False),
    "retinaface in one tensor": lambda: retinaface(True),
    "ssd decoded": ssd_decoded,
    "ssd raw": ssd_raw,
    "ssd raw, logits": lambda: ssd_raw(False),
    "scrfd": lambda: scrfd(False),
    "scrfd with landmarks": lambda: scrfd(True),
    "yunet": yunet,
    "tiny yolov2": region,
}
