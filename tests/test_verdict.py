"""The verdict says INT8, FP16 or mixed in one line, and why, from what was measured."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.commands.export import print_export
from calibration.graph import Graph
from edge.artifact import read_manifest
from edge.errors import ArtifactError
from edge.measure.noise import decibel
from edge.measure.turns import Quick
from export import pipeline as exporting
from export.engine.build import EngineFacts
from export.engine.layer_report import LayerInfo
from export.int8.precision_map import layer_names
from export.int8.quantize import write_mixed
from export.pipeline import export_engine
from export.search import facts as judging
from export.search.loss import noisiest
from export.search.verdict import Facts, Verdict, decide, int8_share, off_grid
from tests.support.small_models import picture, write_small
from tests.support.steps import exported, flat_options, scales

FEW = "scenes://?seed=500000&count=4"
FACTS = Facts(
    target="TensorRT 10.3 on Orin",
    on_engine=True,
    engine_ms={"int8": 2.0, "fp16": 3.0},
    pipeline_ms={"int8": 3.0, "fp16": 4.0},
    head_db=25.0,
)


def told(found: Verdict) -> str:
    """All that a verdict says."""
    return "; ".join((found.sentence, *found.reasons, *found.advice))


def test_sound_and_faster_is_int8() -> None:
    found = decide(FACTS)
    assert found.choice == "INT8"
    assert found.sentence == "INT8: it keeps 25.0 dB signal to noise at the heads"
    assert found.reasons[0] in found.sentence
    assert found.reasons[1:] == (
        "INT8 is 1.50 times as fast as FP16 (2.00 against 3.00 ms)",
        "timed on TensorRT 10.3 on Orin",
    )
    assert found.advice == ()


@pytest.mark.parametrize(
    ("unsure", "choice"),
    [(0.0, "INT8"), (0.02, "INT8"), (0.2, "INT8"), (0.5, "cannot tell")],
)
def test_times_that_vary_across_the_border_are_no_reason(unsure: float, choice: str) -> None:
    found = decide(replace(FACTS, unsure={"fp16": unsure}))
    assert found.choice == choice
    if choice == "cannot tell":
        # 1.5 / e^0.5 and 1.5 e^0.5.
        assert "cannot tell on this machine now: INT8 is 0.91 to 2.47 times as fast" in told(found)
        assert "end other work on this machine" in told(found)


def test_what_is_too_noisy_needs_no_times_to_be_refused() -> None:
    facts = replace(FACTS, head_db=4.0, unsure={"fp16": 5.0})
    assert decide(facts).choice == "FP16"
    assert decide(replace(facts, noisy=(("a", 5.0),))).choice == "cannot tell"
    busy = replace(FACTS, disturbed=("other work: load 9.0 on 2 cores",))
    assert "other work: load 9.0" in told(decide(busy))


def test_layers_are_called_what_they_are() -> None:
    facts = replace(FACTS, head_db=9.0, noisy=(("a.conv", 14.2), ("b.conv", 17.0)))
    said = told(decide(facts))
    assert "without INT8 in a.conv (14.2 dB), b.conv (17.0 dB)" in said and "by an estimate" in said
    assert "each by itself" not in said
    assert "--keep a.conv,b.conv" in said


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"measured_on": "6 calibration pictures"}, "at the heads on 6 calibration pictures"),
        (
            {"head_db": None, "measured_on": "/gone: no such file or folder"},
            "was not measured: /gone: no such file or folder",
        ),
    ],
)
def test_the_pictures_behind_the_decibels_are_named(facts: dict[str, Any], words: str) -> None:
    found = decide(replace(FACTS, **facts))
    assert words in found.sentence
    assert ("--accuracy-data" in told(found)) == ("not measured" in words)


@pytest.mark.parametrize(("int8_ms", "words"), [(3.0, "no faster"), (4.5, "1.50 times slower")])
def test_int8_that_does_not_pay_is_fp16(int8_ms: float, words: str) -> None:
    found = decide(replace(FACTS, engine_ms={"int8": int8_ms, "fp16": 3.0}))
    assert found.choice == "FP16"
    assert words in found.reasons[0]


def test_a_measured_loss_beyond_the_budget_is_fp16_whatever_the_noise() -> None:
    lost = replace(FACTS, drop=(0.02, 0.01, 0.03), head_db=30.0)
    assert decide(lost).choice == "FP16"
    assert "costs 2.00 points of mAP@.5 (95 %: 1.00 to 3.00 lost)" in told(decide(lost))
    assert decide(replace(lost, budget=0.05)).choice == "INT8"
    assert decide(replace(lost, drop=(-0.01, -0.02, 0.0))).choice == "INT8"


def test_unsound_heads_name_the_layers_to_keep() -> None:
    noisy = replace(FACTS, head_db=4.0, noisy=(("layers.64.conv", 4.5),))
    found = decide(noisy)
    assert (found.choice, found.keep) == ("mixed", ("layers.64.conv",))
    assert "keep layers.64.conv out of INT8" in told(found)
    assert "under the 12 dB of a sound network" in told(found)
    assert decide(replace(noisy, noisy=())).choice == "FP16"


def test_a_budget_holds_by_its_bound_and_few_pictures_need_close_heads() -> None:
    within = replace(FACTS, drop=(0.001, 0.0, 0.002), budget=0.002, fp32_map50=0.9)
    assert decide(within).choice == "INT8"
    assert "0.10 points of mAP@.5 of FP32's 90.0" in told(decide(within))
    assert "within the budget of 0.2" in told(decide(within))
    unsure = replace(within, drop=(0.001, -0.001, 0.003))
    assert decide(unsure).choice == "FP16"
    assert "not sure to stay within the budget of 0.2" in told(decide(unsure))
    # 25 dB at the heads: enough for many pictures, not for a few that agree by chance.
    assert decide(replace(within, pictures=20)).choice == "FP16"


def test_a_loss_without_a_budget_points_to_the_search() -> None:
    lost = decide(replace(FACTS, drop=(0.02, 0.01, 0.03)))
    assert "--max-map-drop 0.01 looks for the layers" in told(lost)
    assert "looks for the layers" not in told(decide(FACTS))


def test_a_network_that_is_blind_in_fp32_is_sent_to_its_contract() -> None:
    blind = replace(FACTS, drop=(0.0, 0.0, 0.0), fp32_map50=0.003)
    assert "check --resize and --names" in told(decide(blind))
    assert "check --resize" not in told(decide(replace(blind, fp32_map50=0.3)))


def test_what_was_never_judged_is_not_called_accurate() -> None:
    found = decide(replace(FACTS, head_db=None))
    assert found.choice == "INT8"
    assert "what it costs in accuracy was not measured" in told(found)


def test_kept_layers_make_it_mixed() -> None:
    found = decide(replace(FACTS, kept=("layers.0.conv",)))
    assert found.choice == "mixed"
    assert "layers.0.conv stay out of INT8" in told(found)


def test_reasons_are_read_from_the_layer_report() -> None:
    found = decide(
        replace(
            FACTS,
            engine_ms={"int8": 1.0, "fp16": 1.1},
            int8_share=0.4,
            reformats=7,
            layers=30,
            reformat_share=0.25,
            off_grid=0.5,
        )
    )
    for words in (
        "40% of the engine's time runs in INT8 layers",
        "7 of 30 layers only move data (25% of the time)",
        "50% of the convolutions have channels that are no multiple of 32",
        "the network takes only 33% of the time from frame to boxes",
    ):
        assert words in told(found)


def test_on_a_cpu_the_rival_is_whatever_computes_faster() -> None:
    times = {"int8": 2.0, "fp16": 9.0, "fp32": 1.9}
    found = decide(replace(FACTS, on_engine=False, engine_ms=times))
    assert found.choice == "FP16" and "than FP32" in found.sentence


def test_shares_of_time_follow_the_layers_types() -> None:
    layers = [
        LayerInfo("a", "CaskConvolution", ("int8",), ("int8",)),
        LayerInfo("Reformatting CopyNode", "Reformat", ("half",), ("int8",)),
        LayerInfo("c", "CaskConvolution", ("half",), ("half",)),
    ]
    assert int8_share({"a": 2.0, "Reformatting CopyNode": 1.0, "c": 1.0}, layers) == (0.5, 0.25)


def test_channels_off_the_grid_are_counted_but_not_those_of_image_and_heads(
    tmp_path: Path,
) -> None:
    write_small(tmp_path / "a.onnx")
    # Seven of the small network's eight convolutions are not depthwise, none of them on the grid.
    assert off_grid(tmp_path / "a.onnx") == 1.0
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        (tmp_path / "b.onnx").write_bytes(b"junk" * 9)
        off_grid(tmp_path / "b.onnx")


def test_a_layer_that_no_scale_serves_is_named_and_keeping_it_mends_the_heads(
    tmp_path: Path,
) -> None:
    source = tmp_path / "a.fp32.onnx"
    write_small(source)
    table = scales(source, FEW, images=3, equalise=False, threads=1).table
    # A threshold a thousand times too low clips all that the first layer reads.
    amax = tuple((n, v / 1000 if n == "images" else v) for n, v in table.amax)
    broken = replace(table, amax=amax)
    arrays = [picture((48, 64), seed=seed) for seed in range(2)]
    write_mixed(source, broken, tmp_path / "m.onnx", {})
    db, named = noisiest(source, tmp_path / "m.onnx", broken, arrays, 1)
    assert db < 12
    assert [name for name, _ in named] == layer_names(source)[:1]
    write_mixed(source, broken, tmp_path / "m.onnx", {name: "fp16" for name, _ in named})
    assert noisiest(source, tmp_path / "m.onnx", broken, arrays, 1)[0] >= 12


def test_export_says_the_verdict_and_what_was_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "_SECONDS", 0.05)
    options = flat_options(precision="int8", calib=FEW, images=4, builder="none", output=tmp_path)
    result = export_engine(options=options)
    verdict = result.verdict
    assert verdict is not None and verdict.choice in ("INT8", "FP16", "cannot tell")
    assert set(verdict.facts.engine_ms) == {"int8", "fp16", "fp32"}
    assert verdict.facts.head_db is not None and verdict.facts.head_db > 12
    assert read_manifest(result.files["fp16"]).precision == "fp16"
    print_export(result)
    said = " ".join(capsys.readouterr().err.split())
    assert f"verdict: {verdict.choice} on this CPU" in said
    assert "no TensorRT engine was measured" in said
    assert "a GPU has other speeds" in said


class FakeBackend:
    """An engine on its GPU, of one INT8 layer and one that moves data."""

    def layer_times(self) -> list[tuple[str, float]]:
        return [("conv", 3.0), ("reformat", 1.0)]

    def __enter__(self) -> FakeBackend:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU on which INT8 takes 2 ms and FP16 3 ms; the names of the engines built for it."""
    built: list[str] = []

    def build(graph: Graph, made: Any) -> EngineFacts:
        built.append(graph.path.name)
        file = str(graph.path.with_suffix(".engine"))
        return EngineFacts(file, "rtx", "1", "asked for", 1.0, 1, 1, 2, 1, {}, (), (), (), None)

    def timed(paths: list[Path], frames: Any, seconds: float, settle: bool) -> dict[Path, Quick]:
        return {p: Quick(3.0 if "fp16" in p.name else 2.0, 4.0, "TensorRT 10.3") for p in paths}

    def layers(path: Path) -> tuple[list[LayerInfo], dict[str, Any]]:
        found = [
            LayerInfo("conv", "CaskConvolution", ("int8",), ("int8",)),
            LayerInfo("reformat", "Reformat", ("half",), ("int8",)),
        ]
        return found, {"reformats": 1, "layers": 2, "convolutions": []}

    for module in (judging, exporting):
        monkeypatch.setattr(module, "driver_facts", lambda: "a GPU")
    monkeypatch.setattr(exporting, "built_engine", build)
    monkeypatch.setattr(exporting, "why_no_builder", lambda options: "")
    monkeypatch.setattr(judging, "open_backend", lambda path: FakeBackend())
    monkeypatch.setattr(judging, "quick_ms", timed)
    monkeypatch.setattr(judging, "engine_layers", layers)
    return built


def test_a_graph_brought_to_its_gpu_is_judged_there_by_what_was_measured_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gpu: list[str]
) -> None:
    options = {"calib": FEW, "images": 4, "builder": "none", "output": tmp_path / "pc"}
    pc = exported(precision="int8", **options)
    brought = tmp_path / "jetson"
    brought.mkdir()
    for kind in ("int8", "fp16"):
        shutil.copy(pc["files"][kind], brought)
    del gpu[:]
    name = Path(pc["files"]["int8"]).name
    found = exported(brought / name, output=brought)["verdict"]
    assert gpu == [name, name.replace("int8", "fp16")]
    assert found["choice"] == "INT8"
    assert found["sentence"].startswith(f"INT8: it keeps {found['facts']['head_db']:.1f} dB")
    assert found["facts"]["head_db"] == pc["verdict"]["facts"]["head_db"]
    assert "75% of the engine's time runs in INT8 layers" in found["reasons"]
    assert "1 of 2 layers only move data (25% of the time)" in found["reasons"]
    # Without its FP16 file, or with that of another network, nothing is compared.
    shutil.copy(pc["files"]["fp32"], brought / name.replace("int8", "fp16"))
    assert exported(brought / name, output=brought)["verdict"] is None
    assert "no verdict: it takes the FP16 file" in capsys.readouterr().err


def test_without_a_verdict_nothing_else_is_made(tmp_path: Path) -> None:
    result = exported(
        precision="int8", calib=FEW, images=4, builder="none", verdict=False, output=tmp_path
    )
    assert result["verdict"] is None
    assert "fp16" not in result["files"]


def test_contradicting_options_are_one_line(tmp_path: Path) -> None:
    for options, what in (
        ({"precision": "fp16"}, "add --int8"),
        ({"precision": "int8", "keep": ["first"]}, "leave out --keep"),
    ):
        with pytest.raises(ArtifactError, match=what):
            exported(max_map_drop=0.01, builder="none", output=tmp_path, **options)
    assert decibel(np.inf) < 0
