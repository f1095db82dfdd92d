"""`search` keeps what an accuracy budget takes, at least cost; its map can be run again."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.qdq import convolutions
from calibration.table import CalibrationTable
from edge.artifact import read_manifest
from edge.errors import ArtifactError
from edge.measure.noise import decibel, head_noise, heads_of, noise_share
from export.graph.half_range import beyond_half
from export.int8.precision_map import layer_names, read_map, write_map
from export.int8.quantize import annotate, write_mixed
from export.search.layer_cost import attribute, onnx_layer_ms
from export.search.search import (
    SearchTrials,
    Trial,
    fastest,
    fits,
    keep_order,
    pareto,
    search,
    upper_drop,
    worth_timing,
)
from tests.support.small_models import picture, run, write_small
from tests.support.steps import scales

NAMES = [f"layer {i}" for i in range(6)]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("search") / "a.fp32.onnx"
    write_small(target)
    return target


@pytest.fixture(scope="module")
def table(fp32: Path) -> CalibrationTable:
    return scales(fp32, "scenes://?seed=500000&count=3", images=3, threads=1).table


def trial(
    kept: Collection[str], drop: float, cost: float = 0.0, spread: float = 0.0, db: float = 40.0
) -> Trial:
    return Trial(frozenset(kept), 0.9 - drop, drop, spread, db, cost, pictures=1000)


@given(
    noise=st.lists(st.floats(1e-4, 1), min_size=6, max_size=6),
    cost=st.lists(st.sampled_from([0.1, 1.0, 5.0]), min_size=6, max_size=6),
    budget=st.floats(0.01, 2),
)
@settings(max_examples=60, deadline=None)
def test_the_choice_fits_and_each_dear_layer_of_it_is_needed(
    noise: list[float], cost: list[float], budget: float
) -> None:
    by_name, ms = dict(zip(NAMES, noise, strict=True)), dict(zip(NAMES, cost, strict=True))

    def measure(kept: frozenset[str]) -> Trial:
        left = sum(value for name, value in by_name.items() if name not in kept)
        return trial(kept, left, sum(ms[name] for name in kept))

    def good(one: Trial) -> bool:
        return one.drop <= budget

    chosen = search(keep_order(by_name, ms), ms, measure, good, tries=6).chosen
    assert good(chosen)
    for name in chosen.kept:
        assert not good(measure(chosen.kept - {name}))
    cheapest = min(
        measure(frozenset(kept)).kept_ms
        for size in range(7)
        for kept in combinations(NAMES, size)
        if good(measure(frozenset(kept)))
    )
    assert chosen.kept_ms <= 2 * cheapest + max(cost)


def test_what_fits_as_it_is_keeps_nothing() -> None:
    found = search(NAMES, {}, lambda kept: trial(kept, 0.0), lambda one: True)
    assert found.chosen.kept == frozenset()
    assert len(found.trials) == 1


def test_what_never_fits_keeps_all() -> None:
    costs = dict.fromkeys(NAMES, 1.0)
    found = search(NAMES, costs, lambda kept: trial(kept, 1.0), lambda one: False)
    assert found.chosen.kept == frozenset(NAMES)


def test_a_layer_that_costs_nothing_is_kept_before_a_noisier_dear_one() -> None:
    assert keep_order({"a": 1.0, "b": 0.01}, {"a": 50.0, "b": 0.0}) == ["b", "a"]
    assert keep_order({"a": 1.0, "b": 0.01}, {"a": 1.0, "b": 1.0}) == ["a", "b"]


def test_a_gain_on_few_images_is_no_reserve() -> None:
    assert upper_drop(-0.02, 0.004) == upper_drop(0.0, 0.004)
    assert upper_drop(0.0, 0.004) > 0.006
    assert not fits(trial((), -0.02, spread=0.004), budget=0.002)
    assert fits(trial((), 0.001, spread=0.0005), budget=0.002)


def test_few_pictures_that_agree_by_chance_do_not_fit_unless_the_heads_do() -> None:
    agrees = replace(trial((), 0.0, db=25.0), pictures=50)
    assert not fits(agrees, 0.002)
    assert fits(replace(agrees, head_db=31.0), 0.002)
    assert fits(replace(agrees, pictures=400), 0.002)


def test_the_front_falls_in_the_drop_as_it_rises_in_cost() -> None:
    trials = [trial("a", 0.5, 1), trial("b", 0.1, 2), trial("c", 0.3, 3), trial("d", 0.05, 4)]
    ms = {one.kept: one.kept_ms for one in trials}
    assert ["".join(one.kept) for one in pareto(trials, ms)] == ["a", "b", "d"]
    ms[frozenset("d")] = 0.5
    assert ["".join(one.kept) for one in pareto(trials, ms)] == ["d"]
    del ms[frozenset("d")]
    assert len(pareto(trials, ms)) == 2


def test_the_fastest_graph_that_fits_is_chosen_and_of_equals_the_one_that_keeps_least() -> None:
    trials = [trial("", 0.5), trial("a", 0.1), trial("ab", 0.0), trial("abc", 0.0)]
    times = dict(zip((one.kept for one in trials), (1.0, 3.0, 2.0, 1.99), strict=True))

    def good(one: Trial) -> bool:
        return one.drop <= 0.2

    assert fastest(trials, times, good) is trials[2]
    assert fastest(trials, times | {frozenset("abc"): 1.5}, good) is trials[3]
    assert fastest(trials[:1], times, good) is None
    assert fastest(trials, {frozenset("a"): 9.0}, good) is trials[1]


def test_both_ends_are_timed_whatever_the_estimate_says() -> None:
    trials = [trial(NAMES[:size], 0.1 * (6 - size), size) for size in range(7)]
    timed = worth_timing(SearchTrials(trials[3], tuple(trials)), lambda one: one.drop < 0.35, 2)
    assert timed == [trials[3], trials[4], trials[0], trials[6]]


def test_kept_layers_compute_in_half_and_the_others_as_before(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    names = layer_names(fp32)
    target = tmp_path / "m.onnx"
    manifest = write_mixed(fp32, table, target, {names[0]: "fp16", names[2]: "fp32"}).manifest
    model = onnx.load(str(target))
    onnx.checker.check_model(model)
    types = {one.name: one.data_type for one in model.graph.initializer}
    weights = {node.name: node.input[1] for node in convolutions(model)}
    assert types[weights[names[0]]] == onnx.TensorProto.FLOAT16
    assert types[weights[names[2]]] == onnx.TensorProto.FLOAT
    assert all(weights[name].endswith(".dequantized") for name in (names[1], *names[3:]))
    assert manifest.precision == "mixed"
    assert read_manifest(target) == manifest
    image = picture((48, 64), seed=1)
    assert all(np.isfinite(head).all() for head in run(target, image))


def test_the_more_is_kept_the_nearer_the_heads(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    names, arrays = layer_names(fp32), [picture((48, 64), seed=seed) for seed in range(3)]
    reference = heads_of(fp32, arrays, 1)
    found = []
    for kind, kept in (("int8", ()), ("fp16", names), ("fp32", names)):
        write_mixed(fp32, table, tmp_path / "m.onnx", dict.fromkeys(kept, kind))
        found.append(head_noise(reference, heads_of(tmp_path / "m.onnx", arrays, 1)))
    assert found[0] + 10 < found[1] < found[2]
    assert found[1] > 40 and found[2] > 100


def test_noise_at_the_heads_is_noise_over_signal_power() -> None:
    rng = np.random.default_rng(0)
    signal = [[rng.normal(size=(1, 3, 4, 4)).astype(np.float32)] for _ in range(3)]
    found = [[head * np.float32(1.1) for head in image] for image in signal]
    assert noise_share(signal, found) == pytest.approx(0.01, rel=1e-4)
    assert head_noise(signal, found) == pytest.approx(20, abs=1e-3)
    assert decibel(0.0) == 300 and decibel(float("inf")) == -300
    found[0][0][0, 0, 0, 0] = np.inf
    assert head_noise(signal, found) == -300


def test_a_layer_beyond_half_stays_in_single(fp32: Path, tmp_path: Path) -> None:
    arrays = [picture((48, 64))]
    assert beyond_half(fp32, arrays, 1) == frozenset()
    model = onnx.load(str(fp32))
    conv = convolutions(model)[1]
    bias = next(one for one in model.graph.initializer if one.name == conv.input[2])
    value = onnx.numpy_helper.to_array(bias) + np.float32(4e4)
    bias.CopyFrom(onnx.numpy_helper.from_array(value, bias.name))
    onnx.save(model, str(tmp_path / "large.onnx"))
    found = beyond_half(tmp_path / "large.onnx", arrays, 1)
    assert conv.name in found
    assert convolutions(model)[0].name not in found


def test_a_weight_beyond_half_names_the_file_and_leaves_none(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    from edge.files import sha256_of

    model = onnx.load(str(fp32))
    weight = convolutions(model)[0].input[1]
    constant = next(one for one in model.graph.initializer if one.name == weight)
    value = onnx.numpy_helper.to_array(constant) * np.float32(1e7)
    constant.CopyFrom(onnx.numpy_helper.from_array(value, weight))
    onnx.save(model, str(tmp_path / "wide.onnx"))
    own = replace(table, graph_sha256=sha256_of(tmp_path / "wide.onnx"))
    with pytest.raises(ArtifactError, match=r"wide\.onnx.*FP16 ends at 65504; keep it in fp32"):
        write_mixed(
            tmp_path / "wide.onnx", own, tmp_path / "m.onnx", {layer_names(fp32)[0]: "fp16"}
        )
    assert not (tmp_path / "m.onnx").exists()


def test_a_map_gives_the_same_file_again(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    names = layer_names(fp32)
    layers = {names[1]: "fp16", names[-1]: "fp32"}
    write_mixed(fp32, table, tmp_path / "a.onnx", layers)
    write_map(tmp_path / "m.json", fp32, layers, budget=0.002)
    assert set(json.loads((tmp_path / "m.json").read_text())["layers"]) == set(names)
    again = read_map(tmp_path / "m.json", fp32)
    assert again == layers
    write_mixed(fp32, table, tmp_path / "b.onnx", again)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not a precision map"),
        ('{"layers": {"layers.0.conv": 8}}', "layers.layers.0.conv: takes text, not 8"),
        ('{"layers": {}, "schema": 9}', "schema 9 is newer"),
        ("[]", "not a precision map"),
        ('{"layers": {"layers.0.conv": "int4"}}', "precision 'int4'; known: int8, fp16, fp32"),
        ('{"layers": {"other": "fp16"}}', "names 'other', which .* does not have"),
    ],
)
def test_a_foreign_map_is_one_line(fp32: Path, tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ArtifactError, match=what):
        read_map(tmp_path / "m.json", fp32)


def test_facts_are_added_to_a_manifest_and_nothing_else_changes(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    before = write_mixed(fp32, table, tmp_path / "m.onnx", {}).manifest
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    manifest = annotate(tmp_path / "m.onnx", score=0.31).manifest
    assert dict(manifest.arguments) == dict(before.arguments) | {"score": "0.31"}
    assert onnx.load(str(tmp_path / "m.onnx")).graph == graph


def test_every_convolution_has_measured_milliseconds(
    fp32: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    write_mixed(fp32, table, tmp_path / "m.onnx", {})
    for path in (fp32, tmp_path / "m.onnx"):
        found = onnx_layer_ms(path, picture((48, 64)), runs=4, threads=1)
        assert list(found) == layer_names(fp32)
        assert all(ms > 0 for ms in found.values()), found


def test_time_goes_to_the_module_that_a_node_belongs_to() -> None:
    times = {
        "layers.1.conv_nchwc": 1.0,
        "layers.1.act": 2.0,
        "layers.10.conv_token_3": 4.0,
        "layers.2.pool": 8.0,
        "fire.squeeze.conv": 16.0,
        "Reorder": 32.0,
    }
    assert attribute(["layers.1.conv", "layers.10.conv", "fire.squeeze.conv"], times) == {
        "layers.1.conv": 3.0,
        "layers.10.conv": 4.0,
        "fire.squeeze.conv": 16.0,
    }
