"""Building for a DLA: what TensorRT 10.3 is told, what it tells, and who is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.correction import correct_bias
from calibration.qdq import convolutions, shared_scales
from calibration.scales import network_inputs
from calibration.table import CalibrationTable
from edge.artifact import read_manifest
from edge.errors import BuildError, CalibrationError
from edge.files import sha256_of
from export.engine.dla import build_dla_engine, every_threshold
from export.engine.legacy_cache import read_cache
from tests.support.small_models import run, write_small
from tests.support.steps import scales

DATA = "scenes://?seed=1&count=8"


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dla") / "small.fp32.onnx"
    write_small(path)
    return path


@pytest.fixture(scope="module")
def table(fp32: Path) -> CalibrationTable:
    made = scales(fp32, DATA, threads=1).table
    return correct_bias(fp32, made, network_inputs(fp32, DATA, 4))


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put the fake in the child's way; options are those of `fake_dla`."""
    folder = tmp_path / "fake"
    folder.mkdir()
    shutil.copy(Path(__file__).parent / "support" / "fake_dla.py", folder / "tensorrt.py")
    monkeypatch.syspath_prepend(str(folder))

    def put(**options: Any) -> None:
        monkeypatch.setenv("FAKE_TRT", json.dumps(options))

    put()
    return put


def arrays(fp32: Path) -> list[tuple[str, np.ndarray]]:
    return [(name, array.copy()) for name, array in network_inputs(fp32, DATA, 4)]


@pytest.mark.usefixtures("tensorrt")
def test_tensorrt_is_told_flags_core_and_scales(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "small.int8.engine"
    report = build_dla_engine(fp32, table, target, core=1, arrays=arrays(fp32))
    told = json.loads(target.read_bytes())
    assert (told["device"], told["core"], told["network"]) == ("DLA", 1, 0)
    assert sorted(told["flags"]) == ["FP16", "GPU_FALLBACK", "INT8"]
    assert told["cache"].startswith("TRT-100300-EntropyCalibration2\n")

    assert report.dla is not None and report.dla.core == 1
    assert report.dla.cache.read_text() == told["cache"]
    scales = read_cache(report.dla.cache)
    shared = shared_scales(onnx.load(str(fp32)), dict(table.amax))
    assert all(scales[name] == pytest.approx(amax, rel=1e-6) for name, amax in shared.items())
    assert {path.name for path in target.parent.iterdir()} == {
        f"small.int8.engine{end}" for end in ("", ".json", ".layers.json", ".calib")
    }


@pytest.mark.usefixtures("tensorrt")
def test_the_graph_has_the_tables_gains_and_biases(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    assert table.gains
    build_dla_engine(fp32, table, tmp_path / "a.engine", arrays=arrays(fp32))
    told = json.loads((tmp_path / "a.engine").read_bytes())["biases"]
    model = onnx.load(str(fp32))
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {out: node for node in model.graph.node for out in node.output}
    gain = dict.fromkeys((node.name for node in convolutions(model)), np.float32(1))
    for tensor, values in table.gains:
        node = makers[tensor]
        while node.op_type != "Conv":
            node = makers[node.input[0]]
        gain[node.name] = np.float32(values)
    for node in convolutions(model):
        shift = np.float32(dict(table.bias)[node.name])
        wanted = (constants[node.input[2]] / gain[node.name] - shift).ravel()[:4]
        assert np.allclose(told[node.input[2]], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("tensorrt")
def test_the_engine_says_what_it_is_and_what_left_the_dla(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    target = tmp_path / "a.engine"
    report = build_dla_engine(fp32, table, target, arrays=arrays(fp32))
    manifest = read_manifest(target)
    assert manifest.precision == "int8" and manifest.parent_sha256 == sha256_of(fp32)
    assert json.loads(dict(manifest.arguments)["dla"]) == 0
    assert dict(manifest.made_by)["tensorrt"] == "10.3.0"
    nodes = onnx.load(str(fp32)).graph.node
    assert report.dla is not None
    assert report.dla.left == tuple((n.name, "RESIZE") for n in nodes if n.op_type == "Resize")
    assert report.dla.left and report.dla.layers == len(nodes)
    assert report.dla.unscaled == ()
    kept = json.loads((tmp_path / "a.engine.layers.json").read_text())["dla"]
    assert [tuple(one) for one in kept["left"]] == list(report.dla.left)


@pytest.mark.usefixtures("tensorrt")
def test_without_images_the_tensors_that_lack_a_scale_are_named(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    report = build_dla_engine(fp32, table, tmp_path / "a.engine")
    assert report.dla is not None
    heads = {head.tensor for head in read_manifest(fp32).spec.heads}
    assert heads <= set(report.dla.unscaled)
    assert not set(report.dla.unscaled) & {name for name, _ in table.amax}


def test_every_tensor_gets_a_threshold(fp32: Path, table: CalibrationTable) -> None:
    found = every_threshold(fp32, table, arrays(fp32), threads=1)
    graph = onnx.load(str(fp32)).graph
    assert set(found) == {"images", *(name for node in graph.node for name in node.output)}
    for node in graph.node:
        if node.op_type in ("MaxPool", "Resize", "Slice") and node.op_type != "Slice":
            assert found[node.output[0]] == found[node.input[0]]


def test_a_threshold_that_is_measured_lies_within_the_values(
    fp32: Path, table: CalibrationTable
) -> None:
    found = every_threshold(fp32, replace(table, method="minmax"), arrays(fp32), threads=1)
    heads = [head.tensor for head in read_manifest(fp32).spec.heads]
    for number, name in enumerate(heads):
        peak = max(float(np.abs(run(fp32, a)[number]).max()) for _, a in arrays(fp32))
        assert found[name] == pytest.approx(peak, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": "10.8.0"}, r"TensorRT 10\.8\.0 has no DLA.*10\.7 is the last"),
        ({"version": "10.16.1.11"}, r"10\.7 is the last"),
        ({"version": "11.4.0"}, r"TensorRT 11\.4\.0 has no DLA.*without --dla"),
        ({"cores": 0}, "no DLA core 0; this machine has none"),
        ({"takes_cache": False}, "did not take the calibration cache.*no scaling factors"),
    ],
    ids=["10.8", "10.16", "11.4", "no DLA", "cache refused"],
)
def test_what_cannot_build_is_one_line(
    fp32: Path,
    table: CalibrationTable,
    tmp_path: Path,
    tensorrt: Callable[..., None],
    options: dict[str, Any],
    words: str,
) -> None:
    tensorrt(**options)
    with pytest.raises(BuildError, match=words) as caught:
        build_dla_engine(fp32, table, tmp_path / "out" / "a.engine")
    assert str(caught.value).startswith(f"{fp32}: ") and "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_last_releases_with_a_dla_are_taken(
    fp32: Path, table: CalibrationTable, tmp_path: Path, tensorrt: Callable[..., None]
) -> None:
    tensorrt(version="10.7.0")
    report = build_dla_engine(fp32, table, tmp_path / "a.engine")
    assert report.version == "10.7.0"


@pytest.mark.usefixtures("tensorrt")
def test_a_core_that_is_not_there_is_named(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match="no DLA core 2; this machine has 2: 0 to 1"):
        build_dla_engine(fp32, table, tmp_path / "a.engine", core=2)
    with pytest.raises(ValueError, match="core is -1"):
        build_dla_engine(fp32, table, tmp_path / "a.engine", core=-1)


def test_rtx_has_no_dla() -> None:
    from export.engine.dla_child import check_release

    with pytest.raises(BuildError, match="TensorRT-RTX has no DLA"):
        check_release("tensorrt_rtx", "1.7.1")


def test_a_table_of_another_graph_is_refused(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match="another graph"):
        build_dla_engine(fp32, replace(table, graph_sha256="0" * 64), tmp_path / "a.engine")


def test_options_that_no_dla_takes_are_named() -> None:
    from edge.errors import ArtifactError
    from export.engine.dla import check_dla_options

    check_dla_options(0, "int8", "auto", ())
    for core, precision, builder, kept, words in (
        (-1, "int8", "auto", (), "--dla -1"),
        (0, "fp16", "auto", (), "add --int8"),
        (0, None, "auto", (), "add --int8"),
        (0, "int8", "rtx", (), "not --builder rtx"),
        (0, "int8", "none", (), "not --builder none"),
        (0, "int8", "auto", ("head",), "keeps no layer out"),
    ):
        with pytest.raises(ArtifactError, match=words):
            check_dla_options(core, precision, builder, kept)


@pytest.mark.usefixtures("tensorrt")
def test_the_command_says_what_left_the_dla(
    fp32: Path, table: CalibrationTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from apps.commands.export import print_dla
    from calibration.graph import Graph
    from export.engine.dla import dla_engine

    report = dla_engine(Graph(fp32), table, tmp_path, core=1, calib=DATA)
    assert report.engine == tmp_path / "small.int8.dla.engine" and report.dla is not None
    facts = report.dla
    assert facts.core == 1 and facts.unscaled == ()
    print_dla(facts)
    said = capsys.readouterr().err
    layers = facts.layers
    assert f"DLA core 1: {layers - 1} of {layers} layers" in said
    assert f"left to the GPU (1 RESIZE): {facts.left[0][0]};" in said
