"""The smaller forms of the built-in detectors that ship beside them: how small, how right still."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.built_in import BUILT_IN, OF_SCENES, PACKAGED
from edge.edgez.graph import cached_package_onnx
from edge.edgez.package import read_package
from edge.measure.evaluate import EvaluateOptions, evaluate
from edge.models.dense import load_dense
from tests.support.steps import exported

OPTIONS = EvaluateOptions(images=60, threads=1)
DEEP = [name for name in PACKAGED if name.endswith("-deep")]
HALF = [name for name in PACKAGED if name.endswith("-half")]
# At most this share of the bytes of the full network, in FP32.
LEFT = {"tiny-yolo-scenes-half": 1 / 3, "squeezedet-scenes-half": 0.4}


def full_of(name: str) -> str:
    [full] = [full for full in BUILT_IN if name.startswith(f"{full}-")]
    return full


@pytest.fixture(scope="module")
def full_map50(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("full")
    found = {}
    for full in BUILT_IN:
        made = exported(full, precision="fp32", builder="none", output=folder)
        score = evaluate(made["files"]["fp32"], "scenes", OPTIONS).map50
        found[full] = float(score)
    return found


@pytest.mark.parametrize("name", DEEP + HALF)
def test_it_finds_nearly_what_the_full_one_finds(
    name: str, full_map50: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    found = evaluate(cached_package_onnx(PACKAGED[name]), "scenes", OPTIONS)
    # On 500 scenes they lose less than 2.0 points; so few scatter by one more.
    assert found.map50 > full_map50[full_of(name)] - 0.03


@pytest.mark.parametrize("name", DEEP + HALF)
def test_it_bears_its_own_name_and_is_of_the_built_in_world(name: str, tmp_path: Path) -> None:
    spec = read_package(PACKAGED[name]).manifest.spec
    assert spec.name == name and name in OF_SCENES
    assert spec.contract == load_dense(full_of(name), tmp_path).spec.contract


@pytest.mark.parametrize("name", DEEP)
def test_deep_compression_leaves_a_thirtieth_of_the_bytes(name: str, tmp_path: Path) -> None:
    whole = load_dense(full_of(name), tmp_path).bytes
    assert whole / PACKAGED[name].stat().st_size >= 30


@pytest.mark.parametrize("name", HALF)
def test_half_of_the_time_is_a_dense_network_of_fewer_weights(name: str, tmp_path: Path) -> None:
    """Time is measured in the log beside it; here that the network is dense and narrow."""
    half = load_dense(name, tmp_path)
    whole = load_dense(full_of(name), tmp_path)
    assert half.bytes < LEFT[name] * whole.bytes
    weights = [tensor for tensor in half.module.state_dict().values() if tensor.ndim == 4]
    zeros = sum(int((tensor == 0).sum()) for tensor in weights)
    assert zeros < 0.01 * sum(tensor.numel() for tensor in weights)


@pytest.mark.parametrize("name", HALF)
def test_its_int8_is_calibrated_on_scenes_without_a_warning(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = exported(name, precision="int8", builder="none", output=tmp_path, verdict=False)
    assert Path(made["files"]["int8"]).name == f"{name}.int8.onnx"
    assert "your camera" not in capsys.readouterr().err
