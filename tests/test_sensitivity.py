"""`sensitivity`: each layer quantized alone and kept alone, at the heads and in mAP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from apps.charts.sensitivity import chart
from apps.commands.sensitivity import print_sensitivity
from calibration.qdq import insert_qdq
from calibration.table import CalibrationTable, write_table
from edge.artifact import read_manifest
from edge.errors import CalibrationError
from edge.files import write_json
from edge.measure.noise import head_noise, heads_of
from edge.optional import require
from export.int8.precision_map import layer_names
from export.search.sensitivity import SensitivityOptions, measure_sensitivity, sensitivity
from tests.support.small_models import picture, run, write_small
from tests.support.steps import scales


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sensitivity") / "a.fp32.onnx"
    write_small(target)
    return target


@pytest.fixture(scope="module")
def table(fp32: Path) -> CalibrationTable:
    scenes = "scenes://?seed=500000&count=3"
    return scales(fp32, scenes, images=3, equalise=False, threads=1).table


def test_figures_are_those_of_graphs_written_by_hand(fp32: Path, table: CalibrationTable) -> None:
    arrays = [picture((48, 64), seed=seed) for seed in range(2)]
    found = measure_sensitivity(fp32, table, arrays, threads=1)
    names = layer_names(fp32)
    assert [layer.name for layer in found.layers] == names
    model = require("onnx").load(str(fp32))
    reference = heads_of(fp32, arrays, 1)
    outputs = [output.name for output in model.graph.output]
    for layer in (found.layers[0], found.layers[4]):
        for keep, wanted in (
            ([name for name in names if name != layer.name], layer.alone_db),
            ([layer.name], layer.kept_db),
        ):
            graph = insert_qdq(model, dict(table.amax), keep=keep)
            heads = [_plain(graph, array, outputs) for array in arrays]
            assert head_noise(reference, heads) == pytest.approx(wanted, abs=0.1)


def _plain(graph: Any, array: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
    """The graph node by node, without onnxruntime's own idea of quantizers."""
    level = require("onnxruntime").GraphOptimizationLevel.ORT_DISABLE_ALL
    return run(graph, array, outputs, graph_optimization_level=level)


def test_noises_of_layers_add_up_to_that_of_the_whole(fp32: Path, table: CalibrationTable) -> None:
    arrays = [picture((48, 64), seed=seed) for seed in range(3)]
    found = measure_sensitivity(fp32, table, arrays, kept=False, threads=1)
    total = sum(layer.alone_share for layer in found.layers)
    whole = 10 ** (-found.int8_db / 10)
    assert total == pytest.approx(whole, rel=0.5)
    assert all(layer.kept_db >= found.int8_db for layer in found.layers)


def test_map_is_asked_of_every_graph(fp32: Path, table: CalibrationTable) -> None:
    judged: list[str] = []

    def judge(path: Path) -> float:
        judged.append(read_manifest(path).precision)
        return len(judged) / 100

    found = measure_sensitivity(fp32, table, [picture((48, 64))], measure_map=judge, threads=1)
    assert judged[0] == "int8" and judged[-1] == "fp32"
    assert judged[1:-1] == ["mixed"] * (2 * len(layer_names(fp32)))
    assert (found.int8_map50, found.layers[0].alone_map50, found.layers[0].kept_map50) == (
        0.01,
        0.02,
        0.03,
    )


def test_command_prints_writes_and_draws(
    fp32: Path, table: CalibrationTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(table, tmp_path / "a.calib.json")
    result = sensitivity(
        fp32,
        tmp_path / "a.calib.json",
        "scenes://?seed=700000&count=2",
        SensitivityOptions(with_map=False, threads=1),
    )
    write_json(result, tmp_path / "s.json")
    told = json.loads((tmp_path / "s.json").read_text())
    keys = {"model", "data", "images", "noise_images", "int8_db", "fp32_map50", "int8_map50"}
    assert set(told) == keys | {"layers"}
    assert [one["name"] for one in told["layers"]] == layer_names(fp32)
    assert result.images == 0 and len(result.measured.layers) == len(layer_names(fp32))
    (tmp_path / "s.svg").write_text(chart(result))
    ElementTree.parse(tmp_path / "s.svg")
    drawing = (tmp_path / "s.svg").read_text()
    worst = min(result.measured.layers, key=lambda layer: layer.alone_db).name
    assert f">{worst}</text>" in drawing and ">all but it in INT8</text>" in drawing
    assert drawing.count("<circle") == 2 * len(layer_names(fp32)) + 2  # and the key
    print_sensitivity(result)
    printed = capsys.readouterr().out
    assert all(name in printed for name in layer_names(fp32))


def test_a_foreign_table_is_refused_before_anything_runs(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    write_small(tmp_path / "other.onnx", seed=1)
    write_table(table, tmp_path / "a.calib.json")
    with pytest.raises(CalibrationError, match="another graph"):
        sensitivity(tmp_path / "other.onnx", tmp_path / "a.calib.json", tmp_path / "no data")
