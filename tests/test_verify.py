"""`verify` finds the layer at which two graphs part, and counts the boxes that agree."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from apps.cli import main
from apps.commands.verify import arguments, run
from edge.artifact import read_manifest
from edge.built_in import BUILT_IN
from edge.detections import Detections
from edge.errors import ArtifactError
from edge.measure.noise import agreement, compare_tensors, first_departure, open_network
from export.compare import VerifyOptions, verify
from export.graph.writer import attach_manifest
from export.int8.quantize import write_half
from tests.support.painted import write_painted, write_painted_int8, write_pictures
from tests.support.small_models import CFG, decibel, picture, write_small
from tests.support.small_models import run as run_onnx


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    write_pictures(folder / "set", 6)
    write_painted(folder / "fp32.onnx")
    write_painted_int8(folder / "fp32.onnx", folder / "int8.onnx")
    write_painted_int8(folder / "fp32.onnx", folder / "stale.onnx", stale=0.2)
    write_half(folder / "fp32.onnx", folder / "half.onnx")
    return folder


def test_noise_is_that_of_the_definition(files: Path) -> None:
    images = [picture((64, 64), seed) for seed in range(3)]
    networks = [open_network(files / name, 1) for name in ("fp32.onnx", "int8.onnx")]
    noises = {one.name: one.db for one in compare_tensors(*networks, images)}
    model = onnx.load(files / "fp32.onnx")
    for name in ("layers.0.act", "layers.2.conv"):
        sides = []
        for file in ("fp32.onnx", "int8.onnx"):
            model = onnx.load(files / file)
            if name != "layers.2.conv":
                model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
            sides.append(np.concatenate([run_onnx(model, one, [name])[0] for one in images]))
        assert noises[name] == pytest.approx(decibel(*sides), abs=0.05)


def test_own_noise_is_what_the_inputs_did_not_bring(files: Path) -> None:
    networks = [open_network(files / name, 1) for name in ("fp32.onnx", "stale.onnx")]
    found = {one.name: one for one in compare_tensors(*networks, [picture((64, 64))])}
    inner = (one for one in found.values() if one.name != "layers.2.conv")
    worst = min(inner, key=lambda one: one.own_db)
    assert worst.name == "layers.1.pool.dequantized"
    assert found["layers.0.conv"].db == pytest.approx(found["images.dequantized"].db, abs=0.1)
    assert found["layers.0.conv"].own_db > found["layers.0.conv"].db + 20


@pytest.mark.parametrize(
    ("second", "departs"),
    [
        ("fp32.onnx", None),
        ("half.onnx", None),
        ("int8.onnx", None),
        ("stale.onnx", "layers.1.pool.dequantized"),
    ],
)
def test_the_first_layer_that_departs_is_named(
    files: Path, second: str, departs: str | None
) -> None:
    result = verify(
        files / "fp32.onnx", files / second, VerifyOptions(data=str(files / "set"), threads=1)
    )
    assert (result.departs, result.ok) == (departs, departs is None)
    assert result.images == 6
    assert result.agreement.boxes[0] > 10
    assert (result.agreement.share > 0.9) == (departs is None)


def test_a_changed_weight_is_found_where_it_is(files: Path, tmp_path: Path) -> None:
    manifest = write_small(tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    index = [i for i, one in enumerate(model.graph.initializer) if one.name.endswith(".weight")][2]
    weight = model.graph.initializer[index]
    name = weight.name.removesuffix(".weight")
    values = numpy_helper.to_array(weight) * 1.001
    weight.CopyFrom(numpy_helper.from_array(values.astype(np.float32), weight.name))
    onnx.save(model, tmp_path / "b.onnx")
    networks = [open_network(tmp_path / file, 1) for file in ("a.onnx", "b.onnx")]
    noises = compare_tensors(*networks, [picture(manifest.spec.contract.hw)])
    found = first_departure(noises, 80)
    assert found is not None
    assert found.name == name


def test_a_layer_that_got_noisier_than_before_is_where_it_departs(files: Path) -> None:
    images = [picture((64, 64))]
    networks = [open_network(files / name, 1) for name in ("fp32.onnx", "int8.onnx")]
    noises = compare_tensors(*networks, images)
    before = {one.name: one.db for one in noises}
    assert first_departure(noises, 12, before) is None
    before["layers.0.act"] += 10
    assert first_departure(noises, 12, before).name == "layers.0.act"


def test_gains_of_an_equalisation_are_no_noise(files: Path, tmp_path: Path) -> None:
    model = onnx.load(files / "fp32.onnx")
    gains = np.array([0.25, 1, 8], np.float32)
    for one in model.graph.initializer:
        values = numpy_helper.to_array(one)
        if one.name == "layers.0.conv.weight":
            one.CopyFrom(numpy_helper.from_array(values * gains[:, None, None, None], one.name))
        if one.name == "layers.2.conv.weight":
            one.CopyFrom(numpy_helper.from_array(values / gains[None, :, None, None], one.name))
    manifest = read_manifest(files / "fp32.onnx")
    options = VerifyOptions(data=str(files / "set"), threads=1)
    for count, departs in (("0", "layers.0.conv"), ("1", None)):
        told = replace(manifest, arguments=(("equalised_tensors", count),))
        attach_manifest(model, told)
        onnx.save(model, tmp_path / "b.onnx")
        result = verify(files / "fp32.onnx", tmp_path / "b.onnx", options)
        assert result.departs == departs
        assert result.agreement.share == 1


def test_torch_and_its_onnx_are_one_network(tmp_path: Path) -> None:
    from tests.test_bad_input import CFG as TINY

    pytest.importorskip("torch")
    from export.source import fp32_onnx

    cfg = tmp_path / "small.cfg"
    cfg.write_text(TINY)
    values = np.random.default_rng(0).uniform(0.1, 0.5, 8 * 4 + 8 * 27 + 18 + 18 * 8)
    header = np.array([0, 2, 0, 0, 0], np.int32).tobytes()
    cfg.with_suffix(".weights").write_bytes(header + values.astype(np.float32).tobytes())
    onnx_file = fp32_onnx(cfg, tmp_path)
    result = verify(cfg, onnx_file.path, VerifyOptions(data="scenes://?count=2", threads=1))
    assert result.ok
    assert {one.name for one in result.tensors} >= {"layers.0.conv", "layers.1.conv"}
    assert min(one.db for one in result.tensors) > 100


def test_two_models_are_not_compared(files: Path, tmp_path: Path) -> None:
    write_small(tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match="two artifacts of one model"):
        verify(files / "fp32.onnx", tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match="must be an"):
        verify("yolov3", "yolov4")


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    data = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(data[:, :4], data[:, 4], data[:, 5])


def test_agreement_pairs_boxes_of_one_class() -> None:
    a = boxes((0, 0, 10, 10, 0.9, 0), (20, 0, 30, 10, 0.8, 1), (50, 0, 60, 10, 0.1, 0))
    b = boxes((0, 0, 10, 8, 0.7, 0), (20, 0, 30, 10, 0.8, 0))
    found = agreement([a], [b])
    assert found.share == pytest.approx(2 * 1 / 4)
    assert found.iou == pytest.approx(0.8)
    assert found.score == pytest.approx(0.2)
    assert found.boxes == (2, 2)
    assert agreement([boxes()], [boxes()]).share == 1
    assert agreement([a], [boxes()]).share == 0


def test_one_box_is_the_partner_of_one_only() -> None:
    a = boxes((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 9, 0.8, 0))
    assert agreement([a], [boxes((0, 0, 10, 10, 0.9, 0))]).share == pytest.approx(2 / 3)


def test_the_command_says_it_with_its_status(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    arguments(parser)
    for second, status in (("int8.onnx", 0), ("stale.onnx", 1)):
        argv = [str(files / "fp32.onnx"), str(files / second), "--data", str(files / "set")]
        assert run(parser.parse_args([*argv, "--json", str(tmp_path / "v.json")])) == status
        printed = capsys.readouterr()
        assert "boxes that agree" in printed.err
    assert "departs at layers.1.pool.dequantized" in printed.err
    assert json.loads((tmp_path / "v.json").read_text())["departs"] == "layers.1.pool.dequantized"


@pytest.mark.parametrize("change", ["classes", "heads", "size"])
def test_detectors_with_other_heads_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    cfg = {
        "classes": CFG.replace("classes=2", "classes=3").replace("filters=21", "filters=24"),
        "heads": CFG.replace("10,14", "11,15"),
        "size": CFG.replace("width=64", "width=96"),
    }[change]
    assert cfg != CFG
    write_small(tmp_path / "a.onnx")
    write_small(tmp_path / "b.onnx", cfg)
    for pair in (("a.onnx", "b.onnx"), ("b.onnx", "a.onnx")):
        paths = [str(tmp_path / name) for name in pair]
        assert main(["verify", *paths, "--data", "scenes://?count=1"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "two artifacts of one model" in said
        assert str(tmp_path / pair[1]) in said and "edge evaluate --against" in said


def test_a_built_in_name_stands_for_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: str(path) for name, path in BUILT_IN.items()}
    command = ["verify", "squeezedet-scenes", files["squeezedet-scenes"]]
    assert main([*command, "--data", "scenes://?count=1"]) == 0
    assert "no tensor is below 80 dB" in capsys.readouterr().err
