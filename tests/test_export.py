"""`export-engine` from every kind of model to a real TensorRT-RTX engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.artifact import read_manifest
from export.engine.build import available_builders
from tests.support.steps import exported

FEW = "scenes://?seed=500000&count=6"
DTYPE = {"fp32": "float", "fp16": "half", "int8": "int8"}


@pytest.fixture(scope="module")
def rtx() -> None:
    found = {info.name: info for info in available_builders()}
    info = found.get("tensorrt_rtx")
    if info is None or not info.ok:
        pytest.skip(f"TensorRT-RTX cannot build here: {info.reason if info else sorted(found)}")


def build_all(model: str | Path, folder: Path, **options: object) -> None:
    """FP32, FP16 and INT8 engines; in each every convolution takes the graph's precision."""
    for precision, dtype in DTYPE.items():
        result = exported(
            model, precision=precision, calib=FEW, builder="rtx", output=folder, **options
        )
        engine = result["engine"]
        assert set(engine["convolutions"]) == {dtype}, result
        manifest = read_manifest(engine["file"])
        assert manifest.precision == precision
        assert manifest.spec == read_manifest(result["files"]["fp32"]).spec


@pytest.mark.parametrize("name", ["tiny-yolo-scenes", "squeezedet-scenes"])
@pytest.mark.usefixtures("rtx")
def test_built_in_detectors_become_engines_of_each_precision(name: str, tmp_path: Path) -> None:
    build_all(name, tmp_path)


@pytest.mark.parametrize("name", ["yolov3-tiny-aix2022", "yolov4-tiny-aix2023"])
@pytest.mark.usefixtures("rtx")
def test_trained_darknet_models_become_engines_of_each_precision(
    name: str, edge_data: Path, tmp_path: Path
) -> None:
    folder = edge_data / "weights"
    build_all(folder / f"{name}.cfg", tmp_path, names=folder / "aix.names", resize="stretch")


@pytest.mark.usefixtures("rtx")
def test_squeezedet_for_kitti_becomes_engines_of_each_precision(
    edge_data: Path, tmp_path: Path
) -> None:
    build_all(edge_data / "weights" / "squeezedet_kitti_forge.npz", tmp_path)


@pytest.mark.usefixtures("rtx")
def test_the_official_yolov3_tiny_becomes_engines_of_each_precision(tmp_path: Path) -> None:
    build_all("yolov3-tiny", tmp_path, random_weights=True)


@pytest.mark.usefixtures("rtx")
def test_convolutions_kept_on_purpose_are_the_only_ones_out_of_int8(tmp_path: Path) -> None:
    result = exported(
        precision="int8", calib=FEW, keep=["first", "heads"], builder="rtx", output=tmp_path
    )
    spec = read_manifest(result["files"]["fp32"]).spec
    kept = {"layers.0.conv", *(head.tensor for head in spec.heads)}
    assert set(result["engine"]["not_int8"]) == kept
    assert result["precision"] == "mixed"


def test_random_weights_are_labelled_in_every_file(tmp_path: Path) -> None:
    result = exported(
        "yolov3-tiny",
        precision="int8",
        random_weights=True,
        calib=FEW,
        hw=(64, 96),
        builder="none",
        output=tmp_path,
    )
    for kind in ("fp32", "int8"):
        assert read_manifest(result["files"][kind]).labels == ("random weights",)
    assert result["labels"] == ["random weights"]


DEVICE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "safetensors", "pycocotools", "scipy"}:
            raise ImportError(f"{name} is absent here")
sys.meta_path.insert(0, Absent())
from apps.cli import export_engine
sys.exit(export_engine(sys.argv[1:]))
"""


@pytest.mark.usefixtures("rtx")
def test_a_device_without_torch_and_onnx_builds_the_engine_of_a_quantized_file(
    tmp_path: Path,
) -> None:
    made = exported(precision="int8", calib=FEW, builder="none", output=tmp_path)
    report = tmp_path / "report.json"
    command = [sys.executable, "-c", DEVICE, made["files"]["int8"], "-o", str(tmp_path / "device")]
    done = subprocess.run(
        [*command, "--json", str(report)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    engine = json.loads(report.read_text())["engine"]
    assert set(engine["convolutions"]) == {"int8"}
    assert Path(engine["file"]).name == "tiny-yolo-scenes.int8.engine"


def test_a_calibration_table_gives_the_same_graph_again(tmp_path: Path) -> None:
    # The noise that a verdict notes is that of the pictures at hand.
    options = {"precision": "int8", "builder": "none", "verdict": False}
    first = exported(calib=FEW, output=tmp_path / "a", **options)
    table = first["files"]["calibration"]
    again = exported(calib=table, output=tmp_path / "b", **options)
    files = [Path(one["files"]["int8"]).read_bytes() for one in (first, again)]
    assert files[0] == files[1]
