"""Quantization-aware training: what is trained is what is exported, and it comes nearer to FP32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from apps.cli import main
from calibration.correction import correct_bias
from calibration.qdq import convolutions, quantize_weight
from calibration.scales import network_inputs
from calibration.table import CalibrationTable, read_table
from edge.artifact import read_manifest
from edge.built_in import BUILT_IN
from edge.data.datasets import open_dataset
from edge.data.world.world import CLASSES
from edge.errors import ArtifactError, CalibrationError
from edge.files import sha256_of
from edge.measure.noise import head_noise, heads_of
from edge.models.onnx_steps import read_steps
from edge.train.losses.ciou import loss_for
from edge.train.pictures import read_pictures
from edge.train.qat import fine_tune, imitation
from edge.train.quantized_network import (
    QuantizedNetwork,
    fake_activation,
    fake_weight,
    float_network,
    weight_scale,
)
from edge.train.schedule import Schedule
from export.graph.writer import write_onnx
from export.int8.quantize import write_int8
from export.qat.course import imitate, learn_labels
from export.qat.options import QatOptions
from export.qat.prepare import Prepared, prepare, settled, write_trained
from tests.support.small_models import CFG, decibel, picture, run, small, write_small
from tests.support.steps import scales
from tests.support.tolerances import FLIPPED_DB, HALF_STEP_SHARE, ONNX_ATOL

DATA = "scenes://?seed=1&count=12"
_LEAKY, _MISH = (f"size=3\nstride=1\npad=1\nactivation={name}" for name in ("leaky", "mish"))
# Operations that `small_models.CFG` leaves out.
OTHERS = (
    CFG.replace("activation=relu", "activation=relu6")
    .replace(_LEAKY, _MISH)
    .replace("stride=2\npad=1\nactivation=leaky", "stride=2\npad=1\nactivation=swish")
)


def inputs(path: Path, data: str = DATA) -> list[np.ndarray]:
    return [array.copy() for _, array in network_inputs(path, data, 12)]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qat") / "small.fp32.onnx"
    write_small(path)
    return path


@pytest.fixture(scope="module")
def table(fp32: Path) -> CalibrationTable:
    made = scales(fp32, DATA, threads=1).table
    assert made.gains
    return correct_bias(fp32, made, network_inputs(fp32, DATA, 6))


@pytest.fixture(scope="module")
def trained(fp32: Path, table: CalibrationTable) -> tuple[Prepared, QuantizedNetwork]:
    prepared = prepare(fp32, table)
    return prepared, imitate(prepared, inputs(fp32), QatOptions(steps=60, batch=2, rate=0.02))


def heads(network: QuantizedNetwork, image: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [head.numpy() for head in network(torch.from_numpy(image))]


def exact(path: Path, image: np.ndarray) -> list[np.ndarray]:
    """A Q/DQ graph as it is written, by onnxruntime."""
    return heads_of(path, [image], threads=1)[0]


def same_numbers(network: QuantizedNetwork, path: Path, share: float = HALF_STEP_SHARE) -> None:
    """Equal but for half steps that fall to the other side, as float32 sums differ in a last bit.

    All levels and scales are equal to the bit, so between two roundings only the order of a
    convolution's sum differs. `share` is that of the cells that may differ at all, in all pictures
    but one: which has a sum on the edge of two levels early on depends on the CPU.
    """
    shares = []
    for image in picture((48, 64), seed=5, count=5):
        worst = 0.0
        for mine, wanted in zip(heads(network, image[None]), exact(path, image[None]), strict=True):
            far = np.abs(mine - wanted) > 1e-5 * np.abs(wanted).max()
            worst = max(worst, far.mean())
            assert decibel(wanted, mine) > FLIPPED_DB
        shares.append(worst)
    assert sorted(shares)[-2] <= share


# ---------------------------------------------------------------- rounding and its gradients


def test_rounding_is_that_of_quantize_linear() -> None:
    scale = np.float32(0.037)
    x = np.concatenate([np.arange(-140, 141) * scale / 2, [0.5 * scale, 1.5 * scale, -9, 9]])
    x = x.astype(np.float32)[None, None, None]
    node = onnx.helper.make_node
    value = onnx.helper.make_tensor_value_info
    constants = [
        onnx.numpy_helper.from_array(scale, "s"),
        onnx.numpy_helper.from_array(np.int8(0), "z"),
    ]
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "qdq", [value("x", 1, x.shape)], [value("y", 1, x.shape)], constants
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    (wanted,) = run(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), x)
    mine = fake_activation(torch.from_numpy(x), torch.tensor(scale))
    assert np.array_equal(mine.numpy(), wanted)
    assert wanted.min() == np.float32(-128) * scale and wanted.max() == np.float32(127) * scale


def test_weights_round_as_the_writer_rounds_them() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (5, 3, 3, 3)).astype(np.float32)
    weight[1] *= 1e-30
    weight[2] = 0
    levels, scale = quantize_weight(weight)
    assert np.array_equal(weight_scale(torch.from_numpy(weight)).numpy(), scale)
    wanted = levels.astype(np.float32) * scale[:, None, None, None]
    assert np.array_equal(fake_weight(torch.from_numpy(weight)).numpy(), wanted)


def test_gradients_are_those_of_learned_step_size_quantization() -> None:
    x = torch.tensor([0.1, 0.26, -0.74, 40.0, -40.0], requires_grad=True)
    scale = torch.tensor(0.25, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0])
    (fake_activation(x, scale) * weights).sum().backward()
    assert x.grad is not None and scale.grad is not None
    assert x.grad.tolist() == [1, 2, 3, 0, 0]
    # Equation 3: round(v) - v inside, the bound outside; section 2.2: over sqrt(N Qp).
    inside = np.array([0 - 0.4, 1 - 1.04, -3 + 2.96])
    wanted = inside @ [1, 2, 3] + 127 * 5 - 128 * 7
    assert float(scale.grad) == pytest.approx(wanted / np.sqrt(5 * 127), rel=1e-5)
    weight = torch.tensor([[[[0.3, -1.0]]]], requires_grad=True)
    (fake_weight(weight) * torch.tensor([2.0, 3.0])).sum().backward()
    assert weight.grad is not None and weight.grad.flatten().tolist() == [2, 3]


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("cfg", [CFG, OTHERS], ids=["leaky", "swish, mish, relu6"])
def test_the_teacher_is_the_fp32_file(tmp_path: Path, cfg: str) -> None:
    path = tmp_path / "a.onnx"
    write_small(path, cfg)
    image = picture((48, 64), seed=1, count=2)
    found = heads(float_network(onnx.load(str(path))), image)
    for number in range(2):
        for mine, wanted in zip(found, run(path, image[number : number + 1]), strict=True):
            assert np.abs(mine[number] - wanted[0]).max() < ONNX_ATOL


def test_the_built_in_detectors_can_be_read() -> None:
    for path in BUILT_IN.values():
        hw = read_manifest(path).spec.contract.hw
        image = picture(hw, seed=2)
        found = heads(float_network(onnx.load(str(path))), image)
        for mine, wanted in zip(found, run(path, image), strict=True):
            assert decibel(wanted, mine) > 90


def test_what_cannot_be_trained_is_named(fp32: Path) -> None:
    model = onnx.load(str(fp32))
    next(n for n in model.graph.node if n.op_type == "LeakyRelu").op_type = "Selu"
    with pytest.raises(ArtifactError, match=r"layers\S+: Selu cannot be trained"):
        read_steps(model)


def test_it_starts_where_the_int8_file_is(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    write_int8(fp32, table, tmp_path / "ptq.onnx")
    prepared = prepare(fp32, table)
    start = dict(table.amax)
    # Sharing may go on after the writer's one pass; here it does not, so the two are the same.
    assert settled(prepared.model, start) == settled(prepared.model, settled(prepared.model, start))
    same_numbers(prepared.network, tmp_path / "ptq.onnx")


def test_gains_and_biases_of_the_table_are_inside(fp32: Path, table: CalibrationTable) -> None:
    network, model = prepare(fp32, table).network, onnx.load(str(fp32))
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    before = {n.name: constants[n.input[2]] for n in convolutions(model)}
    moved = [n for n in before if not np.allclose(network.bias(n).detach().numpy(), before[n])]
    assert set(moved) >= {name for name, shift in table.bias if np.abs(shift).max() > 1e-3}


# ---------------------------------------------------------------- training and its files


def test_the_exported_graph_gives_the_numbers_of_the_trained_module(
    trained: tuple[Prepared, QuantizedNetwork], fp32: Path, tmp_path: Path
) -> None:
    prepared, network = trained
    table = write_trained(prepared, network, tmp_path / "a.fp32.onnx", inputs(fp32))
    write_int8(tmp_path / "a.fp32.onnx", table, tmp_path / "a.int8.onnx")
    same_numbers(network, tmp_path / "a.int8.onnx")
    graph = onnx.load(str(tmp_path / "a.int8.onnx")).graph
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    for name, index in network.scale_of.items():
        assert constants[f"{name}.scale"] == network.scale(index).item()
    for name in network.convolutions:
        scale = constants[f"{name}.weight.scale"][:, None, None, None]
        wanted = constants[f"{name}.weight.quantized"] * scale
        assert np.array_equal(fake_weight(network.weight(name)).detach().numpy(), wanted)
        assert np.array_equal(network.bias(name).detach().numpy(), constants[f"{name}.bias"])


def test_scales_and_weights_learn_and_int8_comes_nearer(
    trained: tuple[Prepared, QuantizedNetwork], fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    prepared, network = trained
    start = settled(prepared.model, dict(table.amax))
    assert any(abs(amax / start[n] - 1) > 1e-3 for n, amax in network.amax().items())
    made = write_trained(prepared, network, tmp_path / "a.fp32.onnx", inputs(fp32))
    write_int8(tmp_path / "a.fp32.onnx", made, tmp_path / "a.int8.onnx")
    write_int8(fp32, table, tmp_path / "ptq.onnx")
    unseen = inputs(fp32, "scenes://?seed=900&count=12")
    wanted = heads_of(fp32, unseen, 1)
    before, after = (
        head_noise(wanted, heads_of(tmp_path / name, unseen, 1))
        for name in ("ptq.onnx", "a.int8.onnx")
    )
    assert after > before


def test_files_say_where_they_come_from(
    trained: tuple[Prepared, QuantizedNetwork], fp32: Path, tmp_path: Path
) -> None:
    prepared, network = trained
    target = tmp_path / "a.fp32.onnx"
    table = write_trained(prepared, network, target, inputs(fp32), {"qat_steps": 60})
    manifest = read_manifest(target)
    assert manifest.parent_sha256 == sha256_of(fp32) and manifest.precision == "fp32"
    assert json.loads(dict(manifest.arguments)["qat_steps"]) == 60
    assert (table.method, table.graph_sha256) == ("qat", sha256_of(target))
    assert not table.gains and not table.bias and table.low
    assert table.images == prepared.table.images


def test_scales_that_come_near_each_other_end_as_the_writer_shares_them(fp32: Path) -> None:
    model = onnx.load(str(fp32))
    concat = next(n for n in model.graph.node if n.op_type == "Concat")
    names = [*concat.input, concat.output[0]]
    # Each joins with the next once the one before has joined: more than one pass.
    amax = dict(zip(names, (1.0, 1.4, 2.0), strict=True))
    final = settled(model, amax)
    assert settled(model, final) == final


def test_pruned_weights_stay_zero(fp32: Path, table: CalibrationTable, tmp_path: Path) -> None:
    model = onnx.load(str(fp32))
    weight = next(i for i in model.graph.initializer if i.name == convolutions(model)[1].input[1])
    array = onnx.numpy_helper.to_array(weight).copy()
    gone = np.random.default_rng(0).random(array.shape) < 0.5
    array[gone] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, str(tmp_path / "p.fp32.onnx"))
    made = scales(tmp_path / "p.fp32.onnx", DATA, threads=1).table
    prepared = prepare(tmp_path / "p.fp32.onnx", made)
    network = imitate(prepared, inputs(fp32), QatOptions(steps=4, batch=1, rate=0.1))
    found = network.weight(convolutions(model)[1].name).detach().numpy()
    assert not found[gone].any() and found[~gone].all()


def test_kept_layers_stay_in_floating_point(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    keep = [convolutions(onnx.load(str(fp32)))[i].name for i in (0, 3)]
    prepared = prepare(fp32, table, keep=keep)
    network = imitate(prepared, inputs(fp32), QatOptions(steps=4, batch=1))
    made = write_trained(prepared, network, tmp_path / "a.fp32.onnx", inputs(fp32))
    manifest = write_int8(tmp_path / "a.fp32.onnx", made, tmp_path / "a.onnx", keep=keep).manifest
    assert manifest.precision == "mixed"
    # Sums in floating point before the first rounding: more half steps fall to the other side.
    same_numbers(network, tmp_path / "a.onnx", share=0.3)


def test_any_loss_can_train_it(fp32: Path, table: CalibrationTable) -> None:
    prepared, spec = prepare(fp32, table), read_manifest(fp32).spec
    image = torch.from_numpy(picture((48, 64), count=2))
    targets = torch.tensor([[0, 1, 20.0, 20.0, 16.0, 12.0], [1, 0, 40.0, 24.0, 20.0, 20.0]])
    losses: list[float] = []
    network = fine_tune(
        prepared.network,
        loss_for(spec),
        lambda: (image, targets),
        Schedule(12, peak=0.2, warmup=2, decay=0.0, average=0.9),
        prepared.settle,
        lambda step, loss: losses.append(loss),
    )
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert not network.training


def test_the_loss_is_the_noise_share_of_the_heads() -> None:
    rng = np.random.default_rng(0)
    wanted = [rng.normal(0, s, (1, 4, 3, 3)).astype(np.float32) for s in (1, 5)]
    found = [w + rng.normal(0, 0.1, w.shape).astype(np.float32) for w in wanted]
    loss, _ = imitation([torch.from_numpy(f) for f in found], list(map(torch.from_numpy, wanted)))
    shares = [((f - w) ** 2).sum() / (w**2).sum() for f, w in zip(found, wanted, strict=True)]
    assert float(loss) == pytest.approx(np.mean(shares), rel=1e-5)


@pytest.mark.parametrize(
    ("how", "words"), [("another graph", "another graph"), ("a tensor less", "no threshold")]
)
def test_a_table_that_does_not_fit_is_refused(
    fp32: Path, table: CalibrationTable, how: str, words: str
) -> None:
    wrong = (
        replace(table, graph_sha256="0" * 64)
        if how == "another graph"
        else replace(table, amax=table.amax[1:])
    )
    with pytest.raises(CalibrationError, match=words):
        prepare(fp32, wrong)


def test_nothing_to_learn_from_and_unknown_layers_are_refused(
    fp32: Path, table: CalibrationTable
) -> None:
    with pytest.raises(CalibrationError, match="no image to train on"):
        imitate(prepare(fp32, table), [])
    with pytest.raises(ValueError, match="no such convolution: x"):
        prepare(fp32, table, keep=["x"])
    with pytest.raises(CalibrationError, match="lower the learning rate"):
        imitate(prepare(fp32, table), [np.full((1, 3, 48, 64), np.nan, np.float32)])


def test_the_command_writes_three_files_and_what_was_gained(
    fp32: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report: dict[str, Any] = {}
    options = ["--data", DATA, "--steps", "8", "--batch", "2", "-o", str(tmp_path / "out")]
    status = main(["qat", str(fp32), *options, "--json", str(tmp_path / "r.json")])
    report = json.loads((tmp_path / "r.json").read_text())
    assert status == (0 if report["better"] else 1)
    assert (report["images"], report["held"]) == (11, 1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "small.qat.fp32.onnx",
        "small.qat.int8.onnx",
        "small.qat.calib.json",
    }
    assert read_table(report["files"]["calibration"]).method == "qat"
    assert "signal to noise of the heads on 1 images held back" in capsys.readouterr().err
    assert main(["qat", str(fp32), "--data", str(tmp_path / "gone")]) == 2
    int8 = report["files"]["int8"]
    assert main(["qat", int8, "--data", DATA]) == 2
    assert "give the FP32 file" in capsys.readouterr().err


def test_calibrated_scales_stay_when_they_do_not_learn(fp32: Path, table: CalibrationTable) -> None:
    prepared = prepare(fp32, table)
    start = prepared.network.amax()
    weights = [levels.detach().clone() for levels in prepared.network.levels]
    network = imitate(
        prepared, inputs(fp32), QatOptions(steps=6, batch=1, rate=0.1, calibrated_scales=True)
    )
    assert network.amax() == pytest.approx(start, rel=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(weights, network.levels, strict=True))


LABELLED = "scenes://?seed=1&count=8"


def test_boxes_teach_it_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.fp32.onnx"
    module, spec = small()
    spec = replace(spec, classes=CLASSES[:2])
    write_onnx(module, spec, path)
    pictures, _, _ = read_pictures(open_dataset(LABELLED, spec.classes), spec)
    prepared = prepare(path, scales(path, LABELLED, threads=1).table)
    losses: list[float] = []
    options = QatOptions(steps=10, batch=2, rate=0.2)
    network = learn_labels(prepared, pictures, options, lambda step, loss: losses.append(loss))
    assert len(losses) == 10 and np.isfinite(losses).all()
    table = write_trained(prepared, network, tmp_path / "b.fp32.onnx", inputs(path))
    write_int8(tmp_path / "b.fp32.onnx", table, tmp_path / "b.int8.onnx")
    same_numbers(network, tmp_path / "b.int8.onnx")


def test_the_command_judges_by_labels_where_there_are_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.fp32.onnx"
    module, spec = small()
    write_onnx(module, replace(spec, classes=CLASSES[:2]), path)
    options = ["--data", LABELLED, "--steps", "2", "--batch", "2", "-o", str(tmp_path / "out")]
    assert main(["qat", str(path), *options, "--labels"]) == 2
    assert "--val" in capsys.readouterr().err
    options += ["--labels", "--val", "scenes://?seed=50&count=2", "--json", str(tmp_path / "r")]
    status = main(["qat", str(path), *options])
    report = json.loads((tmp_path / "r").read_text())
    assert set(report["map50"]) == {"fp32", "ptq", "qat"}
    assert status == (0 if report["map50"]["qat"] >= report["map50"]["ptq"] else 1)
    assert "mAP@.5 on" in capsys.readouterr().err


def test_overlap_is_found_before_the_training_and_nothing_hidden_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.fp32.onnx"
    module, spec = small()
    write_onnx(module, replace(spec, classes=CLASSES[:2]), path)
    command = ["qat", str(path), "--data", LABELLED, "--steps", "2", "-o", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr("export.qat.run.imitate", lambda *_: pytest.fail("it trained"))
        patch.setattr("export.qat.run.calibrate", lambda *_, **__: pytest.fail("it calibrated"))
        assert main([*command, "--val", "scenes://?seed=8&count=2"]) == 2
        assert "1 of the 2 pictures" in capsys.readouterr().err
        assert main([*command, "--val", str(tmp_path)]) == 2
    assert main([*command, "--val", "scenes://?seed=8&count=2", "--allow-overlap"]) in (0, 1)
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]
