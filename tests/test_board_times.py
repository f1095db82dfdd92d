"""`edge prune --board`: times of a board that is not here decide about the channels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from apps.cli import main
from edge.compress.channels.cost import read_shapes
from edge.compress.channels.wiring import read_wiring
from edge.models.darknet import Darknet
from edge.spec import ModelSpec
from edge.train.start import write_model
from export.compress.board import BoardTimes
from export.compress.stages import StageTimes
from export.graph.writer import write_onnx
from tests.support.painted import write_pictures
from tests.support.small_models import CFG, small

# Wide enough that products, and not launches, take most of a board's time.
FAT = CFG.replace("filters=16", "filters=512").replace("filters=8", "filters=256")
FAT = FAT.replace("groups=8", "groups=256")


def pets(cfg: str) -> tuple[Darknet, ModelSpec]:
    module, spec = small(cfg)
    return module, replace(spec, classes=("cat", "dog"))


@pytest.fixture(scope="module")
def fat() -> tuple[Darknet, ModelSpec]:
    return pets(FAT)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_convolution_takes_as_long_as_the_same_layer_of_the_graph(
    fat: tuple[Darknet, ModelSpec], tmp_path: Path, precision: str
) -> None:
    module, spec = fat
    write_onnx(module, spec, tmp_path / "fat.onnx")
    times = BoardTimes("agx-orin-64", precision)
    layers = {one.name: one for one in times.network(tmp_path / "fat.onnx").layers}
    shapes = read_shapes(read_wiring(module), spec.contract.hw)
    compared = 0
    for path, shape in shapes.items():
        layer = layers.get(path)
        # A change of layout and an addition are the graph's, not the convolution's.
        if layer is not None and layer.kind == "conv" and path != "layers.0.conv":
            assert times.convolution_ms(shape) == pytest.approx(layer.ms, rel=0.15), path
            compared += 1
    assert compared >= 4


def run(argv: str, out: Path) -> dict:
    assert main([*argv.split(), "-o", str(out), "--json", f"{out}.json"]) == 0
    return json.loads(Path(f"{out}.json").read_text())


def test_a_network_is_pruned_for_a_board_that_is_not_here(
    fat: tuple[Darknet, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "edge.compress.channels.latency_table.time_convolution",
        lambda shape, _: float(shape.filters * shape.channels * shape.input_hw[0] ** 2),
    )
    cfg = write_model(fat[0], fat[1], tmp_path, "fat")[0]
    data = write_pictures(tmp_path / "data", 2)
    base = f"prune {cfg} --data {data} --importance l1 --no-refit --images 2"
    board = run(f"{base} --board orin-nano-4 --precision fp32 --target-ms 70%", tmp_path / "a")
    full, narrow = (stage["ms"] for stage in board["stages"])
    assert 0.6 * full < narrow <= 0.7 * full
    assert board["host"] == {"board": "orin-nano-4", "precision": "fp32", "predicted": True}
    assert board["choice"]["board"] == "orin-nano-4"
    times = StageTimes((1.0, narrow / full), (0.0, 0.0))
    monkeypatch.setattr("export.compress.prune.time_stages", lambda *_: times)
    here = run(f"{base} --target-ms 70%", tmp_path / "b")
    assert here["plan"] != board["plan"]
    assert "board" not in here["choice"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--board orin-nano-super --target-ms 50%", "are launches of"),
        ("--board orin-nano-super --target-fps 100", "already as fast"),
        ("--board abacus --target-ms 50%", "abacus: no such board"),
        ("--board agx-thor --table t.json --target-ms 50%", "leave out --table or --board"),
    ],
)
def test_what_a_board_cannot_give_is_said_before_pictures_are_looked_at(
    tmp_path: Path,
    options: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("export.compress.prune.taylor", lambda *_: pytest.fail("looked"))
    cfg = write_model(*pets(CFG), tmp_path, "small")[0]
    data = write_pictures(tmp_path / "data", 2)
    assert main(f"prune {cfg} --data {data} {options} -o {tmp_path / 'out'}".split()) == 2
    assert words in " ".join(capsys.readouterr().err.split())
