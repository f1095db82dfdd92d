"""Adaptive rounding finds what trying everything finds; the table carries it, and damage shows."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from calibration.adaround import round_adaptively, round_if_better
from calibration.correction import correct_bias
from calibration.int8_graph import int8_graph
from calibration.patches import Geometry, geometry, mean_patch, patches
from calibration.qdq import convolutions, insert_qdq, quantize_weight
from calibration.rounding import pack_steps, unpack_steps
from calibration.rounding_fit import descend
from calibration.scales import network_inputs
from calibration.table import read_table, write_table
from edge.data.datasets import open_dataset
from edge.errors import CalibrationError
from export.int8.quantize import write_int8
from tests.support.small_models import decibel, picture, run, write_small
from tests.support.steps import scales


def images(folder: Path, count: int = 16, seed: int = 0) -> Path:
    folder.mkdir()
    for index in range(count):
        image = picture((48, 64), seed=seed + index)[0].transpose(1, 2, 0)
        cv2.imwrite(str(folder / f"{index:02d}.png"), np.rint(image * 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adaround") / "small.onnx"
    write_small(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("pictures") / "a")


AS_WRITTEN = {"graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL}
CONVOLUTIONS = (
    Geometry((3, 3), pads=(1, 1, 1, 1)),
    Geometry((3, 3), (2, 2), pads=(1, 1, 1, 1)),
    Geometry((1, 1)),
    Geometry((3, 3), (2, 2), pads=(1, 1, 1, 1), groups=8),
    Geometry((3, 3), (1, 1), (2, 2), (2, 2, 2, 2), groups=2),
    Geometry((2, 3), (1, 2), pads=(0, 1, 1, 1)),
)


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_patches_times_weights_are_torchs_convolution(conv: Geometry) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 8, 9, 10)).astype(np.float32)
    weight = rng.normal(size=(16, 8 // conv.groups, *conv.kernel)).astype(np.float32)
    top, left, bottom, right = conv.pads
    padded = torch.nn.functional.pad(torch.from_numpy(x), (left, right, top, bottom))
    wanted = torch.nn.functional.conv2d(
        padded, torch.from_numpy(weight), None, conv.strides, 0, conv.dilations, conv.groups
    ).numpy()[0]
    columns = weight.reshape(conv.groups, 16 // conv.groups, -1).swapaxes(1, 2)
    rows = patches(x, conv, 10**6, np.random.default_rng(1))
    drawn = np.random.default_rng(1).permutation(wanted[0].size)
    found = (rows @ columns).swapaxes(1, 2).reshape(16, -1)
    np.testing.assert_allclose(found, wanted.reshape(16, -1)[:, drawn], atol=1e-4)
    mean = (mean_patch(x, conv)[:, None] @ columns).reshape(-1)
    np.testing.assert_allclose(mean, wanted.mean(axis=(1, 2)), atol=1e-4)


def test_the_geometry_is_that_of_the_node(fp32: Path) -> None:
    model = onnx.load(str(fp32))
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    found = [geometry(node, weights[node.input[1]]) for node in convolutions(model)]
    assert found[0] == Geometry((3, 3), pads=(1, 1, 1, 1))
    assert found[3] == Geometry((3, 3), pads=(1, 1, 1, 1), groups=8)
    assert Geometry((3, 3), (2, 2), pads=(1, 1, 1, 1)) in found


def cost(levels: np.ndarray, target: np.ndarray, seen: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(seen @ levels - wanted @ target).sum())


def best_of_all(target: np.ndarray, seen: np.ndarray, wanted: np.ndarray) -> float:
    choices = np.array(list(itertools.product((0, 1), repeat=len(target)))).T
    errors = seen @ (np.floor(target) + choices) - wanted @ target
    return float(np.square(errors).sum(axis=0).min())


def test_descent_ends_where_no_single_weight_can_be_turned_and_near_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8))
    seen = mixed + rng.normal(0, 0.1, mixed.shape)
    target = rng.uniform(-20, 20, (8, 40))
    start = np.rint(target)
    own, cross = seen.T @ seen, seen.T @ mixed
    found = descend(start[None], target[None], own[None], cross[None])[0]
    low = np.floor(target)
    assert np.isin(found - low, (0, 1)).all()
    ours, nearest = cost(found, target, seen, mixed), cost(start, target, seen, mixed)
    for index in range(8):
        turned = found.copy()
        turned[index] = 2 * low[index] + 1 - found[index]
        worse = np.square(seen @ turned - mixed @ target).sum(axis=0)
        assert (worse >= np.square(seen @ found - mixed @ target).sum(axis=0) - 1e-6).all()
    least = sum(best_of_all(target[:, [i]], seen, mixed) for i in range(40))
    assert least <= ours <= least + 0.5 * (nearest - least)


def test_groups_and_blocks_are_descended_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(-100, 100, (3, 150, 4))
    seen = rng.normal(size=(3, 300, 150))
    seen = seen + 0.7 * seen.mean(axis=2, keepdims=True) * np.sqrt(150)
    own = seen.swapaxes(1, 2) @ seen
    whole = descend(np.rint(target), target, own, own)
    for group in range(3):
        part = slice(group, group + 1)
        for column in range(4):
            alone = target[part, :, column : column + 1]
            found = descend(np.rint(alone), alone, own[part], own[part])
            np.testing.assert_array_equal(found[0, :, 0], whole[group, :, column])
    error = np.square(seen @ (whole - target)).sum()
    assert error < 0.5 * np.square(seen @ (np.rint(target) - target)).sum()


def test_levels_stay_within_the_range() -> None:
    target = np.full((1, 4, 1), 126.9)
    target[0, 0] = -127.0
    own = np.eye(4)[None] * 2 + 1
    found = descend(np.rint(target), target, own, own)
    assert np.abs(found).max() <= 127 and found[0, 0, 0] == -127


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (1, 1, 1, 1), (4, 8, 1, 1)])
def test_steps_go_through_text(shape: tuple[int, ...]) -> None:
    steps = np.random.default_rng(0).integers(-1, 2, shape).astype(np.int8)
    np.testing.assert_array_equal(unpack_steps(pack_steps(steps), shape), steps)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("?", "damaged"),
        ("AAAA", "damaged"),
        (pack_steps(np.zeros(5, np.int8)), "size"),
        (pack_steps(np.zeros(3, np.int8)), "size"),
        (pack_steps(np.zeros(10**7, np.int8)), "size"),
        (pack_steps(np.full(4, 2, np.int8)), "neither"),
        (pack_steps(np.full(4, -128, np.int8)), "neither"),
    ],
)
def test_damaged_steps_are_refused(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        unpack_steps(text, (4,))


@pytest.fixture(scope="module")
def tables(fp32: Path, data: Path):
    plain = scales(fp32, data, threads=1).table
    arrays = [(name, array.copy()) for name, array in network_inputs(fp32, data, 16)]
    return correct_bias(fp32, plain, arrays), round_adaptively(fp32, plain, arrays, threads=1)


def test_the_heads_of_unseen_images_have_less_noise(fp32: Path, tables, tmp_path: Path) -> None:
    corrected, rounded = tables
    unseen = [a.copy() for _, a in network_inputs(fp32, images(tmp_path / "b", 8, 900), 8)]
    model = onnx.load(str(fp32))

    def noise(table) -> float:
        graph = int8_graph(model, table)
        pairs = [(run(model, a), run(graph, a, **AS_WRITTEN)) for a in unseen]
        return float(np.mean([decibel(w, f) for both in pairs for w, f in zip(*both, strict=True)]))

    assert noise(rounded) > noise(corrected)


def test_each_convolution_is_rounded_to_a_neighbour_and_its_gain_is_told(
    fp32: Path, tables
) -> None:
    rounded = tables[1]
    model = onnx.load(str(fp32))
    names = [node.name for node in convolutions(model)]
    assert [name for name, _ in rounded.rounding] == names == [n for n, _ in rounded.bias]
    gains = dict(rounded.gain_db)
    assert set(gains) == set(names) and min(gains.values()) >= 0 and max(gains.values()) > 0.1
    plain = replace(rounded, gains=())
    levels = {i.name: i for i in int8_graph(model, plain).graph.initializer}
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    moved = 0
    for node in convolutions(model):
        nearest, _ = quantize_weight(weights[node.input[1]])
        found = numpy_helper.to_array(levels[f"{node.input[1]}.quantized"])
        assert found.dtype == np.int8 and np.abs(found.astype(int) - nearest).max() <= 1
        moved += np.count_nonzero(found != nearest)
    assert moved > 50


def test_a_table_from_its_file_gives_the_int8_file_byte_for_byte(
    fp32: Path, tables, tmp_path: Path
) -> None:
    write_table(tables[1], tmp_path / "t.calib.json")
    again = read_table(tmp_path / "t.calib.json")
    assert again == tables[1]
    write_int8(fp32, tables[1], tmp_path / "a.onnx")
    manifest = write_int8(fp32, again, tmp_path / "b.onnx").manifest
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    write_int8(fp32, replace(again, rounding=()), tmp_path / "c.onnx")
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "c.onnx").read_bytes()
    known = dict(manifest.arguments)
    assert known["rounded_weights"] == str(len(again.rounding)) and "layers" in known["gain_db"]


def test_a_table_whose_rounding_does_not_fit_names_the_convolution(
    fp32: Path, tables, tmp_path: Path
) -> None:
    name = tables[1].rounding[0][0]
    wrong = replace(tables[1], rounding=((name, pack_steps(np.zeros(3, np.int8))),))
    with pytest.raises(CalibrationError, match=rf"^{name}: .*calibrate again"):
        write_int8(fp32, wrong, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_layers_kept_out_of_int8_keep_their_weights(fp32: Path, tables) -> None:
    model = onnx.load(str(fp32))
    kept = convolutions(model)[1]
    graph = int8_graph(model, replace(tables[1], gains=()), keep=[kept.name])
    wanted = insert_qdq(model, dict(tables[1].amax), keep=[kept.name])
    mine, theirs = (
        {i.name: numpy_helper.to_array(i) for i in g.graph.initializer} for g in (graph, wanted)
    )
    for name in kept.input[1:]:
        np.testing.assert_array_equal(mine[name], theirs[name])


def test_rounding_is_kept_only_where_the_heads_gain(
    fp32: Path, data: Path, tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(data)
    found = round_if_better(fp32, tables[0], dataset, threads=1)
    judged = dict(found.head_db)
    assert bool(found.rounding) == (judged["adaround"] > judged["nearest"])
    worse = replace(tables[1], bias=tuple((n, tuple(v + 1 for v in b)) for n, b in tables[1].bias))
    monkeypatch.setattr("calibration.adaround.round_adaptively", lambda *args, **options: worse)
    found = round_if_better(fp32, tables[0], dataset, threads=1)
    assert found.rounding == () and found.bias == tables[0].bias
    assert dict(found.head_db)["adaround"] < dict(found.head_db)["nearest"]


def test_too_few_images_are_refused(fp32: Path, tables) -> None:
    with pytest.raises(CalibrationError, match="takes 4 images or more, there are 1"):
        round_adaptively(fp32, tables[0], [("a", np.zeros((1, 3, 48, 64), np.float32))])
