"""`edge show` tells of each artifact what torch counts and what its manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from apps.cli import main
from apps.commands.show import print_artifact, show_artifact
from calibration.table import CalibrationTable, write_table
from edge.artifact import layers_path, manifest_path, read_manifest
from edge.built_in import BUILT_IN
from edge.edgez.codebook import Codebook
from edge.edgez.package import write_package
from edge.errors import ArtifactError, CalibrationError, EngineMismatch, MissingDependency
from edge.files import to_plain, write_json
from edge.models.zoo import LoadedModel, load_model
from export.graph import layers
from export.graph.writer import write_onnx
from export.int8.quantize import write_half, write_int8
from tests.support.steps import scales

CFG = """[net]
width=64
height=32
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=8
groups=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=14
size=1
stride=1
pad=1
activation=linear
[yolo]
mask=0,1
anchors=10,14, 23,27
classes=2
num=2
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    folder = tmp_path_factory.mktemp("net")
    (folder / "small.cfg").write_text(CFG)
    loaded = load_model(folder / "small.cfg", random_weights=True)
    path = folder / "small.onnx"
    arguments = {"seed": 0}
    write_onnx(loaded.module, loaded.spec, path, labels=loaded.labels, arguments=arguments)
    return loaded, path


def engine(folder: Path, onnx: Path) -> Path:
    """What `build_engine` leaves behind, without a builder."""
    path = folder / "small.engine"
    path.write_bytes(b"a plan")
    manifest = replace(read_manifest(onnx), sha256=hashlib.sha256(b"a plan").hexdigest())
    manifest_path(path).write_text(manifest.to_json())
    convolutions = [
        {"name": f"c{i}", "dtype": dtype, "layer": "l"}
        for i, dtype in enumerate(("int8", "int8", "half"))
    ]
    summary = {"convolutions": convolutions, "reformats": 4, "layers": 9}
    layers_path(path).write_text(json.dumps({"summary": summary, "layers": []}))
    return path


def shown(path: Path, target: Path | None = None) -> dict[str, Any]:
    """What `edge show` prints and writes, as its JSON."""
    found = show_artifact(path)
    write_json(found, target)
    print_artifact(found)
    return json.loads(json.dumps(to_plain(found)))


def test_work_and_parameters_are_what_torch_counts(net: tuple[LoadedModel, Path]) -> None:
    loaded, path = net
    layers = shown(path)["layers"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loaded.module(torch.zeros(1, 3, 32, 64))
    assert layers["macs"] == counter.get_total_flops() / 2 > 0
    convolutions = [m for m in loaded.module.modules() if isinstance(m, torch.nn.Conv2d)]
    # The batch norm becomes the bias that its convolution has not.
    wanted = sum(m.weight.numel() + m.out_channels for m in convolutions)
    assert layers["parameters"] == wanted
    shapes = [(conv["input"], conv["output"]) for conv in layers["convolutions"]]
    assert shapes[0] == ([1, 3, 32, 64], [1, 8, 16, 32])
    assert [conv["groups"] for conv in layers["convolutions"]] == [1, 8, 1]


def test_manifest_size_and_checksum_are_the_files(
    net: tuple[LoadedModel, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, path = net
    result = shown(path, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(result))
    assert result["kind"] == "onnx" and result["bytes"] == path.stat().st_size
    assert result["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result["contract_digest"] == loaded.spec.contract.digest
    out = capsys.readouterr().out
    for fact in (
        "random weights",
        "10x14 23x27",
        "1x3x32x64",
        "seed 0",
        result["sha256"],
        "sigmoid",
    ):
        assert fact in out


def test_precision_of_each_convolution_is_told(
    net: tuple[LoadedModel, Path], tmp_path: Path
) -> None:
    _, path = net
    table = scales(path, "scenes://?seed=1&count=1").table
    int8, half = tmp_path / "q.onnx", tmp_path / "h.onnx"
    write_int8(path, table, int8, keep=["layers.0.conv"])
    write_half(path, half)
    plain, quantized, halved = (shown(p)["layers"] for p in (path, int8, half))
    assert plain["by_dtype"] == {"float": 3}
    assert quantized["by_dtype"] == {"float": 1, "int8": 2}
    assert halved["by_dtype"] == {"half": 3}
    for other in (quantized, halved):
        assert [other[k] for k in ("macs", "parameters")] == [plain["macs"], plain["parameters"]]


def test_without_onnx_the_manifest_is_shown_and_the_reason_told(
    net: tuple[LoadedModel, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def absent(name: str) -> Any:
        raise MissingDependency(f"{name} is needed: pip install it")

    monkeypatch.setattr(layers, "require", absent)
    result = shown(net[1])
    assert "layers" not in result and "onnx is needed" in result["layers_missing"]
    out, err = capsys.readouterr()
    assert "random weights" in out and "onnx is needed" in err


def test_engine_is_shown_with_its_layer_report(
    net: tuple[LoadedModel, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = engine(tmp_path, net[1])
    result = shown(path)
    assert result["kind"] == "engine"
    assert result["layers"]["by_dtype"] == {"int8": 2, "half": 1}
    assert (result["layers"]["reformats"], result["layers"]["count"]) == (4, 9)
    assert "2 int8, 1 half" in capsys.readouterr().out
    layers_path(path).unlink()
    assert "does not lie beside it" in shown(path)["layers_missing"]
    layers_path(path).write_text("[]")
    with pytest.raises(ArtifactError, match="not a layer report"):
        show_artifact(path)


def package(folder: Path, onnx: Path) -> tuple[Path, dict[str, Codebook | NDArray[np.float32]]]:
    rng = np.random.default_rng(5)
    index = rng.integers(1, 5, (6, 8, 3, 3)) * (rng.random((6, 8, 3, 3)) < 0.4)
    tensors: dict[str, Codebook | NDArray[np.float32]] = {
        "a.weight": Codebook(
            np.array([-2.0, -1.0, 1.0, 2.0], np.float32), index, np.arange(1, 7, dtype=np.float32)
        ),
        "a.bias": np.array([0, 0, 1, 2, 3, 4], np.float32),
        "a.scale": np.array([1e6], np.float32),
    }
    stages = [
        {"name": "original", "bytes": 4000, "map50": 0.5},
        {"name": "pruned", "bytes": 1000, "map50": None},
    ]
    path = folder / "net.edgez"
    write_package(path, read_manifest(onnx), {"family": "darknet"}, tensors, stages=stages)
    return path, tensors


def test_a_package_is_shown_with_stages_sections_and_tensors(
    net: tuple[LoadedModel, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, tensors = package(tmp_path, net[1])
    result = shown(path, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(result))
    weight = tensors["a.weight"]
    assert isinstance(weight, Codebook)
    zeros = int((weight.index == 0).sum())
    assert 0 < zeros < 432
    plain = {"values": None, "scaled": False}
    assert result["tensors"] == [
        {
            "name": "a.weight",
            "shape": [6, 8, 3, 3],
            "type": "float16",
            "values": 4,
            "scaled": True,
            "zeros": zeros,
        },
        {"name": "a.bias", **plain, "shape": [6], "type": "float16", "zeros": 2},
        {"name": "a.scale", **plain, "shape": [1], "type": "float32", "zeros": 0},
    ]
    assert result["kind"] == "package" and result["dense_bytes"] == 4 * (432 + 6 + 1)
    assert result["ratio"] == result["dense_bytes"] / path.stat().st_size
    # A header of 8 bytes, 16 a section, a checksum of 4; the sections are all the rest.
    assert sum(result["sections"].values()) + 8 + 16 * 4 + 4 == result["bytes"]
    assert result["bits_per_weight"] == 8 * result["sections"]["weights"] / 432
    assert result["contract_digest"] == net[0].spec.contract.digest
    out = capsys.readouterr().out
    for fact in (
        "4,000",
        "50.00%",
        "codebooks",
        "6x8x3x3",
        "4, scaled",
        f"{zeros / 432:.1%}",
        "random weights",
    ):
        assert fact in out


def test_a_package_is_shown_where_only_numpy_is_installed(
    net: tuple[LoadedModel, Path], tmp_path: Path
) -> None:
    path, _ = package(tmp_path, net[1])
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'google.protobuf', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from apps.cli import main\n"
        "sys.exit(main(['show', sys.argv[1]]))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True, check=True
    )
    assert "a.weight" in done.stdout


def test_a_damaged_package_is_refused(net: tuple[LoadedModel, Path], tmp_path: Path) -> None:
    path, _ = package(tmp_path, net[1])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"net\.edgez: section \w+ is damaged"):
        show_artifact(path)


def test_calibration_table_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.calib.json"
    amax = (("images", 1.0), ("layers.1.pool", 12.7))
    write_table(CalibrationTable(amax, "mse", "g" * 64, "c" * 64, ("a", "b", "c")), path)
    result = shown(path)
    assert result["kind"] == "calibration" and result["method"] == "mse"
    assert result["amax"] == {"images": 1.0, "layers.1.pool": 12.7}
    assert len(result["images"]) == 3
    out = capsys.readouterr().out
    assert "layers.1.pool" in out and "12.7" in out and "0.1" in out


@pytest.mark.parametrize("name", ["x.txt", "x.json", "x.onnx", "x.engine", "x.edgez"])
@pytest.mark.parametrize("content", [b"", bytes(range(256)) * 20])
def test_anything_else_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for wrong in (path, tmp_path / "gone.onnx", tmp_path):
        with pytest.raises(ArtifactError) as caught:
            shown(wrong, tmp_path / "r.json")
        assert "\n" not in str(caught.value) and str(wrong.name) in str(caught.value)
    assert not (tmp_path / "r.json").exists()


def test_a_damaged_table_and_a_changed_engine_are_refused(
    net: tuple[LoadedModel, Path], tmp_path: Path
) -> None:
    (tmp_path / "x.calib.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"x\.calib\.json"):
        show_artifact(tmp_path / "x.calib.json")
    path = engine(tmp_path, net[1])
    path.write_bytes(b"another plan")
    with pytest.raises(EngineMismatch):
        show_artifact(path)


def test_json_of_our_own_heads_keeps_the_first_manifests_keys(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    assert main(["show", str(BUILT_IN["tiny-yolo-scenes"]), "--json", str(path)]) == 0
    for head in json.loads(path.read_text())["manifest"]["spec"]["heads"]:
        assert head["kind"] in ("yolo", "region") and head["class_activation"] == "sigmoid"
        assert head["tensor"] == head["layout"]["tensors"][0]["tensor"]
        assert (
            len(head["grid_hw"]) == 2
            and head["anchors"]
            and head["scale_xy"] == head["box"]["stretch"]
        )
