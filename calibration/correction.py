"""Bias correction: take out of each convolution's bias what rounding adds to its mean output.

Rounding weights and activations shifts a channel's mean, and the shifts add up through the
network (Nagel et al., arXiv:1906.04721, section 4.2). Each convolution is measured by itself: the
FP32 graph runs, and beside each convolution its quantized twin reads the same tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.equalise import apply_gains
from calibration.graph import Graph
from calibration.qdq import convolutions, insert_qdq
from calibration.rounding import apply_rounding
from calibration.table import CalibrationTable
from edge.errors import CalibrationError
from edge.measure.noise import signal_to_noise_db
from edge.optional import require
from edge.runtime.session import open_session

__all__ = ["LayerNoise", "correct_bias", "measure_noise"]

Array = NDArray[np.float32]
_TWIN = ".twin"


@dataclass(frozen=True)
class LayerNoise:
    """What rounding its own operands does to a convolution's output.

    Attributes:
        shift: mean error of each output channel (O,).
        decibel: signal to noise power.
    """

    shift: NDArray[np.float64]
    decibel: float


def correct_bias(
    source: Graph | str | Path, table: CalibrationTable, arrays: Iterable[tuple[str, Array]]
) -> CalibrationTable:
    """Return `table` with bias shifts and with the noise of each convolution.

    Args:
        source: the FP32 ONNX file of the table.
        arrays: (name, network input) pairs, some of the calibration pictures.

    Raises:
        CalibrationError: `arrays` is empty.
    """
    model = Graph.open(source).model
    gains = {name: np.asarray(gain, np.float32) for name, gain in table.gains}
    noise = measure_noise(
        apply_gains(model, gains), dict(table.amax), arrays, rounding=dict(table.rounding)
    )
    return replace(
        table,
        bias=tuple((name, tuple(map(_short, n.shift.tolist()))) for name, n in noise.items()),
        noise_db=tuple((name, round(n.decibel, 2)) for name, n in noise.items()),
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def measure_noise(
    model: Any,
    amax: dict[str, float],
    arrays: Iterable[tuple[str, Array]],
    *,
    rounding: Mapping[str, str] | None = None,
) -> dict[str, LayerNoise]:
    """Return the noise of each convolution of an FP32 `ModelProto` quantized at `amax`, by name.

    Args:
        rounding: steps of the weights by convolution, see `calibration.rounding`.

    Raises:
        CalibrationError: `arrays` is empty.
    """
    names = [node.name for node in convolutions(model)]
    quantized = insert_qdq(model, amax)
    apply_rounding(quantized, rounding or {})
    session, feed = _session(model, quantized)
    outputs = [f"{name}{_TWIN}.{what}" for name in names for what in ("mean", "noise", "signal")]
    sums: list[Any] = []
    count = 0
    for _, array in arrays:
        values = session.run(outputs, {feed: array})
        values = [np.asarray(value, np.float64) for value in values]
        sums = [a + b for a, b in zip(sums, values, strict=True)] if sums else values
        count += 1
    if not count:
        raise CalibrationError("no image to correct the bias on")
    return {
        name: LayerNoise(
            sums[3 * i] / count, signal_to_noise_db(float(sums[3 * i + 2]), float(sums[3 * i + 1]))
        )
        for i, name in enumerate(names)
    }


def _session(model: Any, quantized: Any) -> tuple[Any, str]:
    """Open the FP32 graph with the quantized convolutions beside its own."""
    onnx = require("onnx")
    joined = onnx.ModelProto()
    joined.CopyFrom(model)
    graph = joined.graph
    known = {initializer.name for initializer in graph.initializer}
    graph.initializer.extend(i for i in quantized.graph.initializer if i.name not in known)
    axes = onnx.numpy_helper.from_array(np.array([0, 2, 3], np.int64), f"axes{_TWIN}")
    graph.initializer.append(axes)
    for node in quantized.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            graph.node.append(node)
        elif node.op_type == "Conv":
            _add_twin(graph, node, axes.name)
    # What the file's nodes are sorted by is lost; onnxruntime sorts them itself.
    session = open_session(joined.SerializeToString(), model.graph.name, as_written=True)
    return session, session.get_inputs()[0].name


def _add_twin(graph: Any, conv: Any, axes: str) -> None:
    helper = require("onnx.helper")
    twin = f"{conv.name}{_TWIN}"
    node = type(conv).FromString(conv.SerializeToString())
    node.name = node.output[0] = twin
    error = f"{twin}.error"
    graph.node.extend(
        [
            node,
            helper.make_node("Sub", [twin, conv.output[0]], [error], error),
            helper.make_node("ReduceMean", [error, axes], [f"{twin}.mean"], keepdims=0),
            helper.make_node("ReduceSumSquare", [error], [f"{twin}.noise"], keepdims=0),
            helper.make_node("ReduceSumSquare", [conv.output[0]], [f"{twin}.signal"], keepdims=0),
        ]
    )
    graph.output.extend(
        helper.make_empty_tensor_value_info(f"{twin}.{what}")
        for what in ("mean", "noise", "signal")
    )
