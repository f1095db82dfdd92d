"""Equalisation changes no result and evens ranges; bias correction takes the mean error out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.correction import correct_bias, measure_noise
from calibration.equalise import apply_gains, find_gains
from calibration.qdq import convolutions
from calibration.ranges import channel_ranges
from calibration.scales import network_inputs
from edge.built_in import BUILT_IN
from edge.models.zoo import load_model
from export.graph.writer import write_onnx
from export.int8.quantize import write_int8
from tests.support.small_models import decibel, run
from tests.support.steps import scales

DEPTHWISE = """[net]
width=64
height=64
channels=3
"""
_CONV = """
[convolutional]
batch_normalize=1
filters={filters}
groups={groups}
size={size}
stride={stride}
pad=1
activation={act}
"""


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Expand, depthwise, project, pool, expand, head; channels of very unlike ranges."""
    folder = tmp_path_factory.mktemp("depthwise")
    layers = [(16, 1, 3, 2, "leaky"), (16, 16, 3, 1, "leaky"), (8, 1, 1, 1, "linear")]
    layers += [(24, 1, 1, 1, "relu"), (24, 24, 3, 2, "relu")]
    names = ("filters", "groups", "size", "stride", "act")
    text = DEPTHWISE + "".join(_CONV.format(**dict(zip(names, one, strict=True))) for one in layers)
    text += "\n[maxpool]\nsize=2\nstride=2\n"
    text += "\n[convolutional]\nfilters=18\nsize=1\nstride=1\npad=1\nactivation=linear\n"
    text += "\n[yolo]\nmask=0,1,2\nanchors=4,4, 8,8, 16,16\nclasses=1\nnum=3\n"
    cfg = folder / "depthwise.cfg"
    cfg.write_text(text)
    loaded = load_model(cfg, random_weights=True, seed=3)
    rng = np.random.default_rng(0)
    import torch

    with torch.no_grad():
        for module in loaded.module.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                spread = np.exp(rng.normal(0, 1.5, module.num_features)).astype(np.float32)
                module.weight *= torch.from_numpy(spread)
                module.bias *= torch.from_numpy(spread)
    target = folder / "depthwise.fp32.onnx"
    write_onnx(loaded.module, loaded.spec, target)
    return target


def peaks(fp32: Path) -> dict[str, np.ndarray]:
    ranges = channel_ranges(fp32, network_inputs(fp32, "scenes://?seed=1&count=4", 4))
    return {name: one.peaks for name, one in ranges.items()}


def test_gains_change_no_result(fp32: Path) -> None:
    model = onnx.load(str(fp32))
    equal = apply_gains(model, find_gains(model, peaks(fp32)))
    for _, image in network_inputs(fp32, "scenes://?seed=9&count=2", 2):
        for mine, wanted in zip(run(equal, image), run(model, image), strict=True):
            assert decibel(wanted, mine) > 100


def test_a_depthwise_reader_gets_channels_of_one_range(fp32: Path) -> None:
    model = onnx.load(str(fp32))
    before = peaks(fp32)
    gains = find_gains(model, before)
    depthwise = [
        node.input[0]
        for node in convolutions(model)
        if any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]
    assert depthwise
    for tensor in depthwise:
        even = before[tensor] / gains[tensor]
        live = before[tensor] > before[tensor].max() / 1000
        assert np.ptp(np.log(even[live])) < 1e-3 * 32 or np.ptp(np.log(gains[tensor])) > 3
        assert np.ptp(np.log(even[live])) < np.ptp(np.log(before[tensor][live]))


def test_weights_take_more_where_a_network_has_depthwise_convolutions(fp32: Path) -> None:
    model, plain = onnx.load(str(fp32)), onnx.load(str(BUILT_IN["tiny-yolo-scenes"]))
    seen = channel_ranges(
        BUILT_IN["tiny-yolo-scenes"],
        network_inputs(BUILT_IN["tiny-yolo-scenes"], "scenes://?seed=1&count=1", 1),
    )
    ranges = {name: one.peaks for name, one in seen.items()}
    for given, known, strength in ((model, peaks(fp32), 0.7), (plain, ranges, 0.5)):
        usual, named = find_gains(given, known), find_gains(given, known, strength)
        assert usual
        assert all(np.array_equal(usual[name], named[name]) for name in usual)


def test_a_tensor_that_an_addition_reads_is_left_alone() -> None:
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["a"], name="a"),
        helper.make_node("Conv", ["a", "w", "b"], ["c"], name="c"),
        helper.make_node("Add", ["a", "c"], ["y"], name="y"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "residual",
        [value("images", 1, [1, 3, 8, 8])],
        [value("y", 1, None)],
        [
            onnx.numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w"),
            onnx.numpy_helper.from_array(np.ones(3, np.float32), "b"),
        ],
    )
    assert find_gains(helper.make_model(graph), {"a": np.float32([1, 2, 3])}) == {}


def test_gains_of_another_graph_are_refused(fp32: Path) -> None:
    with pytest.raises(ValueError, match="elsewhere"):
        apply_gains(onnx.load(str(fp32)), {"elsewhere": np.ones(3, np.float32)})


def test_equalised_and_corrected_int8_is_nearer_to_fp32(fp32: Path, tmp_path: Path) -> None:
    data = "scenes://?seed=1&count=12"
    plain = scales(fp32, data, equalise=False).table
    write_int8(fp32, plain, tmp_path / "plain.onnx")
    table = correct_bias(fp32, scales(fp32, data).table, network_inputs(fp32, data, 8))
    write_int8(fp32, table, tmp_path / "best.onnx")
    noise = {"plain": 0.0, "best": 0.0}
    for _, image in network_inputs(fp32, "scenes://?seed=50&count=4", 4):
        wanted = run(fp32, image)[0]
        for name in noise:
            mine = run(tmp_path / f"{name}.onnx", image)[0]
            noise[name] += float(((mine - wanted) ** 2).sum())
    assert noise["best"] < noise["plain"] / 2


def test_corrected_biases_leave_no_mean_error(fp32: Path) -> None:
    data = "scenes://?seed=1&count=4"
    table = scales(fp32, data, equalise=False).table
    shifts = dict(correct_bias(fp32, table, network_inputs(fp32, data, 4)).bias)
    model = onnx.load(str(fp32))
    found = measure_noise(model, dict(table.amax), network_inputs(fp32, data, 4))
    assert set(shifts) == {node.name for node in convolutions(model)}
    for name, noise in found.items():
        assert np.allclose(noise.shift, shifts[name], atol=1e-5, rtol=1e-4)
        assert noise.decibel > 10
