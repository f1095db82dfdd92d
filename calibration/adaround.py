"""Adaptive rounding: each weight up or down, as the layer's output and not the weight wants it.

Rounding each weight to its nearest level is not what keeps a layer's output (Nagel et al., "Up or
down? Adaptive rounding for post-training quantization", arXiv:2004.10568). The paper states the
choice as a quadratic binary problem over the inputs' second moments, equation 13, and relaxes it
for gradient descent; here that very problem is descended one weight at a time, which needs no
step size, no random start and no torch, and ends where no single weight can be turned to gain.
As in the paper (section 3.3, asymmetric reconstruction) a layer is fitted to the FP32 output from
inputs that the quantized layers before it have already changed, so it takes back part of their
error; the mean error goes into the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.correction import measure_noise
from calibration.equalise import apply_gains
from calibration.graph import Graph
from calibration.int8_graph import int8_graph
from calibration.patches import geometry
from calibration.qdq import convolutions
from calibration.rounding import pack_steps
from calibration.rounding_fit import HELD, Array, fit_rounding, mean_error, rows_of
from calibration.scales import inputs_of
from calibration.table import CalibrationTable
from edge.data.items import Dataset, thin
from edge.errors import CalibrationError
from edge.measure.reference import head_decibel, reference, session
from edge.optional import require

__all__ = ["round_adaptively", "round_if_better"]

_IMAGES = 32


def round_adaptively(
    source: Graph | str | Path,
    table: CalibrationTable,
    arrays: Sequence[tuple[str, Array]],
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> CalibrationTable:
    """Return `table` with the rounding, the bias shift and the gain (dB) of each convolution.

    Args:
        source: the FP32 ONNX file of the table.
        arrays: (name, network input) pairs, some of the calibration pictures, four or more.
        progress: called with (done, of).

    Raises:
        CalibrationError: fewer than four pictures.
    """
    if len(arrays) < HELD:
        raise CalibrationError(
            f"adaptive rounding takes {HELD} images or more, there are {len(arrays)}"
        )
    model = Graph.open(source).model
    plain = apply_gains(model, _gains(table))
    weights = _weights(plain)
    nodes = convolutions(plain)
    table = replace(table, bias=(), rounding=())
    gains: dict[str, float] = {}
    for done, node in enumerate(nodes, 1):
        weight = weights[node.input[1]]
        conv = geometry(node, weight)
        rows = rows_of(plain, int8_graph(model, table), node.input[0], conv, arrays, threads)
        levels, steps, gains[node.name] = fit_rounding(weight, conv, rows)
        shift = mean_error(weight, levels, conv, rows.mean)
        table = replace(
            table,
            bias=(*table.bias, (node.name, tuple(float(f"{v:.6g}") for v in shift))),
            rounding=(*table.rounding, (node.name, pack_steps(steps))),
        )
        if progress:
            progress(done, len(nodes))
    return replace(table, gain_db=(*table.gain_db, *((n, round(g, 2)) for n, g in gains.items())))


def _weights(model: Any) -> dict[str, Array]:
    numpy_helper = require("onnx.numpy_helper")
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def round_if_better(
    source: Graph | str | Path,
    table: CalibrationTable,
    dataset: Dataset,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> CalibrationTable:
    """Return `table` adaptively rounded, or as it was where the heads then have more noise.

    Args:
        source: the FP32 ONNX file of the table.
        dataset: the calibration pictures; some fit, some others judge.

    Returns:
        The table, with `head_db` of `nearest` and `adaround` rounding on the judging pictures.

    Raises:
        CalibrationError: too few pictures that can be read.
    """
    source = Graph.open(source)
    few = replace(dataset, items=tuple(thin(dataset.items, _IMAGES)))
    arrays = [(name, array.copy()) for name, array in inputs_of(few, source.manifest.spec.contract)]
    judges = arrays[HELD - 1 :: HELD]
    fit = [one for index, one in enumerate(arrays) if (index + 1) % HELD]
    rounded = round_adaptively(source, table, fit, progress=progress, threads=threads)
    model = source.model
    known = reference(model, judges, threads)
    before, after = (
        head_decibel(session(int8_graph(model, one), threads), known) for one in (table, rounded)
    )
    judged = (*table.head_db, ("nearest", round(before, 3)), ("adaround", round(after, 3)))
    if after <= before:
        return replace(table, head_db=judged)
    plain = apply_gains(model, _gains(table))
    noise = measure_noise(plain, dict(table.amax), fit, rounding=dict(rounded.rounding))
    return replace(
        rounded,
        head_db=judged,
        noise_db=tuple((name, round(one.decibel, 2)) for name, one in noise.items()),
    )


def _gains(table: CalibrationTable) -> dict[str, Array]:
    return {name: np.asarray(gain, np.float32) for name, gain in table.gains}
