"""Thresholds turned one by one, as long as the heads' noise falls.

A tensor's own error is not what it costs: some of it the next layers forget, some they enlarge.
Here all scales are inputs of one graph, so that a trial is a run and not a new session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.table import CalibrationTable
from edge.optional import require
from export.judge import Reference, head_decibel, session
from export.precision import QMAX, shared_scales
from export.quantize import int8_graph

__all__ = ["refine"]

_FACTORS = (0.8, 0.9, 1.1, 1.25)
# What a dozen images cannot tell from chance.
_LEAST_DB = 0.01


@dataclass(frozen=True)
class _Trial:
    """The heads' noise at given thresholds."""

    model: Any
    runs: Any
    known: Reference

    def __call__(self, amax: Mapping[str, float]) -> float:
        shared = shared_scales(self.model, amax)
        feeds = {
            f"{name}.scale": np.asarray(value / QMAX, np.float32) for name, value in shared.items()
        }
        wanted = {value.name for value in self.runs.get_overridable_initializers()}
        return head_decibel(
            self.runs, self.known, {name: v for name, v in feeds.items() if name in wanted}
        )


def refine(
    model: Any,
    table: CalibrationTable,
    known: Reference,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> dict[str, float]:
    """Factors of the thresholds of `table`, by tensor, that raise the heads' signal to noise.

    Args:
        model: the FP32 `ModelProto` of the table.
        known: images to judge on, some that nothing else will be judged on.
        progress: called with (done, of).
    """
    trial = _Trial(model, session(_open(int8_graph(model, table), table), threads), known)
    amax = dict(table.amax)
    factors = dict.fromkeys(amax, 1.0)
    best = trial(amax)
    for done, name in enumerate(amax, 1):
        start = amax[name]
        for factor in _FACTORS:
            found = trial({**amax, name: start * factor})
            if found > best + _LEAST_DB:
                best, amax[name], factors[name] = found, start * factor, factor
        if progress:
            progress(done, len(factors))
    return factors


def _open(quantized: Any, table: CalibrationTable) -> Any:
    """The graph with its activations' scales as inputs that a run may give."""
    helper, kinds = require("onnx.helper"), require("onnx").TensorProto
    constants = {initializer.name for initializer in quantized.graph.initializer}
    names = [f"{name}.scale" for name, _ in table.amax]
    quantized.graph.input.extend(
        helper.make_tensor_value_info(name, kinds.FLOAT, []) for name in names if name in constants
    )
    return quantized
