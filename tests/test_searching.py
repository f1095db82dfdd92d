"""`edge search`: most layers in INT8, or the fastest graph where this machine is the target."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from apps.cli import main
from apps.commands.search import print_search
from calibration.graph import Graph
from calibration.table import read_table
from edge.artifact import read_manifest
from edge.measure.selection import Drop, Selection
from edge.measure.turns import Quick
from export.int8.precision_map import layer_names, read_map
from export.search import trials as mixed_trials
from export.search.mixed import SearchOptions, search_layers, search_mixed
from tests.support.steps import exported

SCENES = "scenes://?seed=700000&count=2"
BUDGET = 0.02


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The built-in detector in FP32 and a table of it."""
    files: dict[str, str] = exported(
        precision="int8",
        calib="scenes://?seed=500000&count=4",
        images=4,
        bias_correction=False,
        verdict=False,
        builder="none",
        output=tmp_path_factory.mktemp("made"),
    )["files"]
    return files


def kept_in(graph: Graph | Path) -> int:
    arguments = dict(read_manifest(graph).arguments)
    return len(json.loads(arguments["keep"]))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, made: dict[str, str]) -> None:
    """Each layer in INT8 costs a thousandth of mAP; layers' milliseconds are all alike."""
    names = layer_names(made["fp32"])

    def drop(selection: Selection, before: Graph, now: Graph, budget: float) -> Drop:
        lost = 0.003 * (len(names) - kept_in(now))
        return Drop(0.9, 0.9 - lost, 0.0, 1000)

    def layers(graph: Graph, *_: Any, **__: Any) -> dict[str, float]:
        return dict.fromkeys(names, 1.0 if graph.path.name == "int8.onnx" else 2.0)

    monkeypatch.setattr(mixed_trials, "measure_drop", drop)
    monkeypatch.setattr(mixed_trials, "onnx_layer_ms", layers)


def clocked(
    monkeypatch: pytest.MonkeyPatch, ms: Callable[[int], float], unsure: float = 0.0
) -> list[int]:
    """Time graphs by the number of layers that they keep; the numbers of those timed."""
    seen: list[int] = []

    def timed(graphs: Sequence[Graph | Path], *_: Any, **__: Any) -> dict[Path, Quick]:
        seen.extend(kept_in(one) for one in graphs)
        return {Path(one): Quick(ms(kept_in(one)), 99.0, "a clock", unsure) for one in graphs}

    monkeypatch.setattr(mixed_trials, "quick_ms", timed)
    return seen


def test_a_mixture_slower_than_no_int8_at_all_is_not_chosen(
    made: dict[str, str],
    judged: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    every = len(layer_names(made["fp32"]))
    seen = clocked(monkeypatch, lambda kept: {0: 10.0, every: 12.0}.get(kept, 15.0))
    result = search_layers(
        made["fp32"],
        made["calibration"],
        SCENES,
        SearchOptions(
            max_map_drop=BUDGET,
            threads=1,
            output=str(tmp_path / "m.onnx"),
            fastest_on_cpu=True,
        ),
    )
    assert {0, every} < set(seen)
    assert result.holds and result.chosen.kept == every
    assert (result.chosen.ms, result.costs) == (12.0, "whole graphs in turns, a clock")
    # What is slower and less accurate is on no front.
    assert [(one.kept, one.ms) for one in result.pareto] == [(0, 10.0), (every, 12.0)]
    assert result.files is not None
    layers = read_map(result.files["precision_map"], Path(made["fp32"]))
    assert len(layers) == every == kept_in(tmp_path / "m.onnx")
    print_search(result)
    assert "ship the FP16 graph" in capsys.readouterr().err


def test_of_the_graphs_that_fit_the_fastest_is_chosen(
    made: dict[str, str], judged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = len(layer_names(made["fp32"]))
    seen = clocked(monkeypatch, lambda kept: 10.0 + kept)
    source = Path(made["fp32"])
    selection = Selection.open(SCENES, read_manifest(source).spec.classes, 2, threads=1)
    searched = search_mixed(
        source, read_table(made["calibration"]), selection, budget=BUDGET, fastest_on_cpu=True
    )
    needed = next(kept for kept in range(every) if 0.003 * (every - kept) <= BUDGET)
    assert searched.chosen.kept == needed == len(searched.layers)
    assert searched.chosen.ms == 10.0 + needed
    assert len(seen) == len(set(seen)) <= 14
    assert [one.ms for one in searched.pareto] == [10.0 + one.kept for one in searched.pareto]


def test_on_a_gpu_whole_engines_are_timed(
    made: dict[str, str], judged: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    every, built = len(layer_names(made["fp32"])), []

    def engine(graph: Graph) -> Path:
        """Stands for the engine; a copy, as no graph outlives the next trial's."""
        built.append(graph.path.name)
        target = tmp_path / f"engine {graph.path.name}"
        target.write_bytes(graph.path.read_bytes())
        return target

    timed: list[str] = []
    clock = clocked(monkeypatch, lambda kept: 10.0 + kept)
    inner = mixed_trials.quick_ms
    monkeypatch.setattr(
        mixed_trials,
        "quick_ms",
        lambda paths, *a, **k: (timed.extend(p.name for p in paths), inner(paths, *a, **k))[1],
    )
    monkeypatch.setattr(
        mixed_trials,
        "engine_layer_ms",
        lambda path: dict.fromkeys(layer_names(made["fp32"]), 1.0 if path == "int8" else 2.0),
    )
    source = Path(made["fp32"])
    selection = Selection.open(SCENES, read_manifest(source).spec.classes, 2, threads=1)
    search_mixed(
        source,
        read_table(made["calibration"]),
        selection,
        budget=BUDGET,
        engines=("int8", "fp16"),
        engine=engine,
    )
    assert timed == [f"engine {name}" for name in built]
    assert {0, every} <= set(clock) and len(built) <= 6


@pytest.mark.parametrize(("on_cpu", "unsure"), [(False, 0.0), (True, 0.5)], ids=["gpu", "busy"])
def test_most_int8_is_chosen_where_times_of_this_machine_tell_nothing(
    made: dict[str, str],
    judged: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    on_cpu: bool,
    unsure: float,
) -> None:
    every = len(layer_names(made["fp32"]))
    # Every layer out of INT8 is by far the fastest here, which says nothing of a GPU.
    clocked(monkeypatch, lambda kept: 1.0 if kept == every else 15.0, unsure)
    source = Path(made["fp32"])
    selection = Selection.open(SCENES, read_manifest(source).spec.classes, 2, threads=1)
    table = read_table(made["calibration"])
    found = search_mixed(source, table, selection, budget=BUDGET, fastest_on_cpu=on_cpu)
    needed = next(kept for kept in range(every) if 0.003 * (every - kept) <= BUDGET)
    assert found.holds and found.chosen.kept == needed < every
    assert found.costs == "number of layers; times of whole graphs in turns, a clock"
    assert ("cannot tell on this machine now" in capsys.readouterr().err) == on_cpu


def test_a_file_is_called_int8_only_if_layers_are(
    judged: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clocked(monkeypatch, lambda kept: 10.0)
    # Each layer in INT8 loses more than the budget: all are kept.
    result = exported(
        precision="int8",
        calib="scenes://?seed=500000&count=4",
        images=4,
        max_map_drop=0.002,
        accuracy_data=SCENES,
        builder="none",
        output=tmp_path,
    )
    assert result["search"]["chosen"]["kept"] == result["search"]["all_layers"]
    assert result["precision"] == "fp16" and result["verdict"] is None
    assert not list(tmp_path.glob("*.int8.onnx"))
    assert read_manifest(result["files"]["fp16"]).precision == "fp16"


def test_keeping_every_layer_is_refused_as_int8(made: dict[str, str], tmp_path: Path) -> None:
    names = ",".join(layer_names(made["fp32"]))
    command = ["quantize", made["fp32"], made["calibration"], "--keep", names]
    assert main([*command, "-o", str(tmp_path / "a.int8.onnx")]) == 2
    assert not (tmp_path / "a.int8.onnx").exists()
