"""A detector of coloured patches as a real ONNX file, and pictures for it to find them in."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import helper, numpy_helper

from calibration.table import CalibrationTable
from edge.files import sha256_of
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec
from export.graph.writer import attach_manifest
from export.int8.quantize import write_int8

CLASSES = ("cat", "dog")
GRID, CELL = 4, 16
SIDE = GRID * CELL
BGR = {0: 2, 1: 0}  # a cat is red, a dog is blue


def write_painted(path: Path, dog: float = 1.0, work: int = 0) -> Path:
    """Write the detector.

    Args:
        dog: gain of the dog's class; below one it is found less surely.
        work: channels of two convolutions that take time and change nothing.
    """
    nodes, constants = [], []

    def conv(name: str, source: str, weight: np.ndarray, bias: np.ndarray) -> str:
        pads = [weight.shape[2] // 2] * 4
        constants.extend(
            numpy_helper.from_array(value.astype(np.float32), f"{name}.{kind}")
            for kind, value in (("weight", weight), ("bias", bias))
        )
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [name], name=name, pads=pads))
        return name

    def plain(op: str, name: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    eye = np.eye(3)[:, :, None, None]
    at = conv("layers.0.conv", "images", eye, np.zeros(3))
    at = plain("LeakyRelu", "layers.0.act", at, alpha=0.1)
    if work:
        wide = conv("extra.0", at, np.full((work, 3, 3, 3), 0.01), np.zeros(work))
        zero = conv("extra.1", wide, np.zeros((3, work, 3, 3)), np.zeros(3))
        at = plain("Add", "extra.sum", at, zero)
    pool = plain("MaxPool", "layers.1.pool", at, kernel_shape=[CELL, CELL], strides=[CELL, CELL])
    weight, bias = np.zeros((7, 3, 1, 1)), np.zeros(7)
    weight[4, [0, 2], 0, 0], bias[4] = 12, -6
    weight[5, 0, 0, 0], bias[5] = 16, -6
    weight[6, 2, 0, 0], bias[6] = 16 * dog, -6
    conv("layers.2.conv", pool, weight, bias)
    contract = InputContract((SIDE, SIDE), "stretch")
    head = HeadSpec.of_grid("layers.2.conv", "yolo", (GRID, GRID), ((10.0, 10.0),))
    spec = ModelSpec("painted", "darknet", CLASSES, contract, (head,))
    sides = (
        (TensorSpec("images", (1, 3, SIDE, SIDE)),),
        (TensorSpec("layers.2.conv", (1, 7, GRID, GRID)),),
    )
    values = [
        helper.make_tensor_value_info(t.name, onnx.TensorProto.FLOAT, t.shape)
        for side in sides
        for t in side
    ]
    graph = helper.make_graph(nodes, "painted", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    attach_manifest(model, Manifest(spec, "fp32", *sides))
    path.write_bytes(model.SerializeToString())
    return path


def write_painted_int8(fp32: Path, target: Path, stale: float = 1.0) -> Path:
    """Quantize; `stale` scales the threshold of the tensor in front of the head."""
    amax = {"images": 1.0, "layers.1.pool": stale}
    for name in ("layers.0.act", "extra.0", "extra.sum"):
        amax[name] = 1.0
    digest = InputContract((SIDE, SIDE), "stretch").digest
    table = CalibrationTable(tuple(amax.items()), "minmax", sha256_of(fp32), digest, ())
    write_int8(fp32, table, target)
    return target


def write_pictures(folder: Path, count: int = 40, seed: int = 0) -> Path:
    """Pictures with patches of several brightnesses, and unlabelled dim ones; YOLO layout."""
    rng = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    size = 2 * SIDE
    for number in range(count):
        image = rng.integers(0, 30, (size, size, 3), np.uint8)
        lines = []
        for cell in rng.permutation(GRID * GRID)[:6]:
            label, real = int(rng.integers(2)), rng.random() < 0.8
            light = int(rng.integers(120, 255) if real else rng.integers(90, 150))
            y, x = (int(v) * 2 * CELL + 6 for v in divmod(cell, GRID))
            image[y : y + 20, x : x + 20] = 0
            image[y : y + 20, x : x + 20, BGR[label]] = light
            if real:
                centre = ((x + 10) / size, (y + 10) / size, 20 / size, 20 / size)
                lines.append(f"{label} " + " ".join(f"{v:.6f}" for v in centre))
        (folder / "labels" / f"{number:03}.txt").write_text("\n".join(lines))
        cv2.imwrite(str(folder / "images" / f"{number:03}.png"), image)
    (folder / "x.names").write_text("cat\ndog\n")
    return folder
