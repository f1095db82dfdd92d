"""Q/DQ graphs and half graphs: where the nodes stand, and what they compute."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from calibration.qdq import QMAX, convolutions, insert_qdq, quantize_weight, shared_scales
from edge.errors import CalibrationError
from edge.models.zoo import load_model
from export.graph.precision import to_half
from export.graph.writer import write_onnx
from tests.support.small_models import decibel, picture, run, write_small
from tests.support.tolerances import HALF_DB, ORT_ATOL


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("precision") / "small.onnx"
    write_small(path)
    return onnx.load(str(path))


def amax_of(model: onnx.ModelProto) -> dict[str, float]:
    """The largest magnitude of each convolution's input over one picture."""
    names = list(dict.fromkeys(node.input[0] for node in convolutions(model)))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inner = [name for name in names if name != model.graph.input[0].name]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    image = picture(tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:]))
    values = dict(zip(inner, run(probe, image, inner), strict=True))
    values[model.graph.input[0].name] = image
    return {name: float(np.abs(values[name]).max()) for name in names}


def makers(model: onnx.ModelProto) -> dict[str, Any]:
    return {output: node for node in model.graph.node for output in node.output}


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def test_every_convolution_reads_a_quantizer_of_its_own_input(model: onnx.ModelProto) -> None:
    found = insert_qdq(model, amax_of(model))
    made, values = makers(found), constants(found)
    assert len(convolutions(found)) == len(convolutions(model)) == 8
    for before, after in zip(convolutions(model), convolutions(found), strict=True):
        dequantize = made[after.input[0]]
        quantize = made[dequantize.input[0]]
        assert (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
        assert quantize.input[0] == before.input[0]
        assert list(quantize.input[1:]) == list(dequantize.input[1:])
        scale, zero = (values[name] for name in quantize.input[1:])
        assert scale.dtype == np.float32 and scale.shape == () and scale > 0
        assert zero.dtype == np.int8 and zero == 0
    onnx.checker.check_model(found, full_check=True)


def test_a_tensor_is_quantized_once_however_many_read_it(model: onnx.ModelProto) -> None:
    found = insert_qdq(model, amax_of(model))
    sources = [n.input[0] for n in found.graph.node if n.op_type == "QuantizeLinear"]
    read = [node.input[0] for node in convolutions(model)]
    assert max(Counter(read).values()) > 1
    assert sorted(sources) == sorted(set(read))


def test_weights_are_int8_by_output_channel_and_biases_float(model: onnx.ModelProto) -> None:
    found = insert_qdq(model, amax_of(model))
    made, values, before = makers(found), constants(found), constants(model)
    for old, new in zip(convolutions(model), convolutions(found), strict=True):
        node = made[new.input[1]]
        levels, scale, zero = (values[name] for name in node.input)
        weight = before[old.input[1]]
        assert node.op_type == "DequantizeLinear"
        assert [(a.name, a.i) for a in node.attribute] == [("axis", 0)]
        assert levels.dtype == np.int8 and levels.shape == weight.shape
        assert scale.dtype == np.float32 and scale.shape == (len(weight),)
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape
        assert np.abs(levels.reshape(len(levels), -1)).max(axis=1).tolist() == [QMAX] * len(levels)
        error = np.abs(levels * scale[:, None, None, None] - weight)
        assert (error <= scale[:, None, None, None] * 0.5001).all()
        assert new.input[2] == old.input[2] and values[new.input[2]].dtype == np.float32
        assert new.input[2] not in made
        assert old.input[1] not in values


def test_the_model_given_stays_and_bindings_keep_their_names(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    for found in (insert_qdq(model, amax_of(model)), to_half(model)):
        assert model.SerializeToString() == before
        assert [str(v) for v in found.graph.input] == [str(v) for v in model.graph.input]
        assert [str(v) for v in found.graph.output] == [str(v) for v in model.graph.output]


def test_kept_convolutions_stay_in_float(model: onnx.ModelProto) -> None:
    names = [node.name for node in convolutions(model)]
    keep = {names[0], names[-1]}
    found = insert_qdq(model, {k: v for k, v in amax_of(model).items() if k != "images"}, keep=keep)
    values, before = constants(found), constants(model)
    for old, new in zip(convolutions(model), convolutions(found), strict=True):
        if new.name in keep:
            assert list(new.input) == list(old.input)
            assert np.array_equal(values[new.input[1]], before[old.input[1]])
        else:
            assert makers(found)[new.input[0]].op_type == "DequantizeLinear"
    onnx.checker.check_model(found, full_check=True)


def test_what_cannot_be_kept_or_has_no_threshold_is_refused(model: onnx.ModelProto) -> None:
    amax = amax_of(model)
    with pytest.raises(ValueError, match=r"no such convolution: a, b$"):
        insert_qdq(model, amax, keep=["b", "a", convolutions(model)[0].name])
    name = convolutions(model)[3].input[0]
    del amax[name]
    with pytest.raises(CalibrationError, match=f"no threshold for its input {name}"):
        insert_qdq(model, amax)


def test_all_kept_is_the_same_network(model: onnx.ModelProto) -> None:
    found = insert_qdq(model, {}, keep=[node.name for node in convolutions(model)])
    image = picture((48, 64), seed=3)
    for mine, wanted in zip(run(found, image), run(model, image), strict=True):
        assert np.array_equal(mine, wanted)


@pytest.mark.parametrize("groups", [1, 2])
def test_equals_a_fake_quantized_convolution(groups: int) -> None:
    rng = np.random.default_rng(groups)
    image = rng.normal(0, 1, (1, 4, 6, 7)).astype(np.float32)
    weight = rng.normal(0, 1, (6, 4 // groups, 3, 3)).astype(np.float32)
    bias = rng.normal(0, 1, 6).astype(np.float32)
    shape = [1, 6, 4, 5]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="y", group=groups)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    amax = 1.7  # clips what lies above
    off = "ORT_DISABLE_ALL"
    import onnxruntime as ort

    (found,) = run(
        insert_qdq(model, {"x": amax}),
        image,
        graph_optimization_level=getattr(ort.GraphOptimizationLevel, off),
    )
    np.testing.assert_allclose(
        found, by_definition(image, weight, bias, amax, groups), atol=ORT_ATOL * 10
    )


def by_definition(
    image: np.ndarray, weight: np.ndarray, bias: np.ndarray, amax: float, groups: int
) -> np.ndarray:
    """round(x / s) * s of input and weights, multiplied and summed in float64, cell by cell."""
    step = np.float32(amax / 127)
    x = np.clip(np.rint(image / step), -128, 127)[0] * np.float64(step)
    found = np.zeros((len(weight), image.shape[2] - 2, image.shape[3] - 2))
    into = x.shape[0] // groups
    for o, kernel in enumerate(weight):
        scale = np.float32(np.abs(kernel).max() / 127)
        w = np.rint(kernel / scale) * np.float64(scale)
        first = o // (len(weight) // groups) * into
        for y in range(found.shape[1]):
            for c in range(found.shape[2]):
                window = x[first : first + into, y : y + 3, c : c + 3]
                found[o, y, c] = (window * w).sum() + bias[o]
    return found[None]


weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(1), st.just(2)),
    elements=st.floats(-(2.0**99), 2.0**99, width=32),
)


@given(weights)
def test_quantized_weights_are_within_half_a_step(weight: np.ndarray) -> None:
    with np.errstate(all="raise", under="ignore"):
        levels, scale = quantize_weight(weight)
    assert (scale > 0).all() and np.isfinite(scale).all()
    assert np.abs(levels.astype(int)).max(initial=0) <= QMAX
    error = np.abs(levels.astype(np.float64) * scale[:, None, None, None] - weight)
    assert (error <= 0.5001 * scale[:, None, None, None].astype(np.float64)).all()


def test_channels_of_zeros_and_of_hardly_anything_are_quantized() -> None:
    weight = np.zeros((4, 2, 1, 1), np.float32)
    weight[1:3, 0] = [[[1e-44]], [[3e-39]]]
    weight[3] = 1
    with np.errstate(all="raise", under="ignore"):
        levels, scale = quantize_weight(weight)
    assert levels[0].tolist() == [[[0]], [[0]]]
    assert (scale >= np.finfo(np.float32).tiny).all()


def test_a_threshold_of_hardly_anything_gives_no_scale_of_zero(model: onnx.ModelProto) -> None:
    amax = dict.fromkeys(amax_of(model), 1e-44)
    found = insert_qdq(model, amax)
    scales = [v for n, v in constants(found).items() if n.endswith(".scale") and v.ndim == 0]
    assert len(scales) == len(amax)
    assert min(scales) > 0
    assert all(np.isfinite(out).all() for out in run(found, picture((48, 64))))


def joined(*nodes: tuple[str, list[str], str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output], name=output) for op, inputs, output in nodes],
        "graph",
        [],
        [],
    )
    return helper.make_model(graph)


@pytest.mark.parametrize(
    ("nodes", "amax", "wanted"),
    [
        (
            [("Add", ["a", "b"], "c")],
            {"a": 1.0, "b": 1.4, "c": 1.2},
            {"a": 1.4, "b": 1.4, "c": 1.4},
        ),
        ([("Concat", ["a", "b"], "c")], {"a": 1.0, "c": 1.4}, {"a": 1.4, "c": 1.4}),
        ([("MaxPool", ["a"], "c")], {"a": 1.4, "c": 1.0}, {"a": 1.4, "c": 1.4}),
        # Too far apart: one scale would cost a bit.
        ([("Add", ["a", "b"], "c")], {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}),
        # Nothing to share.
        ([("Relu", ["a"], "c")], {"a": 1.0, "c": 1.1}, {"a": 1.0, "c": 1.1}),
        ([("Add", ["a", "b"], "c")], {"c": 1.1}, {"c": 1.1}),
    ],
)
def test_near_ranges_share_a_scale(nodes: Any, amax: Any, wanted: Any) -> None:
    assert shared_scales(joined(*nodes), amax) == wanted


def test_sharing_never_narrows_a_range_nor_widens_it_link_by_link() -> None:
    # One tensor in several groups, as the residual stream is: a, then b, then c pull it up.
    adds = [("Add", ["a", "b"], "s0"), ("Add", ["a", "c"], "s1"), ("Concat", ["a", "d"], "s2")]
    amax = {"a": 1.0, "b": 1.4, "c": 1.9, "d": 2.6}
    found = shared_scales(joined(*adds), amax)
    assert all(found[name] >= value for name, value in amax.items())
    assert found["a"] == found["b"] == 1.4
    assert (found["c"], found["d"]) == (1.9, 2.6)


def test_tensors_that_share_once_share_to_the_end() -> None:
    adds = [("Add", ["a", "b"], "s0"), ("Add", ["b", "c"], "s1")]
    found = shared_scales(joined(*adds), {"a": 1.0, "b": 1.1, "c": 1.3})
    assert set(found.values()) == {1.3}


# Half precision.


MODELS = ["small", "yolov4-tiny", "squeezedet-kitti", "yolov2-voc"]


@pytest.fixture(scope="module", params=MODELS)
def any_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("half") / "a.onnx"
    if request.param == "small":
        write_small(path)
    elif request.param == "yolov2-voc":
        # Its reorg, on a network of the size of the tests.
        from tests.support.small_models import CFG

        reorg = "[reorg]\nstride=2\n"
        write_small(path, CFG.replace("[maxpool]\nsize=2\nstride=2\n", reorg, 1))
    else:
        loaded = load_model(request.param, random_weights=True, hw=(64, 96))
        write_onnx(loaded.module, loaded.spec, path)
    return onnx.load(str(path))


def test_half_runs_from_float_to_float_close_to_it(any_model: onnx.ModelProto) -> None:
    half = to_half(any_model)
    onnx.checker.check_model(half, full_check=True)
    kinds = {v.type.tensor_type.elem_type for v in [*half.graph.input, *half.graph.output]}
    assert kinds == {TensorProto.FLOAT}
    image = picture(tuple(d.dim_value for d in half.graph.input[0].type.tensor_type.shape.dim[2:]))
    outputs = [value.name for value in any_model.graph.output]
    found, wanted = run(half, image, outputs), run(any_model, image, outputs)
    for mine, reference in zip(found, wanted, strict=True):
        assert mine.dtype == np.float32
        assert HALF_DB < decibel(reference, mine) < 120


def test_half_has_no_float_constant_but_those_of_resize(any_model: onnx.ModelProto) -> None:
    half = to_half(any_model)
    scales = {n.input[2] for n in half.graph.node if n.op_type == "Resize"}
    floats = {i.name for i in half.graph.initializer if i.data_type == TensorProto.FLOAT}
    halves = {i.name for i in half.graph.initializer if i.data_type == TensorProto.FLOAT16}
    assert floats == scales
    assert len(halves) >= 2 * len(convolutions(half)) > 0
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True, data_prop=True)
    tensors = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    computed = {tensors[n.output[0]] for n in half.graph.node if n.op_type == "LeakyRelu"}
    assert computed <= {TensorProto.FLOAT16}


def test_half_is_half_the_size(any_model: onnx.ModelProto) -> None:
    assert to_half(any_model).ByteSize() < 0.56 * any_model.ByteSize() + 8000


@pytest.mark.parametrize("value", [65505.0, 7e4, -1e30])
def test_a_weight_beyond_half_is_refused_by_name(model: onnx.ModelProto, value: float) -> None:
    name = convolutions(model)[1].input[1]
    if value == 65505.0:
        value = 65520.0  # the first that rounds to infinity
    with pytest.raises(ValueError, match=rf"^{name} reaches .* 65504"):
        to_half(with_weight(model, name, value))


def test_the_largest_half_is_accepted(model: onnx.ModelProto) -> None:
    name = convolutions(model)[1].input[1]
    half = to_half(with_weight(model, name, 65504.0))
    assert constants(half)[name].reshape(-1)[0] == 65504


def with_weight(model: onnx.ModelProto, name: str, value: float) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weight = next(i for i in changed.graph.initializer if i.name == name)
    array = numpy_helper.to_array(weight).copy()
    array.reshape(-1)[0] = value
    weight.CopyFrom(numpy_helper.from_array(array, name))
    return changed


def test_qdq_survives_its_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    found = insert_qdq(model, amax_of(model))
    onnx.save(found, str(tmp_path / "a.onnx"))
    image = picture((48, 64), seed=5)
    for mine, wanted in zip(run(tmp_path / "a.onnx", image), run(model, image), strict=True):
        assert decibel(wanted, mine) > 15
