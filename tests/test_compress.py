"""The whole way: compress, evaluate, unpack, export; the table's last row is the file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from apps.cli import main
from edge.built_in import BUILT_IN
from edge.compress.options import CompressOptions, FineTuneOptions, WeightRecipe
from edge.compress.weights.magnitude import convolutions
from edge.compress.weights.noise import heads_noise_db
from edge.data.datasets import load, open_dataset
from edge.edgez.package import read_package
from edge.errors import ArtifactError
from edge.models.checkpoint import load_safetensors, save_safetensors
from edge.models.darknet import load_darknet
from edge.models.dense import load_dense
from edge.models.folding import fold_norms
from edge.train.start import write_model
from export.compress.deep import compress
from tests.support.small_models import picture, run, small

TRAIN = "scenes://?seed=300&count=6"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small Darknet with two of the built-in world's classes."""
    module, spec = small()
    path = tmp_path / "small.safetensors"
    save_safetensors(module, path, replace(spec, classes=("car", "pedestrian")))
    return path


def test_the_stages_shrink_and_the_last_is_the_file(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, report = tmp_path / "s.edgez", tmp_path / "s.json"
    options = ["--data", "scenes", "--images", "3", "--prune", "0.6", "--json", str(report)]
    assert main(["compress", str(model), "-o", str(target), "--bits", "3", *options]) == 0
    result = json.loads(report.read_text())
    stages = result["stages"]
    assert [stage["name"] for stage in stages] == ["original", "pruned", "shared", "coded"]
    assert stages[-1]["bytes"] == target.stat().st_size
    sizes = [stage["bytes"] for stage in stages[:3]]
    assert sizes == sorted(sizes, reverse=True)
    assert stages[2]["map50"] == stages[3]["map50"]  # the package is the shared network
    assert all(0 <= stage["map50"] <= 1 for stage in stages)
    assert result["ratio"] == pytest.approx(stages[0]["bytes"] / target.stat().st_size)
    kept = sum(layer["kept"] for layer in result["layers"])
    weights = sum(layer["weights"] for layer in result["layers"])
    assert kept / weights == pytest.approx(0.4, abs=0.02)
    assert max(layer["levels"] for layer in result["layers"]) <= 8
    assert "Deep Compression" in capsys.readouterr().out
    assert [s["name"] for s in read_package(target).stages] == ["original", "pruned", "shared"]


def test_unpacked_files_and_the_export_are_one_detector(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "s.edgez"
    compress(model, None, CompressOptions(output=str(target)))
    assert main(["unpack", str(target), "-o", str(tmp_path / "u")]) == 0
    made = tmp_path / "u" / "small"
    export = ["export-engine", str(target), "--fp32", "--builder", "none", "-o", str(tmp_path)]
    assert main(export) == 0
    image = picture((48, 64))
    wanted = run(tmp_path / "small.fp32.onnx", image)
    state = dict(read_package(target).tensors())
    for module in (
        load_safetensors(made.with_suffix(".safetensors"))[0],
        load_darknet(made.with_suffix(".cfg"), made.with_suffix(".weights"))[0],
        load_dense(target, tmp_path).module,
    ):
        for name, tensor in module.state_dict().items():
            assert np.array_equal(tensor.numpy(), state[name])
        with torch.no_grad():
            for a, b in zip(wanted, module(torch.from_numpy(image)), strict=True):
                assert np.allclose(a, b.numpy(), atol=1e-4)
    assert made.with_suffix(".names").read_text().split() == ["car", "pedestrian"]


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "safetensors"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from apps.cli import main
sys.exit(main(["unpack", sys.argv[1], "-o", sys.argv[2]]))
"""


def test_a_device_without_torch_unpacks_the_onnx_file(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "s.edgez"
    compress(model, None, CompressOptions(output=str(target)))
    command = [sys.executable, "-c", WITHOUT_TORCH, str(target), str(tmp_path / "u")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "u").iterdir()] == ["small.fp32.onnx"]
    assert "only the ONNX file is written" in done.stderr


def test_training_keeps_what_was_pruned_and_leaves_a_log(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "s.edgez"
    tuning = FineTuneOptions(steps=10, batch=2)
    result = compress(
        model,
        None,
        CompressOptions(
            output=str(target),
            recipe=WeightRecipe(prune=0.7, bits=2),
            tuning=tuning,
            train=TRAIN,
        ),
    )
    kept = sum(layer.kept for layer in result.layers)
    assert kept == pytest.approx(0.3 * sum(layer.weights for layer in result.layers), rel=0.02)
    assert all(layer.levels <= 4 for layer in result.layers)
    log = (tmp_path / "s.log").read_text()
    assert "pruning: step" in log and "sharing: step" in log and "coded:" in log
    pruned, _ = load_safetensors(tmp_path / "s.pruned.safetensors")
    done = str(tmp_path / "s.pruned.safetensors")
    again = compress(model, None, CompressOptions(output=str(tmp_path / "b.edgez"), pruned=done))
    zeros = sum(int((conv.weight == 0).sum()) for conv in convolutions(pruned).values())
    assert zeros == sum(layer.weights - layer.kept for layer in again.layers)


def test_a_pruned_network_is_pruned_and_trained_further(tmp_path: Path, model: Path) -> None:
    recipe = WeightRecipe(prune=0.5, bits=2)
    compress(model, None, CompressOptions(output=str(tmp_path / "s.edgez"), recipe=recipe))
    tuning = FineTuneOptions(steps=10, batch=2, labels=False)
    result = compress(
        model,
        None,
        CompressOptions(
            output=str(tmp_path / "b.edgez"),
            recipe=WeightRecipe(prune=0.7, bits=2),
            tuning=tuning,
            train=TRAIN,
            begin=str(tmp_path / "s.pruned.safetensors"),
        ),
    )
    first, last = (
        torch.cat([c.weight.flatten() for c in convolutions(load_safetensors(path)[0]).values()])
        for path in (tmp_path / "s.pruned.safetensors", tmp_path / "b.pruned.safetensors")
    )
    assert float((last == 0).float().mean()) == pytest.approx(0.7, abs=0.02)
    stays = last != 0
    assert float((first[stays] != 0).float().mean()) > 0.9
    assert sum(layer.kept for layer in result.layers) == int(stays.sum())


def test_pictures_without_labels_make_up_for_what_is_pruned(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, scratch = tmp_path / "pictures", tmp_path / "scratch"
    pictures.mkdir()
    scratch.mkdir()
    for number, (image, _) in enumerate(map(load, open_dataset(TRAIN).items)):
        cv2.imwrite(str(pictures / f"{number}.png"), image)
    image = torch.from_numpy(picture((48, 64)))
    wanted = load_dense(model, scratch).module(image)
    reached = []
    for options in ("", f" --train {pictures}", f" --train {pictures} --no-refit"):
        target = tmp_path / f"{len(reached)}.edgez"
        report = tmp_path / "r.json"
        command = f"compress {model}{options} --prune 0.5 --bits 4 --json {report} -o {target}"
        assert main(command.split()) == 0
        assert json.loads(report.read_text())["refit"] == (len(reached) == 1)
        found = load_dense(target, scratch).module(image)
        reached.append(heads_noise_db(wanted, found))
    assert reached[1] > reached[0] + 3 and reached[2] == reached[0]
    assert capsys.readouterr().err.count("--train DIR gives a more accurate package") == 1


def test_two_of_every_four_in_a_package(tmp_path: Path, model: Path) -> None:
    assert main(["compress", str(model), "--two-four", "-o", str(tmp_path / "s.edgez")]) == 0
    for name, tensor in read_package(tmp_path / "s.edgez").tensors():
        if name.endswith("weight") and tensor.shape[1] % 4 == 0:
            fours = (tensor != 0).reshape(len(tensor), -1, 4, *tensor.shape[2:])
            assert (fours.sum(axis=2) <= 2).all()


def test_sharing_alone_reports_rates_and_the_file(tmp_path: Path, model: Path) -> None:
    target, report = tmp_path / "s.edgez", tmp_path / "s.json"
    command = ["share", str(model), "--bits", "2", "-o", str(target), "--json", str(report)]
    assert main(command) == 0
    result = json.loads(report.read_text())
    assert result["file_bytes"] == target.stat().st_size and result["map50"] is None
    bits = sum(-(-row["weights"] * 2 // 8) for row in result["layers"])
    assert result["sections"]["weights"] == bits
    assert all(row["levels"] <= 4 for row in result["layers"])


def test_a_given_noise_is_kept_by_the_file(tmp_path: Path, model: Path) -> None:
    target, report = tmp_path / "s.edgez", tmp_path / "s.json"
    command = ["compress", str(model), "--noise-db", "25", "--images", "2", "--data", "scenes"]
    assert main([*command, "--coding", "huffman", "-o", str(target), "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    assert result["coding"] == "huffman"
    assert 25 <= result["noise_db"] < 30 and result["file_bytes"] == target.stat().st_size


@pytest.mark.parametrize("command", ["share", "compress"])
def test_a_package_may_have_a_name_of_its_own(tmp_path: Path, model: Path, command: str) -> None:
    target = tmp_path / "s.edgez"
    assert main([command, str(model), "--name", "tiny", "-o", str(target)]) == 0
    assert read_package(target).manifest.spec.name == "tiny"
    assert main(["unpack", str(target), "-o", str(tmp_path / "u")]) == 0
    assert (tmp_path / "u" / "tiny.safetensors").is_file()


def test_unpack_replaces_no_other_files_unless_it_is_forced(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "s.edgez"
    assert main(["share", str(model), "--name", "tiny", "-o", str(target)]) == 0
    unpack = ["unpack", str(target), "-o", str(tmp_path)]
    (tmp_path / "tiny.safetensors").write_bytes(b"somebody's only weights")
    assert main(unpack) == 2
    assert f"{tmp_path / 'tiny.safetensors'}: is there" in capsys.readouterr().err
    assert (tmp_path / "tiny.safetensors").read_bytes() == b"somebody's only weights"
    assert not (tmp_path / "tiny.fp32.onnx").exists()
    assert main([*unpack, "--force"]) == 0
    load_safetensors(tmp_path / "tiny.safetensors")
    assert main(unpack) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "none.safetensors", "-o", "a.edgez"], "none.safetensors"),
        (["compress", "squeezedet-scenes", "-o", "a.zip"], "NAME.edgez"),
        (["unpack", "none.edgez"], "none.edgez: cannot be read"),
        (["compress", "tiny-yolo-scenes", "--names", "x", "-o", "a.edgez"], "leave names out"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str], arguments, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--noise-db", "30", "--bits", "3", "--no-refit"],
            "--bits, --no-refit: --noise-db chooses",
        ),
        (["--noise-db", "30", "--fine-tune", "9"], "--fine-tune: --noise-db chooses"),
        (["--sharing", "0.5"], "--sharing: without --fine-tune"),
        (["--no-refit", "--fine-tune", "9"], "--no-refit: with --fine-tune"),
        (["--scope", "loss", "--fine-tune", "9"], "--scope loss is measured on pictures"),
    ],
)
def test_an_option_without_effect_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    target = model.with_suffix(".edgez")
    assert main(["compress", str(model), "-o", str(target), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not target.exists()


def test_training_without_labels_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ValueError, match="give them with --train"):
        compress(
            model,
            None,
            CompressOptions(output=str(tmp_path / "s.edgez"), tuning=FineTuneOptions(steps=2)),
        )


def test_a_built_in_model_is_its_onnx_file(tmp_path: Path) -> None:
    dense = load_dense("squeezedet-scenes", tmp_path)
    image = picture(dense.spec.contract.hw)
    with torch.no_grad():
        found = dense.module(torch.from_numpy(image))[0].numpy()
    assert np.allclose(found, run(BUILT_IN["squeezedet-scenes"], image)[0], atol=1e-3)
    with pytest.raises(ArtifactError, match="leave weights out"):
        load_dense("squeezedet-scenes", tmp_path, weights="x")


def spoil(path: Path, number: float) -> None:
    """Set the last float of a file of plain float32 weights."""
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(number).tobytes()
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["weights", "safetensors", "pruned", "begin", "npz"])
def test_weights_that_are_no_numbers_are_refused_whatever_file_they_come_in(
    edge_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, number: float
) -> None:
    module, spec = small()
    safe, cfg, weights = write_model(module, spec, tmp_path, "bad")
    target, source = tmp_path / "out.edgez", cfg
    words: list[str] = []
    if form == "weights":
        spoil(weights, number)
    elif form == "npz":
        source = tmp_path / "bad.npz"
        arrays = dict(np.load(edge_data / "weights" / "squeezedet_kitti_forge.npz"))
        arrays["conv1.bias"][-1] = number
        np.savez(source, **arrays)
    else:
        with torch.no_grad():
            next(module.parameters()).view(-1)[-1] = number
        folded = fold_norms(module) if form != "safetensors" else module
        save_safetensors(folded, safe, spec)
        source = safe if form == "safetensors" else cfg
        words = [] if form == "safetensors" else [f"--{form}", str(safe)]
    assert main(["compress", str(source), *words, "-o", str(target)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "NaN or infinite" in error and "bad" in error
    assert not target.exists() and not target.with_suffix(".pruned.safetensors").exists()


def test_the_hostile_packages_are_refused_in_one_line(
    edge_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((edge_data / "hostile" / "edgez").glob("*.edgez"))
    assert files
    for source in files:
        assert main(["share", str(source), "-o", str(tmp_path / "out.edgez")]) == 2
        error = capsys.readouterr().err.strip()
        assert source.name in error and "\n" not in error
    assert not list(tmp_path.iterdir())
