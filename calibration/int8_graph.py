"""The INT8 graph of an FP32 graph and its table: gains, Q/DQ pairs, rounding and biases."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from calibration.equalise import apply_gains
from calibration.qdq import convolutions, insert_qdq
from calibration.rounding import apply_rounding
from calibration.table import CalibrationTable
from edge.errors import CalibrationError
from edge.optional import require

__all__ = ["int8_graph", "subtract_shifts"]


def int8_graph(model: Any, table: CalibrationTable, *, keep: Collection[str] = ()) -> Any:
    """Return a copy of an FP32 `ModelProto` with all that `table` says.

    Raises:
        CalibrationError: the table misses a tensor, or its gains, rounding or biases do not fit.
        ValueError: `keep` names no convolution.
    """
    gains = {name: np.asarray(gain, np.float32) for name, gain in table.gains}
    with _fitting("gains"):
        equal = apply_gains(model, gains)
    quantized = insert_qdq(equal, dict(table.amax), keep=keep)
    apply_rounding(quantized, dict(table.rounding))
    with _fitting("biases"):
        subtract_shifts(quantized, {name: shift for name, shift in table.bias if name not in keep})
    return quantized


@contextmanager
def _fitting(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise CalibrationError(
            f"the table's {what} do not fit the graph ({error}); calibrate again: edge calibrate"
        ) from error


def subtract_shifts(model: Any, shifts: dict[str, tuple[float, ...]]) -> None:
    """Subtract the mean error that rounding adds from each convolution's bias, in place."""
    numpy_helper = require("onnx.numpy_helper")
    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in convolutions(model):
        if node.name in shifts:
            bias = constants[node.input[2]]
            value = numpy_helper.to_array(bias) - np.asarray(shifts[node.name], np.float32)
            bias.CopyFrom(numpy_helper.from_array(value, bias.name))
