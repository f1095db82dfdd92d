"""`edge estimate`: graph to kernels to milliseconds, against published figures."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from apps.cli import main
from apps.commands.examples import EXAMPLES
from edge.built_in import BUILT_IN
from edge.errors import ArtifactError, DataError
from export.estimate.estimate import (
    Estimate,
    EstimateOptions,
    Network,
    estimate,
    kernel_time_ms,
    read_measurements,
    read_network,
)
from export.estimate.facts import board_named, read_facts, read_fit
from export.estimate.fleet import plan_fleet
from export.estimate.graph import read_operators
from export.estimate.kernels import Kernel, fuse
from export.estimate.times import PRECISIONS, KernelTable, network_ms, workload
from tests.support.tools import load_tool

FACTS, FIT = read_facts(), read_fit()
# GFLOP of a frame of 640x640 as the networks' authors print them.
PRINTED_GFLOP = {
    "yolov8n": 8.7,
    "yolov8s": 28.6,
    "yolov8m": 78.9,
    "yolov8l": 165.2,
    "yolov8x": 257.8,
    "yolo11n": 6.5,
    "yolo11s": 21.5,
    "yolo11m": 68.0,
    "yolo11l": 86.9,
    "yolo11x": 194.9,
    "yolo26n": 5.4,
    "yolo26s": 20.7,
    "yolo26m": 68.2,
    "yolo26l": 86.4,
    "yolo26x": 193.9,
}


def save(
    folder: Path,
    nodes: list[Any],
    weights: dict[str, tuple[int, ...]],
    *,
    shape: tuple[Any, ...] = (1, 16, 32, 32),
    outputs: tuple[str, ...] = ("y",),
    values: dict[str, Any] | None = None,
    stated: dict[str, tuple[int, ...]] | None = None,
    empty: bool = False,
) -> Path:
    """Write a graph; `empty` keeps the shapes of its weights alone."""
    rng = np.random.default_rng(0)
    tensors = []
    for name, dims in weights.items():
        tensor = onnx.numpy_helper.from_array(rng.normal(size=dims).astype(np.float32), name)
        if empty:
            tensor.ClearField("raw_data")
        tensors.append(tensor)
    for name, value in (values or {}).items():
        tensors.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", floats, shape)],
        [helper.make_tensor_value_info(name, floats, None) for name in outputs],
        tensors,
        value_info=[
            helper.make_tensor_value_info(name, floats, dims)
            for name, dims in (stated or {}).items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("other", 1)]
    path = folder / "g.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    )
    return path


def conv(name: str, into: str, out: str, weight: str, **more: Any) -> Any:
    return helper.make_node("Conv", [into, weight], [out], name, pads=[1, 1, 1, 1], **more)


def swish(into: str, out: str) -> list[Any]:
    return [
        helper.make_node("Sigmoid", [into], [f"{into}_s"], f"{into}_sigmoid"),
        helper.make_node("Mul", [into, f"{into}_s"], [out], f"{out}_mul"),
    ]


def test_operations_are_those_that_the_networks_authors_print() -> None:
    for name, printed in PRINTED_GFLOP.items():
        table = FACTS.networks[name, 640]
        found = float(2 * (table.m * table.n * table.k * table.groups) @ table.count) / 1e9
        assert found == pytest.approx(printed, rel=0.03), name


def halves_of_channels() -> list[Any]:
    """How exporters write a split of the channels in two: by arithmetic on the shape."""
    return [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["channels"]),
        helper.make_node("Add", ["channels", "one"], ["more"]),
        helper.make_node("Div", ["more", "two"], ["half"]),
        helper.make_node("Slice", ["x", "zero", "half", "one"], ["a"], "first"),
        helper.make_node("Slice", ["x", "half", "channels", "one"], ["b"], "second"),
        conv("conv", "a", "c", "w"),
        helper.make_node("Concat", ["a", "b", "c"], ["y"], "concat", axis=1),
    ]


NUMBERS = {
    name: np.array([value], np.int64) for name, value in (("zero", 0), ("one", 1), ("two", 2))
}


def test_shapes_that_come_of_arithmetic_on_shapes_are_onnxruntimes(tmp_path: Path) -> None:
    path = save(tmp_path, halves_of_channels(), {"w": (4, 8, 3, 3)}, values=NUMBERS)
    model = onnx.load(path)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in "abc")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    run = session.run(None, {"x": np.zeros((1, 16, 32, 32), np.float32)})
    wanted = {name: value.shape for name, value in zip(names, run, strict=True)}
    operators = read_operators(path)
    found = {n: s for one in operators for n, s in zip(one.outputs, one.shapes, strict=True)}
    assert found == wanted


def test_operators_of_old_opsets_are_computed_by_their_own_rules(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["height"]),
        helper.make_node("Unsqueeze", ["height"], ["height_1"], axes=[0]),
        helper.make_node("Concat", ["one", "minus", "height_1"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"], "reshape"),
    ]
    values = {
        "two": np.int64(2),
        "one": np.array([1], np.int64),
        "minus": np.array([-1], np.int64),
    }
    model = onnx.load(save(tmp_path, nodes, {}, values=values))
    model.opset_import[0].version = 11
    onnx.save(model, tmp_path / "old.onnx")
    (one,) = read_operators(tmp_path / "old.onnx")
    assert one.shapes == ((1, 16 * 32, 32),)


def test_weights_without_values_give_the_same_kernels(tmp_path: Path) -> None:
    nodes, weights = halves_of_channels(), {"w": (4, 8, 3, 3)}
    whole = fuse(read_operators(save(tmp_path, nodes, weights, values=NUMBERS)))
    assert fuse(read_operators(save(tmp_path, nodes, weights, values=NUMBERS, empty=True))) == whole


def test_a_concatenation_copies_only_what_is_a_part_of_another_tensor(tmp_path: Path) -> None:
    path = save(tmp_path, halves_of_channels(), {"w": (4, 8, 3, 3)}, values=NUMBERS)
    kernels = fuse(read_operators(path))
    assert [(one.kind, one.name) for one in kernels] == [("conv", "conv"), ("move", "concat")]
    assert kernels[1].written == 16 * 32 * 32


def test_a_convolution_takes_its_activation_and_an_addition_along(tmp_path: Path) -> None:
    nodes = [
        conv("first", "x", "a", "w1"),
        helper.make_node("LeakyRelu", ["a"], ["b"], "leaky"),
        conv("second", "b", "c", "w2"),
        helper.make_node("Add", ["c", "b"], ["d"], "residual"),
        conv("third", "d", "e", "w2"),
        *swish("e", "f"),
        helper.make_node("Add", ["f", "d"], ["y"], "gated"),
    ]
    weights = {"w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3)}
    kernels = fuse(read_operators(save(tmp_path, nodes, weights)))
    assert [one.name for one in kernels] == ["first", "second", "third", "gated"]
    plane = 16 * 32 * 32
    assert [one.read for one in kernels] == [plane, 2 * plane, plane, 2 * plane]
    assert [one.kind for one in kernels] == ["conv", "conv", "conv", "pointwise"]


def test_norms_and_scales_after_a_convolution_are_folded_into_it(tmp_path: Path) -> None:
    nodes = [
        conv("conv", "x", "a", "w"),
        helper.make_node("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"], "norm"),
        helper.make_node("Mul", ["b", "half"], ["c"], "scale"),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    path = save(
        tmp_path,
        nodes,
        {"w": (16, 16, 3, 3), "s": (16,)},
        values={"half": np.float32(0.5)},
    )
    assert [one.name for one in fuse(read_operators(path))] == ["conv"]


def test_a_swish_is_known_and_siblings_are_one_kernel(tmp_path: Path) -> None:
    nodes = [
        conv("left", "x", "a", "w1"),
        *swish("a", "b"),
        conv("right", "x", "c", "w2"),
        helper.make_node("Concat", ["b", "c"], ["y"], "concat", axis=1),
    ]
    weights = {"w1": (16, 16, 3, 3), "w2": (8, 16, 3, 3)}
    (one,) = fuse(read_operators(save(tmp_path, nodes, weights)))
    assert (one.n, one.swish, one.written) == (24, True, 24 * 32 * 32)


def test_quantizing_nodes_vanish_and_what_has_none_stays_in_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
        conv("low", "d", "a", "w"),
        conv("kept", "a", "y", "w"),
    ]
    values = {"s": np.float32(0.1), "z": np.int8(0)}
    kernels = fuse(read_operators(save(tmp_path, nodes, {"w": (16, 16, 3, 3)}, values=values)))
    assert [(one.name, one.quantizable) for one in kernels] == [("low", True), ("kept", False)]


def test_every_row_names_a_board_a_network_and_a_source() -> None:
    for row in FACTS.rows:
        assert row.board in FACTS.boards
        assert row.source in FACTS.sources
        assert row.precision in PRECISIONS
        assert (row.network, row.size) in FACTS.networks
        assert row.ms > 0
    assert all(board.source for board in FACTS.boards.values())


def test_the_constants_are_what_the_fit_finds_in_the_facts() -> None:
    fit = load_tool("estimate/fit")
    rows = [row for row in fit.rows_of(FACTS) if row.facts.source != fit.BEYOND]
    found = fit.fit_constants(rows)
    for row in rows:
        stored = network_ms(row.work, FIT.constants)
        assert network_ms(row.work, found) == pytest.approx(stored, rel=0.005)


def test_a_network_left_out_is_predicted_within_a_fifth() -> None:
    fit = load_tool("estimate/fit")
    rows = [row for row in fit.rows_of(FACTS) if row.facts.source != fit.BEYOND]
    found = fit.fit_constants([r for r in rows if r.facts.network != "yolo26m"], FIT.constants)
    left = [row for row in rows if row.facts.network == "yolo26m"]
    assert len(left) >= 6
    for row in left:
        assert network_ms(row.work, found) == pytest.approx(row.facts.ms, rel=0.2)


def test_the_stored_errors_meet_their_targets_and_beat_a_roofline() -> None:
    left, plain = FIT.errors["network left out"], FIT.errors["roofline, network left out"]
    assert left["median_percent"] <= 8
    assert left["within_20_percent"] >= 90
    assert 75 <= left["covered_percent"] <= 85
    assert left["int8_right"] >= 0.95 * left["int8_pairs"] > 15
    assert left["median_percent"] < 0.6 * plain["median_percent"]


@pytest.mark.slow
def test_the_stored_errors_are_those_of_the_cross_validation() -> None:
    fit = load_tool("estimate/fit")
    rows = [row for row in fit.rows_of(FACTS) if row.facts.source != fit.BEYOND]
    tables, _ = fit.judge(rows, fit.fit_constants(rows))
    for name, stored in FIT.errors.items():
        assert tables[name] == pytest.approx(stored, abs=0.5)


def layer(channels: int, filters: int, pixels: int, window: int) -> Kernel:
    return Kernel(
        "conv",
        "c",
        m=pixels,
        n=filters,
        k=channels * window,
        channels=channels,
        read=channels * pixels,
        written=filters * pixels,
        weights=channels * filters * window,
        swish=True,
    )


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 600),
    st.integers(1, 600),
    st.integers(1, 40000),
    st.sampled_from((1, 9)),
    st.integers(1, 64),
    st.sampled_from(sorted(FACTS.boards)),
    st.sampled_from(PRECISIONS),
)
def test_more_channels_filters_or_pixels_are_never_faster(
    channels: int, filters: int, pixels: int, window: int, more: int, name: str, precision: str
) -> None:
    board = board_named(name)

    def ms(*sizes: int) -> float:
        return kernel_time_ms(layer(*sizes, window), board, precision, FIT.constants)

    small = ms(channels, filters, pixels)
    assert small > 0
    for larger in (
        (channels + more, filters, pixels),
        (channels, filters + more, pixels),
        (channels, filters, pixels + more),
    ):
        assert ms(*larger) >= small * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(("pointwise", "pool", "move", "unknown")),
    st.integers(1, 10**7),
    st.integers(1, 10**6),
    st.sampled_from(sorted(FACTS.boards)),
    st.sampled_from(PRECISIONS),
)
def test_more_bytes_are_never_faster(
    kind: str, elements: int, more: int, name: str, precision: str
) -> None:
    board = board_named(name)

    def ms(count: int) -> float:
        one = Kernel(kind, "k", m=count, read=count, written=count)
        return kernel_time_ms(one, board, precision, FIT.constants)

    assert 0 < ms(elements) <= ms(elements + more)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FACTS.networks)), st.sampled_from(PRECISIONS))
def test_a_board_with_more_of_everything_is_never_slower(
    network: tuple[str, int], precision: str
) -> None:
    board = FACTS.boards["orin-nano-8"]
    table = FACTS.networks[network]
    before = network_ms(workload(table, board, precision), FIT.constants)
    for change in (
        {"gpu_mhz": 2 * board.gpu_mhz},
        {"cpu_mhz": 2 * board.cpu_mhz},
        {"memory_gbs": 2 * board.memory_gbs},
        {"multiprocessors": 2 * board.multiprocessors},
        {"cache_mib": 2 * board.cache_mib},
    ):
        faster = replace(board, **change)  # type: ignore[arg-type]
        assert network_ms(workload(table, faster, precision), FIT.constants) <= before


def test_thor_runs_the_smallest_network_no_faster_in_int8() -> None:
    board, table = board_named("agx-thor"), FACTS.networks["yolo26n", 640]
    half, low = (network_ms(workload(table, board, p), FIT.constants) for p in ("fp16", "int8"))
    assert low > 0.97 * half


@pytest.fixture(scope="module")
def ours() -> Network:
    return read_network("tiny-yolo-scenes")


def test_the_interval_holds_the_likely_and_all_boards_are_there(ours: Network) -> None:
    found = estimate(ours, FACTS.boards)
    assert len(found) == 3 * len(FACTS.boards)
    for one in found:
        assert 0 < one.low_ms < one.likely_ms < one.high_ms
        assert one.bound_by in ("tensor cores", "memory", "launches")
        assert sum(one.shares.values()) == pytest.approx(1)
        assert one.like["ms"] > 0
        assert sum(layer.ms for layer in one.layers) < one.likely_ms
        assert min(one.prepare_ms, one.finish_ms) > 0


def test_a_published_network_is_most_like_itself_and_within_its_interval() -> None:
    row = next(row for row in FACTS.rows if row.model == "yolo11m-640" and row.precision == "fp16")
    table = FACTS.networks[row.network, row.size]
    kernels = tuple(
        kernel
        for kernel, times in zip(table.kernels, table.count, strict=True)
        for _ in range(int(times))
    )
    network = Network("mine", kernels, (), 3 * 640 * 640, 84 * 8400)
    (one,) = estimate(network, [row.board], EstimateOptions(precision=("fp16",)))
    assert (one.like["network"], one.like["ms"]) == (row.model, row.ms)
    assert one.low_ms < row.ms < one.high_ms
    assert one.notes == ()


def width(one: Estimate) -> float:
    return math.log(one.high_ms / one.low_ms)


def test_a_board_without_rows_and_a_network_out_of_range_have_wider_intervals(
    ours: Network,
) -> None:
    known, new = estimate(ours, ["agx-orin-64", "agx-orin-32"], EstimateOptions(("fp16",)))
    assert width(new) > width(known) > 2 * FIT.spread
    assert any("no published row" in note for note in new.notes)
    assert all(any("times outside" in note for note in one.notes) for one in (known, new))


def test_a_precision_that_nobody_published_on_the_only_blackwell_is_least_certain(
    ours: Network,
) -> None:
    single, half = estimate(ours, ["agx-thor"], EstimateOptions(("fp32", "fp16")))
    assert width(single) > 1.2 * width(half)
    assert any("no published row of this board in fp32" in note for note in single.notes)


def test_an_unknown_board_is_refused_by_name(ours: Network) -> None:
    with pytest.raises(ArtifactError, match="orin-nano-giga: no such board; known are"):
        estimate(ours, ["orin-nano-giga"])


def plugin(folder: Path, stated: dict[str, tuple[int, ...]]) -> Path:
    nodes = [
        conv("conv", "x", "a", "w"),
        helper.make_node("Magic", ["a"], ["b"], "magic", domain="other"),
        conv("last", "b", "y", "w"),
    ]
    return save(folder, nodes, {"w": (16, 16, 3, 3)}, stated=stated)


def test_an_operator_that_is_not_known_is_named_and_widens_the_interval(tmp_path: Path) -> None:
    network = read_network(plugin(tmp_path, {"b": (1, 16, 32, 32)}))
    assert network.unknown == ("Magic",)
    (one,) = estimate(network, ["orin-nx-16"], EstimateOptions(("fp16",)))
    assert "Magic" in " ".join(one.notes)
    assert one.high_ms / one.likely_ms > 1.05 * one.likely_ms / one.low_ms
    assert any(layer.kind == "unknown" and layer.ms > 0 for layer in one.layers)


def test_an_operator_whose_shape_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the shape of b, at node magic, is not known"):
        read_network(plugin(tmp_path, {}))


@pytest.mark.parametrize(
    ("model", "hw", "kernels"),
    [("squeezedet-scenes-half", None, 28), ("yolov3-tiny", (256, 320), 20)],
)
def test_a_package_and_a_name_of_the_zoo_need_no_weights(
    model: str, hw: tuple[int, int] | None, kernels: int
) -> None:
    network = read_network(model, hw)
    assert len(network.kernels) == kernels
    assert hw is None or network.input_elements == 3 * hw[0] * hw[1]


def test_an_open_size_is_refused_and_can_be_given(tmp_path: Path) -> None:
    nodes = [conv("conv", "x", "y", "w")]
    path = save(tmp_path, nodes, {"w": (8, 16, 3, 3)}, shape=("n", 16, "h", "w"))
    with pytest.raises(ArtifactError, match="leaves dimension 2 open; give --size"):
        read_network(path)
    assert read_network(path, (48, 64)).kernels[0].m == 48 * 64


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.onnx", None, "no such file"),
        ("x.onnx", b"not a graph at all", "not an ONNX graph"),
        ("x.onnx", b"", "without nodes"),
        ("x.engine", b"vtrt", "an engine shows no graph"),
    ],
)
def test_what_is_no_graph_is_refused(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=says):
        read_network(tmp_path / name)


def test_a_graph_without_any_product_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no convolution or matrix product"):
        read_network(save(tmp_path, [helper.make_node("Relu", ["x"], ["y"], "relu")], {}))


def bench_file(folder: Path, graph: Path, precision: str, ms: float, backend: str) -> Path:
    row = {
        "artifact": str(folder / f"{graph.stem}.engine"),
        "backend": backend,
        "precision": precision,
        "fps_engine": 1e3 / ms,
    }
    (folder / graph.name).write_bytes(graph.read_bytes())
    path = folder / "bench.json"
    path.write_text(json.dumps({"rows": [row]}))
    return path


ON_BOARD = "TensorRT 10.3.0 on Orin"


def test_a_measurement_of_the_same_network_decides(tmp_path: Path, ours: Network) -> None:
    options = EstimateOptions(("fp16",))
    (before,) = estimate(ours, ["orin-nx-16"], options)
    path = bench_file(tmp_path, BUILT_IN["tiny-yolo-scenes"], "fp16", 0.8, ON_BOARD)
    (after,) = estimate(ours, ["orin-nx-16"], options, measured=read_measurements(path))
    assert after.likely_ms == pytest.approx(0.8)
    assert width(after) < width(before) / 2


def test_a_measurement_of_another_network_moves_a_part_of_the_way(
    tmp_path: Path, ours: Network
) -> None:
    options = EstimateOptions(("fp16",))
    graph = BUILT_IN["squeezedet-scenes"]
    (other,) = estimate(read_network(graph), ["orin-nx-16"], options)
    path = bench_file(tmp_path, graph, "fp16", 1.2 * other.likely_ms, ON_BOARD)
    (before,) = estimate(ours, ["orin-nx-16"], options)
    (after,) = estimate(ours, ["orin-nx-16"], options, measured=read_measurements(path))
    assert 1.02 < after.likely_ms / before.likely_ms < 1.18


def test_measurements_that_do_not_fit_are_refused(tmp_path: Path, ours: Network) -> None:
    graph = BUILT_IN["tiny-yolo-scenes"]
    path = bench_file(tmp_path, graph, "fp16", 1.0, "onnxruntime 1.20 on CPU")
    with pytest.raises(DataError, match="no row of TensorRT"):
        read_measurements(path)
    path = bench_file(tmp_path, graph, "fp16", 1.0, ON_BOARD)
    with pytest.raises(DataError, match="measurements are of one board"):
        estimate(ours, FACTS.boards, measured=read_measurements(path))
    (tmp_path / graph.name).unlink()
    with pytest.raises(ArtifactError, match=r"tiny-yolo-scenes\.onnx .* is not there"):
        read_measurements(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="not what edge bench --json writes"):
        read_measurements(path)


def test_a_fleet_is_planned_by_hand(ours: Network) -> None:
    (one,) = estimate(ours, ["agx-orin-64"], EstimateOptions(("int8",)))
    slow = replace(one, high_ms=9.0, prepare_ms=0.6, finish_ms=0.4)
    plan = plan_fleet(slow, cameras=40, fps=15)
    # 10 ms of a frame, 150 ms a second of a camera, 700 ms of a second may be used.
    assert (plan.cameras_per_board, plan.boards, plan.limit, plan.watts) == (4, 10, "gpu", 600)
    assert plan.stream_mbits == pytest.approx(4 * 4.0 / 2)
    assert plan_fleet(replace(slow, high_ms=0.1), 50, 30).limit == "gpu"
    assert plan_fleet(replace(slow, high_ms=0.1, prepare_ms=0.1), 50, 30).limit == "decoder"
    assert plan_fleet(replace(slow, high_ms=2000.0), 1, 30).boards == 0


def test_the_command_writes_what_others_rely_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, plot = tmp_path / "e.json", tmp_path / "e.svg"
    words = ["estimate", "tiny-yolo-scenes", "--board", "all", "--precision", "fp16,int8"]
    more = ["--layers", "3", "--cameras", "40", "--json", str(target), "--plot", str(plot)]
    assert main([*words, *more]) == 0
    shown = capsys.readouterr()
    assert "orin-nano-super" in shown.out and "layers.0.conv" in shown.out
    assert "nothing was measured" in shown.err
    result = json.loads(target.read_text())
    assert result["model"] == "tiny-yolo-scenes"
    assert len(result["rows"]) == len(result["fleet"]) == 2 * len(FACTS.boards)
    for row in result["rows"]:
        assert {"board", "precision", "ms", "fps", "bound_by", "like"} <= set(row)
        assert row["ms"]["low"] < row["ms"]["likely"] < row["ms"]["high"]
        assert row["fps"] == pytest.approx(1e3 / row["ms"]["likely"], rel=1e-2)
    ElementTree.fromstring(plot.read_text())


def test_a_name_out_of_a_graph_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, [conv("\x1b[31mred", "x", "y", "w")], {"w": (16, 16, 3, 3)})
    assert main(["estimate", str(path), "--board", "agx-thor"]) == 0
    shown = capsys.readouterr()
    assert "red" in shown.out and "\x1b[31m" not in shown.out + shown.err


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["--board", "abacus"], "abacus: no such board"),
        (["--board", "all", "--precision", "fp8"], "fp8: no such precision"),
        (["--board", ","], "no board given"),
        (["--board", "all", "--precision", ","], "no precision given"),
    ):
        assert main(["estimate", "tiny-yolo-scenes", *words]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_the_kernels_of_a_table_count_as_often_as_they_say() -> None:
    one = layer(16, 32, 400, 9)
    board = board_named("orin-nano-8")
    three = network_ms(workload(KernelTable([one], [3]), board, "fp16"), FIT.constants)
    each = network_ms(workload(KernelTable([one, one, one]), board, "fp16"), FIT.constants)
    assert three == pytest.approx(each)
    assert "estimate" in EXAMPLES
