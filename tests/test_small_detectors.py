"""The smaller forms of a built-in detector that ship beside it: how small, and how right still."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.dense_model import load_dense
from apps.evaluation import evaluate
from apps.exporting import export_engine
from edge.built_in import OF_SCENES, PACKAGED
from edge.compress.package import read_package
from edge.compress.package_onnx import cached_package_onnx

FULL = "tiny-yolo-scenes"
SMALL = [f"{FULL}-deep", f"{FULL}-half"]
IMAGES = 60


@pytest.fixture(scope="module")
def full_map50(tmp_path_factory: pytest.TempPathFactory) -> float:
    made = export_engine(
        FULL, precision="fp32", builder="none", output=tmp_path_factory.mktemp("full")
    )
    return float(evaluate(made["files"]["fp32"], "scenes", images=IMAGES, threads=1)["map50"])


@pytest.mark.parametrize("name", SMALL)
def test_it_finds_nearly_what_the_full_one_finds(
    name: str, full_map50: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    found = evaluate(cached_package_onnx(PACKAGED[name]), "scenes", images=IMAGES, threads=1)
    # On 500 scenes they lose less than 2.0 points; so few scatter by one more.
    assert found["map50"] > full_map50 - 0.03


@pytest.mark.parametrize("name", SMALL)
def test_it_bears_its_own_name_and_is_of_the_built_in_world(name: str, tmp_path: Path) -> None:
    spec = read_package(PACKAGED[name]).manifest.spec
    assert spec.name == name and name in OF_SCENES
    assert spec.contract == load_dense(FULL, tmp_path).spec.contract


def test_deep_compression_leaves_a_thirtieth_of_the_bytes(tmp_path: Path) -> None:
    whole = load_dense(FULL, tmp_path).bytes
    assert whole / PACKAGED[f"{FULL}-deep"].stat().st_size >= 30


def test_half_of_the_time_takes_a_third_of_the_weights(tmp_path: Path) -> None:
    """Time is measured in the log beside it; here that the network is dense and narrow."""
    half = load_dense(f"{FULL}-half", tmp_path)
    whole = load_dense(FULL, tmp_path)
    assert half.bytes < whole.bytes / 3
    weights = [tensor for tensor in half.module.state_dict().values() if tensor.ndim == 4]
    zeros = sum(int((tensor == 0).sum()) for tensor in weights)
    assert zeros < 0.01 * sum(tensor.numel() for tensor in weights)


def test_its_int8_is_calibrated_on_scenes_without_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = export_engine(
        f"{FULL}-half", precision="int8", builder="none", output=tmp_path, verdict=False
    )
    assert Path(made["files"]["int8"]).name == f"{FULL}-half.int8.onnx"
    assert "your camera" not in capsys.readouterr().err
