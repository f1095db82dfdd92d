"""The FP32 graph that rounds to the INT8 graph of a table: its gains, biases and rounding inside.

What learns or is quantized by somebody else starts from here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from calibration.equalise import apply_gains
from calibration.int8_graph import subtract_shifts
from calibration.qdq import QMAX, convolutions, quantize_weight
from calibration.rounding import unpack_steps
from calibration.table import CalibrationTable
from edge.errors import CalibrationError
from edge.optional import require

__all__ = ["float_graph"]


def float_graph(model: Any, table: CalibrationTable, *, keep: Collection[str] = ()) -> Any:
    """Return a copy of an FP32 `ModelProto` with the weights and biases of the table's INT8 graph.

    Args:
        keep: convolutions that stay in floating point, which are right as they are.

    Raises:
        CalibrationError: the table's rounding does not fit the weights.
        ValueError: a gain belongs to another graph.
    """
    gains = {name: np.asarray(gain, np.float32) for name, gain in table.gains}
    changed = apply_gains(model, gains)
    _move(changed, {name: steps for name, steps in table.rounding if name not in keep})
    subtract_shifts(changed, {name: shift for name, shift in table.bias if name not in keep})
    return changed


def _move(model: Any, rounding: Mapping[str, str]) -> None:
    """Put weights that are rounded away from their nearest level onto that level, in place.

    Those at the end of the range stay: a channel's scale comes from its largest weight.
    """
    numpy_helper = require("onnx.numpy_helper")
    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in convolutions(model):
        if node.name not in rounding:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        levels, scale = quantize_weight(weight)
        try:
            steps = unpack_steps(rounding[node.name], weight.shape)
        except ValueError as error:
            raise CalibrationError(
                f"{node.name}: the rounding in the table: {error}; calibrate again"
            ) from error
        there = (levels + steps) * scale[:, None, None, None]
        moved = np.where((steps != 0) & (np.abs(levels) < QMAX), there, weight)
        constants[node.input[1]].CopyFrom(
            numpy_helper.from_array(moved.astype(np.float32), node.input[1])
        )
