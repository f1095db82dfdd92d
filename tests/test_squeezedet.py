"""SqueezeDet: onnxruntime's own SAME padding gives the same head, and the reference boxes hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edge.errors import ArtifactError
from edge.models.blocks import DarknetMaxPool, PaddedConv2d
from edge.models.squeezedet import (
    KITTI_CONFIG,
    VOC_CONFIG,
    SqueezeDet,
    SqueezeDetConfig,
    same_padding,
    scaled,
    squeezedet_spec,
    version_1_0,
)
from edge.models.squeezedet_npz import load_squeezedet_npz
from edge.models.tracing import trace

ARCHIVE = "squeezedet_kitti_forge.npz"
TINY = SqueezeDetConfig((64, 96), ("a", "b"), ((9.0, 9.0), (20.0, 10.0)))


def run_onnx(nodes: list, arrays: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, image.shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"images": image})[0]


def same_node(kind: str, inputs: list[str], output: str, size: int, stride: int) -> onnx.NodeProto:
    return helper.make_node(
        kind,
        inputs,
        [output],
        kernel_shape=[size, size],
        strides=[stride, stride],
        auto_pad="SAME_UPPER",
    )


@pytest.mark.parametrize("hw", [(8, 8), (9, 9), (8, 11), (13, 6)])
@pytest.mark.parametrize("size", [3, 7])
def test_stride_two_pads_as_same_does(hw: tuple[int, int], size: int) -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, *hw)).astype(np.float32) - 3
    down, across = same_padding(hw, size, 2)
    pads = (down // 2, across // 2, down - down // 2, across - across // 2)
    conv, pool = PaddedConv2d(3, 4, size, 2, pads), DarknetMaxPool(size, 2, (down, across))
    arrays = {"w": conv.weight.detach().numpy(), "b": conv.bias.detach().numpy()}
    nodes = {
        conv: same_node("Conv", ["images", "w", "b"], "out", size, 2),
        pool: same_node("MaxPool", ["images"], "out", size, 2),
    }
    for module, node in nodes.items():
        theirs = run_onnx([node], arrays if module is conv else {}, image)
        with torch.no_grad():
            ours = module(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def forward_by_archive(arrays: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """SqueezeDet's forward pass as the archive's layer names and the paper describe it."""
    nodes = []

    def conv(name: str, source: str, stride: int = 1) -> str:
        size = arrays[f"{name}.weight"].shape[-1]
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(same_node("Conv", inputs, f"{name}.raw", size, stride))
        nodes.append(helper.make_node("Relu", [f"{name}.raw"], [name]))
        return name

    def pool(source: str) -> str:
        nodes.append(same_node("MaxPool", [source], f"{source}.pool", 3, 2))
        return f"{source}.pool"

    current = pool(conv("conv1", "images", 2))
    for number in range(2, 12):
        squeezed = conv(f"fire{number}_squeeze1x1", current)
        parts = [conv(f"fire{number}_expand{s}x{s}", squeezed) for s in (1, 3)]
        current = f"fire{number}"
        nodes.append(helper.make_node("Concat", parts, [current], axis=1))
        current = pool(current) if number in (3, 5) else current
    nodes.append(same_node("Conv", [current, "conv12.weight", "conv12.bias"], "out", 1, 1))
    return run_onnx(nodes, arrays, image)


def test_head_equals_an_independent_forward_pass(edge_data: Path) -> None:
    path = edge_data / "weights" / ARCHIVE
    config = replace(KITTI_CONFIG, hw=(160, 208))
    model, spec = load_squeezedet_npz(path, config)
    image = np.random.default_rng(0).normal(0, 60, (1, 3, 160, 208)).astype(np.float32)
    with np.load(path, allow_pickle=False) as archive:
        theirs = forward_by_archive({key: archive[key] for key in archive.files}, image)
    with torch.no_grad():
        (ours,) = model(torch.from_numpy(image))
    assert tuple(ours.shape) == theirs.shape == (1, 72, *spec.heads[0].grid_hw)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-3)


def decoded(raw: np.ndarray, spec) -> list[tuple[str, float, np.ndarray]]:
    """Boxes of score over 0.05 by the paper's equations; pixels of the input; no suppression."""
    head, (rows, columns) = spec.heads[0], spec.heads[0].grid_hw
    k, c, (height, width) = len(head.anchors), len(spec.classes), spec.contract.hw
    logits = raw[: k * c].reshape(k, c, rows, columns)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    confidence = 1 / (1 + np.exp(-raw[k * c : k * (c + 1)]))
    scores = odds / odds.sum(1, keepdims=True) * confidence[:, None]
    deltas = raw[k * (c + 1) :].reshape(k, 4, rows, columns)
    boxes = []
    for anchor, label, row, column in zip(*np.where(scores > 0.05), strict=True):
        dx, dy, dw, dh = deltas[anchor, :, row, column]
        w, h = head.anchors[anchor]
        x = (column + 1) * width / (columns + 1) + dx * w
        y = (row + 1) * height / (rows + 1) + dy * h
        w, h = w * np.exp(dw), h * np.exp(dh)
        box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        boxes.append((spec.classes[label], float(scores[anchor, label, row, column]), box))
    return boxes


def test_reference_boxes_are_found(edge_data: Path) -> None:
    folder = edge_data / "weights"
    reference = json.loads((folder / ARCHIVE).with_suffix(".reference.json").read_text())
    (expected,) = reference["images"].values()
    model, spec = load_squeezedet_npz(folder / ARCHIVE)
    frame = cv2.imread(str(edge_data / "photos" / "kitti_sample.png")).astype(np.float32)
    stretched = cv2.resize(frame, spec.contract.hw[::-1]) - np.float32(spec.contract.mean)
    with torch.no_grad():
        raw = model(torch.from_numpy(stretched).permute(2, 0, 1)[None])[0][0].numpy()
    found = decoded(raw, spec)
    back = np.array([frame.shape[1] / 1248, frame.shape[0] / 384] * 2)
    assert len(expected["detections"]) == 5
    for wanted in expected["detections"]:
        assert any(
            label == wanted["class"]
            and abs(score - wanted["score"]) < 0.005
            and np.abs(box * back - wanted["box_xyxy"]).max() < 1.5
            for label, score, box in found
        ), wanted


def test_body_has_as_many_parameters_as_squeezenet() -> None:
    """torchvision states 1 248 424 and 1 235 496 parameters, 513 000 of them in the classifier."""
    for config, total in ((version_1_0(KITTI_CONFIG), 1_248_424), (KITTI_CONFIG, 1_235_496)):
        body = SqueezeDet(config).body
        own = [m for name, m in body.named_children() if name not in ("fire10", "fire11")]
        assert sum(p.numel() for m in own for p in m.parameters()) == total - 513_000


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        scaled(TINY, 0.25),
        version_1_0(TINY),
        replace(TINY, batch_norm=True),
        replace(TINY, fires=TINY.fires[:3], pools=(3,), hw=(65, 71)),
        replace(TINY, pools=(2, 3, 5)),
    ],
)
def test_variants_trace_to_module_calls_and_fit_their_spec(config: SqueezeDetConfig) -> None:
    model, spec = SqueezeDet(config).eval(), squeezedet_spec(config, "a")
    nodes = list(trace(model).graph.nodes)
    assert {node.op for node in nodes} == {"placeholder", "call_module", "output"}
    assert nodes[-2].target == spec.heads[0].tensor == "convdet"
    with torch.no_grad():
        (raw,) = model(torch.zeros(1, 3, *config.hw))
    channels = spec.heads[0].channels(len(config.classes))
    assert tuple(raw.shape) == (1, channels, *spec.heads[0].grid_hw)


def test_specs_of_kitti_and_voc() -> None:
    kitti, voc = squeezedet_spec(KITTI_CONFIG, "k"), squeezedet_spec(VOC_CONFIG, "v")
    assert kitti.contract.hw == (384, 1248) and kitti.heads[0].grid_hw == (24, 78)
    assert kitti.contract.channel_order == "BGR" and kitti.contract.scale == (1, 1, 1)
    assert kitti.heads[0].channels(3) == 72 and kitti.heads[0].class_activation == "softmax"
    assert voc.heads[0].grid_hw == (26, 26) and len(voc.classes) == 20


def test_widths_scale_in_multiples_of_eight() -> None:
    config = scaled(KITTI_CONFIG, 0.4)
    assert config.conv1 == (24, 3)
    assert config.fires[0] == (8, 24, 24) and config.fires[-1] == (40, 152, 152)


def test_config_without_sense_is_refused() -> None:
    for change in ({"pools": (12,)}, {"classes": ()}, {"head_size": 2}, {"fires": ()}):
        with pytest.raises(ValueError):
            replace(KITTI_CONFIG, **change)


def archive_of(model: SqueezeDet) -> dict[str, np.ndarray]:
    from edge.models.squeezedet_npz import _named_convolutions

    return {
        f"{name}.{part}": getattr(conv, part).detach().numpy()
        for name, conv in _named_convolutions(model).items()
        for part in ("weight", "bias")
    }


def test_archive_of_any_config_loads(tmp_path: Path) -> None:
    model = SqueezeDet(TINY).eval()
    np.savez(tmp_path / "a.npz", **archive_of(model))
    loaded, spec = load_squeezedet_npz(tmp_path / "a.npz", TINY)
    image = torch.rand(1, 3, *TINY.hw)
    assert torch.equal(loaded(image)[0], model(image)[0]) and spec.name == "a"


def test_damaged_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    good, path = archive_of(SqueezeDet(TINY)), tmp_path / "a.npz"
    bad = {k: v.copy() for k, v in good.items()}
    bad["conv1.bias"][0] = np.nan
    cases = [
        ({k: v for k, v in good.items() if k != "fire3_squeeze1x1.bias"}, "lacks fire3_squeeze1x1"),
        (good | {"extra": good["conv1.bias"]}, "unknown extra"),
        (good | {"conv1.bias": np.zeros(5, np.float32)}, r"conv1.bias is float32 \(5,\)"),
        (good | {"conv1.bias": np.array([None] * 64)}, "not a readable .npz"),
        (good | {"conv12.weight": good["conv12.weight"][..., :2]}, "conv12 is 2 wide"),
        (bad, "conv1.bias holds NaN"),
        ({}, "lacks"),
    ]
    for arrays, message in cases:
        np.savez(path, **arrays)
        with pytest.raises(ArtifactError, match=message) as error:
            load_squeezedet_npz(path, TINY)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04broken", b"\x00" * 300, b"\x80\x04N."])
def test_files_that_are_no_archive_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ArtifactError, match="not a readable"):
        load_squeezedet_npz(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(ArtifactError, match="it is a single array"):
        load_squeezedet_npz(tmp_path / "b.npy")
