"""The FP32 graph with a table inside rounds to the INT8 graph of that table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from calibration.correction import correct_bias
from calibration.int8_graph import int8_graph
from calibration.qdq import convolutions, insert_qdq, quantize_weight
from calibration.rounding import pack_steps
from calibration.scales import network_inputs
from calibration.table import CalibrationTable
from edge.errors import CalibrationError
from export.int8.float_graph import float_graph
from tests.support.small_models import write_small
from tests.support.steps import scales

DATA = "scenes://?seed=1&count=4"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, CalibrationTable]:
    path = tmp_path_factory.mktemp("float") / "a.onnx"
    write_small(path)
    table = scales(path, DATA, threads=1).table
    table = correct_bias(path, table, network_inputs(path, DATA, 4))
    proto, rng = onnx.load(str(path)), np.random.default_rng(0)
    shapes = {i.name: tuple(i.dims) for i in proto.graph.initializer}
    steps = {n.name: rng.integers(-1, 2, shapes[n.input[1]]) for n in convolutions(proto)}
    packed = tuple((name, pack_steps(step.astype(np.int8))) for name, step in steps.items())
    return proto, replace(table, rounding=packed)


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}


def test_it_rounds_to_the_int8_graph(model: tuple[onnx.ModelProto, CalibrationTable]) -> None:
    proto, table = model
    mine = constants(insert_qdq(float_graph(proto, table), dict(table.amax)))
    wanted = constants(int8_graph(proto, table))
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        if name.endswith(".weight.quantized"):
            # At the end of the range a weight holds its channel's scale and stays.
            inside = np.abs(value.astype(int)) < 126
            assert inside.mean() > 0.8
            assert np.array_equal(mine[name][inside], value[inside])
        else:
            assert np.array_equal(mine[name], value)


def test_kept_layers_are_as_they_were(model: tuple[onnx.ModelProto, CalibrationTable]) -> None:
    proto, table = model
    node = convolutions(proto)[0]
    table = replace(table, gains=())
    before, after = constants(proto), constants(float_graph(proto, table, keep=[node.name]))
    for name in node.input[1:]:
        assert np.array_equal(before[name], after[name])
    other = convolutions(proto)[1].input[1]
    assert not np.array_equal(before[other], after[other])
    assert np.array_equal(quantize_weight(before[other])[1], quantize_weight(after[other])[1])


def test_rounding_of_another_shape_names_the_layer(
    model: tuple[onnx.ModelProto, CalibrationTable],
) -> None:
    proto, table = model
    name = table.rounding[0][0]
    wrong = replace(table, rounding=((name, pack_steps(np.zeros(3, np.int8))),))
    with pytest.raises(CalibrationError, match=rf"{name}: the rounding in the table.*again"):
        float_graph(proto, wrong)
