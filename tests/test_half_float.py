"""INT8 graphs with FP16 between the quantizers: types, scales, ranges, numbers and engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.qdq import convolutions, insert_qdq
from calibration.table import CalibrationTable, write_table
from edge.artifact import read_manifest
from edge.built_in import BUILT_IN
from edge.errors import BuildError, MissingDependency
from edge.files import sha256_of
from edge.models.zoo import load_model
from edge.runtime.onnx_proto import model_class
from edge.spec import InputContract
from export.engine.build import EngineReport, build_engine
from export.engine.float_part import FloatPart, input_peak, write_float_part
from export.engine.options import BuildOptions
from export.graph.half_float import half_floats
from export.graph.precision import cast_to_half
from export.graph.value_bounds import value_bounds
from export.graph.writer import attach_manifest, write_onnx
from export.int8.kept_layers import QuantizeOptions, quantize
from export.int8.precision_map import layer_names, write_map
from tests.support.small_models import CFG, decibel, picture, run, write_small
from tests.support.steps import exported
from tests.test_precision import amax_of, constants, makers

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
MODELS = ("tiny-yolo-scenes", "squeezedet-scenes", "yolo-fastest-1.1", "yolov4-tiny-aix2023")


@lru_cache(maxsize=8)
def _float_model(name: str, path: Path, data: Path) -> onnx.ModelProto:
    if name in BUILT_IN:
        return onnx.load(str(BUILT_IN[name]))
    if name == "small":
        write_small(path)
    else:
        loaded = load_model(data / "weights" / f"{name}.cfg", hw=(128, 128))
        write_onnx(loaded.module, loaded.spec, path)
    return onnx.load(str(path))


@lru_cache(maxsize=8)
def _int8_model(name: str, path: Path, data: Path) -> onnx.ModelProto:
    model = _float_model(name, path, data)
    return insert_qdq(model, amax_of(model))


Make = Callable[[str], onnx.ModelProto]
# With given levels no rounding lies between: FP16's 66 dB, less a few for weights and scales.
FORCED_DB = 50.0
# Some levels flip for each rounding, to either side: the noise is another, not a larger one.
NO_LOSS_DB = 1.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("half")


def _copies(of: Any, folder: Path, request: pytest.FixtureRequest) -> Make:
    def make(name: str) -> onnx.ModelProto:
        zoo = name not in BUILT_IN and name != "small"
        data = request.getfixturevalue("edge_data") if zoo else folder
        copy = onnx.ModelProto()
        copy.CopyFrom(of(name, folder / f"{name}.onnx", data))
        return copy

    return make


@pytest.fixture
def int8(folder: Path, request: pytest.FixtureRequest) -> Make:
    return _copies(_int8_model, folder, request)


@pytest.fixture
def single(folder: Path, request: pytest.FixtureRequest) -> Make:
    return _copies(_float_model, folder, request)


@pytest.fixture
def small(int8: Make) -> onnx.ModelProto:
    return int8("small")


def halved(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    data, single = half_floats(model.SerializeToString(), 1.0, **options)
    found = onnx.load_from_string(data)
    onnx.checker.check_model(found, full_check=True)
    return found, single


def image_of(model: onnx.ModelProto) -> np.ndarray:
    return picture(tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:]))


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def quantizers(model: onnx.ModelProto) -> list[Any]:
    return [node for node in model.graph.node if node.op_type == "QuantizeLinear"]


def as_written(model: onnx.ModelProto, image: np.ndarray, names: list[str]) -> list[np.ndarray]:
    """Each node by itself, as the graph has it."""
    never = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return run(model, image, names, graph_optimization_level=never)


def with_tensors(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that gives these tensors besides its outputs."""
    types, probe = types_of(model), onnx.ModelProto()
    probe.CopyFrom(model)
    known = {value.name for value in [*model.graph.output, *model.graph.input]}
    values = [helper.make_tensor_value_info(n, types[n], None) for n in names if n not in known]
    probe.graph.output.extend(values)
    return probe


def measured(model: onnx.ModelProto, names: list[str]) -> dict[str, np.ndarray]:
    found = as_written(with_tensors(model, names), image_of(model), names)
    return dict(zip(names, found, strict=True))


def with_levels(model: onnx.ModelProto, levels: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A copy whose quantizers give these levels whatever they read."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for node in quantizers(fixed):
        node.op_type = "Identity"
        del node.input[:]
        node.input.append(f"{node.output[0]}.given")
        fixed.graph.initializer.append(
            numpy_helper.from_array(levels[node.output[0]], node.input[0])
        )
    return fixed


@pytest.mark.parametrize("name", MODELS)
def test_with_the_same_levels_every_tensor_is_as_near_as_half_can_be(int8: Make, name: str) -> None:
    """A level that flips changes all behind it, so that each layer is judged with given levels."""
    model = int8(name)
    half, single = halved(model)
    assert single == ()
    levels = measured(model, [node.output[0] for node in quantizers(model)])
    inputs = {value.name for value in model.graph.input}
    names = [node.input[0] for node in quantizers(model) if node.input[0] not in inputs]
    names += [value.name for value in model.graph.output]
    wanted = measured(with_levels(model, levels), names)
    found = measured(with_levels(half, levels), names)
    assert len(names) > 14
    for each in names:
        assert FORCED_DB < decibel(wanted[each], found[each].astype(np.float32)) < 120, each


@pytest.mark.parametrize("name", MODELS)
def test_the_heads_have_no_more_noise_than_int8_gives_them(
    int8: Make, single: Make, name: str
) -> None:
    model, reference = int8(name), single(name)
    heads = [value.name for value in model.graph.output]
    image = image_of(model)
    graphs = (reference, model, halved(model)[0])
    for truth, quantized, half in zip(*(as_written(m, image, heads) for m in graphs), strict=True):
        assert half.dtype == np.float32
        assert decibel(truth, half) > decibel(truth, quantized) - NO_LOSS_DB
        assert decibel(quantized, half) > decibel(truth, quantized)


@pytest.mark.parametrize("name", MODELS)
def test_all_is_half_but_inputs_outputs_and_levels(int8: Make, name: str) -> None:
    model = int8(name)
    half, _ = halved(model)
    types = types_of(half)
    borders = {value.name for value in [*half.graph.input, *half.graph.output]}
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    assert [node.output[0] for node in casts] == [value.name for value in half.graph.output]
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    # The first quantizer reads the image itself, and at the scale of its type.
    first = next(node for node in quantizers(half) if node.input[0] in borders)
    assert floats - borders <= {first.input[1]}
    assert {n.input[0] for n in quantizers(half)} == {n.input[0] for n in quantizers(model)}


def test_nothing_stands_between_a_pair_and_its_convolution(small: onnx.ModelProto) -> None:
    half, _ = halved(small)
    made = makers(half)
    for conv in convolutions(half):
        pair = [made[name] for name in conv.input[:2]]
        assert [node.op_type for node in pair] == ["DequantizeLinear"] * 2
        kinds = {types_of(half)[name] for name in (*conv.input[:2], conv.output[0])}
        assert kinds == {TensorProto.FLOAT16}


def test_scales_lose_no_more_than_half_an_ulp_and_levels_nothing(small: onnx.ModelProto) -> None:
    half, _ = halved(small)
    before, after = constants(small), constants(half)
    scales = {n.input[1] for n in half.graph.node if n.op_type == "DequantizeLinear"}
    assert len(scales) > 10
    for name in scales:
        wanted = before[name.removesuffix(".fp16")]
        np.testing.assert_allclose(after[name].astype(np.float32), wanted, rtol=2**-11)
    weights = [name for name in before if name.endswith(".quantized")]
    assert weights and all((after[name] == before[name]).all() for name in weights)


def with_constant(model: onnx.ModelProto, name: str, change: Any) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            value = np.asarray(change(numpy_helper.to_array(tensor)), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, name))
            return model
    raise AssertionError(name)


def tiny_channel(scale: np.ndarray) -> np.ndarray:
    return np.concatenate([[1e-5], scale[1:]])


def test_a_scale_below_halfs_normal_range_is_kept_as_it_is(small: onnx.ModelProto) -> None:
    conv = convolutions(small)[2]
    scale = makers(small)[conv.input[1]].input[1]
    model = with_constant(small, scale, tiny_channel)
    half, single = halved(model)
    sharing = {n.name for n in convolutions(model) if n.input[0] == conv.input[0]}
    assert set(single) == sharing and conv.name in sharing
    assert len(convolutions(half)) > len(sharing)
    kept = next(node for node in convolutions(half) if node.name == conv.name)
    pair = makers(half)
    for name in kept.input[:2]:
        assert pair[name].op_type == "DequantizeLinear"
        exact = constants(half)[pair[name].input[1]]
        assert exact.dtype == np.float32
        np.testing.assert_array_equal(exact, constants(model)[pair[name].input[1]])
    reader = next(node for node in half.graph.node if kept.output[0] in node.input)
    assert reader.op_type == "LeakyRelu" and types_of(half)[reader.output[0]] == TensorProto.FLOAT


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_range_that_half_does_not_hold_stays_in_single(
    small: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = convolutions(small)[1]
    model = with_constant(small, conv.input[2], lambda bias: bias + np.float32(1e5))
    half, single = halved(model)
    assert single == (conv.name,)
    image, heads = image_of(model), [value.name for value in model.graph.output]
    for wanted, found in zip(
        as_written(model, image, heads), as_written(half, image, heads), strict=True
    ):
        assert np.isfinite(found).all() and decibel(wanted, found) > 20
    # The check is what keeps it finite: taken at its word, FP16 overflows.
    monkeypatch.setattr("export.graph.half_float.LARGEST", float("inf"))
    naive, none = halved(model)
    assert none == ()
    assert not np.isfinite(measured(naive, [conv.output[0]])[conv.output[0]]).all()


def test_a_weight_that_half_does_not_hold_stays_in_single(single: Make) -> None:
    model = single("small")
    conv = convolutions(model)[2]
    graph = insert_qdq(model, amax_of(model), keep=[conv.name])
    spread = np.float32(1e-6)
    with_constant(graph, conv.input[1], lambda w: np.where(w == w.max(), 7e4, w * spread))
    bounds = value_bounds(model_class().FromString(graph.SerializeToString()).graph, {"images": 1})
    assert bounds[conv.input[1]] == 7e4
    assert conv.name in halved(graph)[1]


def test_a_layer_that_is_kept_stays_in_single(small: onnx.ModelProto) -> None:
    names = [node.name for node in convolutions(small)]
    _, single = halved(small, keep=[names[3]])
    assert names[3] in single and len(single) < len(names)


def test_layers_kept_out_of_int8_become_half_and_lose_their_casts(single: Make) -> None:
    model = single("small")
    names = [node.name for node in convolutions(model)]
    amax = amax_of(model)
    plain = insert_qdq(model, amax, keep=names[1:3])
    mixed = insert_qdq(model, amax, keep=names[1:3])
    cast_to_half(mixed, names[1:3])
    assert sum(node.op_type == "Cast" for node in mixed.graph.node) == 4
    outputs = len(model.graph.output)
    found = []
    for graph in (plain, mixed):
        half, none = halved(graph)
        assert none == () and sum(n.op_type == "Cast" for n in half.graph.node) == outputs
        assert [n.op_type for n in half.graph.node if n.op_type != "Cast"] == [
            n.op_type for n in graph.graph.node if n.op_type != "Cast"
        ]
        kept = next(node for node in convolutions(half) if node.name == names[1])
        weight = constants(half)[kept.input[1]]
        assert weight.dtype == np.float16
        found.append(as_written(half, image_of(model), [v.name for v in model.graph.output]))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


ACTIVATIONS = ("leaky", "mish", "swish", "relu6", "logistic")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_tensor_exceeds_its_bound(tmp_path: Path, activation: str) -> None:
    write_small(tmp_path / "m.onnx", CFG.replace("leaky", activation))
    model = onnx.load(str(tmp_path / "m.onnx"))
    for graph in (model, insert_qdq(model, amax_of(model))):
        proto = model_class().FromString(graph.SerializeToString())
        bounds = value_bounds(proto.graph, {"images": 1.0})
        types = types_of(graph)
        names = [n for node in graph.graph.node for n in node.output if types[n] in FLOATS]
        for name, value in measured(graph, names).items():
            assert 0 < np.abs(value).max() <= bounds[name] * (1 + 1e-5), name
        quantized = graph is not model
        assert all(bounds[v.name] < 32752 for v in graph.graph.output) or not quantized


def test_the_bound_of_one_convolution_is_reached() -> None:
    weight = np.array([[[[1.0]], [[-2.0]]], [[[0.5]], [[0.25]]]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], "y")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 1, 1])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.array([-0.5, 9], np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    proto = model_class().FromString(model.SerializeToString())
    assert value_bounds(proto.graph, {"x": 3.0})["y"] == 9 + 3 * 0.75
    assert value_bounds(proto.graph, {"x": 30.0})["y"] == 0.5 + 30 * 3
    found = run(model, np.array([-30, 30], np.float32).reshape(1, 2, 1, 1), ["y"])[0]
    assert np.abs(found).max() == 0.5 + 30 * 3


def test_an_unknown_operation_stays_in_single(small: onnx.ModelProto) -> None:
    next(n for n in small.graph.node if n.op_type == "LeakyRelu").op_type = "Elu"
    half, single = halved(small)
    made = next(node for node in half.graph.node if node.op_type == "Elu")
    assert types_of(half)[made.output[0]] == TensorProto.FLOAT and len(single) < 8


REFUSED = ["opset", "typed data", "same name", "scale", "cast", "truncated"]


@pytest.mark.parametrize("how", REFUSED)
def test_what_edge_does_not_write_is_refused(small: onnx.ModelProto, how: str) -> None:
    words = {
        "opset": "opset 18",
        "typed data": "not stored",
        "same name": "one name",
        "cast": "casts .* once more",
    }
    if how == "opset":
        small.opset_import[0].version = 18
    elif how == "typed data":
        tensor = small.graph.initializer[0]
        tensor.float_data.extend(numpy_helper.to_array(tensor).reshape(-1).tolist())
        tensor.ClearField("raw_data")
    elif how == "same name":
        small.graph.node[0].name = small.graph.node[1].name
    elif how == "scale":
        quantizers(small)[0].input[1] = "nobody"
    elif how == "cast":
        read = small.graph.node[3].output[0]
        twice = [helper.make_node("Cast", [read], [n], n, to=TensorProto.FLOAT) for n in "ab"]
        small.graph.node.extend(twice)
    data = small.SerializeToString()
    data = data[: len(data) // 2] if how == "truncated" else data
    with pytest.raises(ValueError, match=words.get(how, "no constant|not an ONNX file")) as caught:
        half_floats(data, 1.0)
    assert "\n" not in str(caught.value)


def test_it_needs_neither_onnx_nor_torch(small: onnx.ModelProto, tmp_path: Path) -> None:
    source, target = tmp_path / "m.onnx", tmp_path / "half.onnx"
    onnx.save(small, str(source))
    code = (
        "import sys\n"
        "for name in ('onnx', 'torch', 'onnxruntime', 'cv2'): sys.modules[name] = None\n"
        "from pathlib import Path; from export.graph.half_float import half_floats\n"
        "import export.engine.build\n"
        "Path(sys.argv[2]).write_bytes(half_floats(Path(sys.argv[1]).read_bytes(), 1.0)[0])"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    subprocess.run(
        [sys.executable, "-c", code, str(source), str(target)],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        timeout=60,
    )
    made = onnx.load(str(target)).SerializeToString(deterministic=True)
    assert made == halved(small)[0].SerializeToString(deterministic=True)


def test_the_networks_input_is_as_large_as_its_contract_lets_it() -> None:
    assert input_peak(InputContract((8, 8))) == 1.0
    assert input_peak(InputContract((8, 8), mean=(100, 200, 0), scale=(1, 0.5, 0.1))) == 155


# ---------------------------------------------------------------- the engine


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx")


def written(model: onnx.ModelProto, source: Path, target: Path, **changes: Any) -> Path:
    attach_manifest(model, replace(read_manifest(source), precision="int8", **changes))
    onnx.save(model, str(target))
    return target


@pytest.fixture
def file(int8: Make, folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, **changes: Any) -> Path:
        source = BUILT_IN.get(name, folder / f"{name}.onnx")
        return written(int8(name), source, tmp_path / f"{name}.int8.onnx", **changes)

    return make


def types_in(report: EngineReport) -> set[str]:
    return {kind for layer in report.layers for kind in (*layer.inputs, *layer.outputs)}


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("name", MODELS)
def test_an_engine_has_int8_convolutions_and_half_elsewhere(
    file: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    path = file(name)
    report = build_engine(path, tmp_path / "m.engine", BuildOptions("rtx", workspace_mib=256))
    assert {conv.dtype for conv in report.summary.convolutions} == {"int8"}
    assert report.float_part == FloatPart("fp16")
    # TensorRT-RTX alone chooses a kernel's float side; between kernels, residuals and groups show.
    assert ("half" in types_in(report)) == (name in ("yolo-fastest-1.1", "yolov4-tiny-aix2023"))
    arguments = dict(read_manifest(tmp_path / "m.engine").arguments)
    assert json.loads(arguments["int8_float"]) == "fp16"
    assert read_manifest(tmp_path / "m.engine").parent_sha256 == sha256_of(path)


@pytest.mark.usefixtures("rtx")
def test_fp32_is_had_by_asking(file: Callable[..., Path], tmp_path: Path) -> None:
    path = file("tiny-yolo-scenes")
    facts = exported(path, builder="rtx", int8_float="fp32", output=tmp_path / "out")["engine"]
    assert facts["float_part"] == {"precision": "fp32", "single": [], "reason": ""}
    assert facts["convolutions"] == {"int8": 15}
    manifest = read_manifest(facts["file"])
    assert json.loads(dict(manifest.arguments)["int8_float"]) == "fp32"
    with pytest.raises(ValueError, match="int8_float"):
        BuildOptions(int8_float="fp64")  # type: ignore[arg-type]


@pytest.mark.usefixtures("rtx")
def test_a_kept_convolution_runs_in_half_and_a_mapped_one_as_mapped(
    single: Make, folder: Path, tmp_path: Path
) -> None:
    model = single("small")
    names = [node.name for node in convolutions(model)]
    graph = insert_qdq(model, amax_of(model), keep=names[1:3])
    path = written(
        graph,
        folder / "small.onnx",
        tmp_path / "m.int8.onnx",
        arguments=(("layers", json.dumps({names[1]: "fp16", names[2]: "fp32"})),),
    )
    report = build_engine(path, tmp_path / "m.engine", BuildOptions("rtx"))
    taken = {conv.name: conv.dtype for conv in report.summary.convolutions}
    assert taken[names[1]] == "half" and taken[names[2]] == "float"
    assert set(taken.values()) == {"int8", "half", "float"}
    assert report.float_part == FloatPart("fp16", (names[2],))


def test_a_maps_single_layers_are_noted_for_the_engine_and_those_of_keep_are_not(
    single: Make, folder: Path, tmp_path: Path
) -> None:
    model, source = single("small"), folder / "small.onnx"
    names, digest = layer_names(source), read_manifest(source).spec.contract.digest
    amax = tuple(amax_of(model).items())
    table = CalibrationTable(amax, "mse", sha256_of(source), digest, ())
    write_table(table, tmp_path / "t.json")
    write_map(tmp_path / "map.json", source, {names[1]: "fp32", names[2]: "fp16"})
    options = QuantizeOptions(
        keep=(names[3],),
        precision_map=str(tmp_path / "map.json"),
        output=str(tmp_path / "m.int8.onnx"),
    )
    graph = quantize(source, tmp_path / "t.json", options)
    part = write_float_part(graph, tmp_path / "half.onnx")
    assert part == FloatPart("fp16", (names[1],))
    half = onnx.load(str(tmp_path / "half.onnx"))
    kinds = {n.name: types_of(half)[n.output[0]] for n in convolutions(half)}
    assert [kinds[name] for name in names[1:4]] == [FLOATS[0], FLOATS[1], FLOATS[1]]


@pytest.mark.usefixtures("rtx")
def test_what_cannot_be_half_is_single_and_says_why(
    file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(*arguments: Any) -> Any:
        raise MissingDependency("google.protobuf")

    path = file("tiny-yolo-scenes")
    monkeypatch.setattr("export.engine.float_part.half_floats", missing)
    facts = exported(path, builder="rtx", output=tmp_path / "out")["engine"]
    assert facts["float_part"]["precision"] == "fp32"
    arguments = dict(read_manifest(facts["file"]).arguments)
    assert "protobuf" in arguments["int8_float_reason"]
    told = " ".join(capsys.readouterr().err.split())
    assert "FP32 outside of INT8, not FP16: protobuf is not installed" in told


@pytest.mark.usefixtures("rtx")
def test_half_that_tensorrt_refuses_is_built_in_single(
    file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("tiny-yolo-scenes")
    monkeypatch.setattr(
        "export.engine.float_part.half_floats", lambda *arguments: (b"nonsense", ())
    )
    report = build_engine(path, tmp_path / "m.engine", BuildOptions("rtx"))
    assert report.float_part is not None and report.float_part.precision == "fp32"
    assert report.float_part.reason.startswith("TensorRT cannot read it")
    assert {conv.dtype for conv in report.summary.convolutions} == {"int8"}
    path.write_bytes(path.read_bytes().replace(b"LeakyRelu", b"LeakyElse"))
    with pytest.raises(BuildError, match=f"{path.name}: TensorRT cannot read it"):
        build_engine(path, tmp_path / "n.engine", BuildOptions("rtx"))
