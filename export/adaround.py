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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.calibrate import inputs_of
from calibration.equalise import apply_gains
from calibration.table import CalibrationTable
from edge.artifact import read_manifest
from edge.data.items import Dataset, thin
from edge.errors import CalibrationError
from edge.optional import require
from export.correction import measure_noise
from export.judge import head_decibel, reference, session
from export.patches import Geometry, geometry, mean_patch, patches
from export.precision import QMAX, convolutions, quantize_weight
from export.quantize import int8_graph
from export.rounding import pack_steps

__all__ = ["descend", "round_adaptively", "round_if_better"]

Array = NDArray[np.float32]
# Rows of the fit: more than unknowns, as far as small maps have them.
_ROWS = 6000
# Keeps weights that the images say nothing of at their nearest level.
_DAMPING = 0.01
_IMAGES = 32
_PASSES = 8
_BLOCK = 64
# One image of so many judges and does not fit.
_HELD = 4


@dataclass
class _Rows:
    """What a convolution reads in the quantized graph and in the FP32 one, fit and held back."""

    fit: tuple[Array, Array]
    held: tuple[Array, Array]
    mean: tuple[NDArray[np.float64], NDArray[np.float64]]


def round_adaptively(
    source: str | Path,
    table: CalibrationTable,
    arrays: Sequence[tuple[str, Array]],
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> CalibrationTable:
    """`table` with the rounding, the bias shift and the gain of each convolution, dB.

    Args:
        source: the FP32 ONNX file of the table.
        arrays: (name, network input) pairs, some of the calibration images, four or more.
        progress: called with (done, of).

    Raises:
        CalibrationError: fewer than four images.
    """
    if len(arrays) < _HELD:
        raise CalibrationError(
            f"adaptive rounding takes {_HELD} images or more, there are {len(arrays)}"
        )
    model = require("onnx").load(str(source))
    plain = apply_gains(model, _gains(table))
    weights = _weights(plain)
    nodes = convolutions(plain)
    table = replace(table, bias=(), rounding=())
    gains: dict[str, float] = {}
    for done, node in enumerate(nodes, 1):
        weight = weights[node.input[1]]
        conv = geometry(node, weight)
        rows = _rows(plain, int8_graph(model, table), node.input[0], conv, arrays, threads)
        levels, steps, gains[node.name] = _fit(weight, conv, rows)
        shift = _shift(weight, levels, conv, rows.mean)
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


def _rows(
    plain: Any,
    quantized: Any,
    tensor: str,
    conv: Geometry,
    arrays: Sequence[tuple[str, Array]],
    threads: int | None,
) -> _Rows:
    runs = [_tap(quantized, f"{tensor}.dequantized", threads), _tap(plain, tensor, threads)]
    fit: list[list[Array]] = [[], []]
    held: list[list[Array]] = [[], []]
    means: list[list[NDArray[np.float64]]] = [[], []]
    count = -(-_ROWS // len(arrays))
    for index, (_, array) in enumerate(arrays):
        for side, run in enumerate(runs):
            value = run(array)
            # The same positions on both sides.
            rows = patches(value, conv, count, np.random.default_rng(index))
            (fit if (index + 1) % _HELD else held)[side].append(rows)
            means[side].append(mean_patch(value, conv))
    joined = [tuple(np.concatenate(side, axis=1) for side in part) for part in (fit, held)]
    mean = [np.mean(side, axis=0) for side in means]
    return _Rows(joined[0], joined[1], (mean[0], mean[1]))  # type: ignore[arg-type]


def _tap(model: Any, tensor: str, threads: int | None) -> Callable[[Array], Array]:
    """From a network input to the value of `tensor`."""
    onnx = require("onnx")
    if tensor == model.graph.input[0].name:
        return lambda array: array
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    tapped.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    runs = session(tapped, threads)
    feed = runs.get_inputs()[0].name
    return lambda array: runs.run(None, {feed: array})[0]


def _fit(
    weight: Array, conv: Geometry, rows: _Rows
) -> tuple[NDArray[np.float64], NDArray[np.int8], float]:
    """Levels of the weights (groups, K, O/g), their steps from the nearest, and the gain in dB."""
    nearest, scale = quantize_weight(weight)
    target = _columns(weight / scale[:, None, None, None], conv)
    start = _columns(nearest, conv)
    size = scale.reshape(conv.groups, 1, -1).astype(np.float64)
    found = descend(start, target, *_moments(*rows.fit))
    before, after = (_error(levels * size, target * size, *rows.held) for levels in (start, found))
    if after >= before:
        return start, np.zeros(weight.shape, np.int8), 0.0
    steps = (found - start).swapaxes(1, 2).reshape(weight.shape).astype(np.int8)
    return found, steps, float(10 * np.log10(before / max(after, 1e-30)))


def _columns(weight: NDArray[Any], conv: Geometry) -> NDArray[np.float64]:
    """(O, I, kH, kW) as (groups, I kH kW, O/groups)."""
    grouped = weight.reshape(conv.groups, len(weight) // conv.groups, -1)
    columns: NDArray[np.float64] = grouped.swapaxes(1, 2).astype(np.float64)
    return columns


def _moments(seen: Array, wanted: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Second moments (groups, K, K) of the inputs about their mean, and with the FP32 ones."""
    centred = seen - seen.mean(axis=1, keepdims=True)
    other = wanted - wanted.mean(axis=1, keepdims=True)
    own = (centred.swapaxes(1, 2) @ centred).astype(np.float64)
    cross = (centred.swapaxes(1, 2) @ other).astype(np.float64)
    size = own.shape[1]
    trace = np.trace(own, axis1=1, axis2=2)[:, None]
    diagonal = np.arange(size)
    for moment in (own, cross):
        moment[:, diagonal, diagonal] += _DAMPING * trace / size + 1e-12
    return own, cross


def descend(
    start: NDArray[np.float64],
    target: NDArray[np.float64],
    own: NDArray[np.float64],
    cross: NDArray[np.float64],
    passes: int = _PASSES,
) -> NDArray[np.float64]:
    """Levels next to `target` that bring inputs times levels near FP32 inputs times `target`.

    Args:
        start, target: (groups, K, O), in units of the weights' step.
        own, cross: (groups, K, K) second moments, see `_moments`.

    Returns:
        Levels (groups, K, O), each the floor or the ceiling of its target and within the range.
    """
    levels: NDArray[np.float64] = start.copy()
    other = start + np.where(target >= start, 1, -1)
    other = np.clip(np.where(target == start, start, other), -QMAX, QMAX)
    total = start + other
    slope = own @ start - cross @ target
    curve = np.diagonal(own, axis1=1, axis2=2)[..., None]
    for _ in range(passes):
        turned = 0
        for at in range(0, start.shape[1], _BLOCK):
            part = slice(at, at + _BLOCK)
            turned += _turn(levels, total, slope, own, curve, part)
        if not turned:
            break
    return levels


def _turn(
    levels: NDArray[np.float64],
    total: NDArray[np.float64],
    slope: NDArray[np.float64],
    own: NDArray[np.float64],
    curve: NDArray[np.float64],
    part: slice,
) -> int:
    """Turn what gains within one block of inputs; the other slopes follow in one product."""
    local, here = slope[:, part].copy(), own[:, part, part]
    moved = np.zeros_like(local)
    for index in range(local.shape[1]):
        row = part.start + index
        step = total[:, row] - 2 * levels[:, row]
        gain = 2 * step * local[:, index] + step**2 * curve[:, row]
        step = np.where(gain < 0, step, 0)
        moved[:, index] = step
        levels[:, row] += step
        local += here[:, :, index, None] * step[:, None]
    slope += own[:, :, part] @ moved
    return int(np.count_nonzero(moved))


def _error(
    levels: NDArray[np.float64], target: NDArray[np.float64], seen: Array, wanted: Array
) -> float:
    """Power of the output's error about its mean, which the bias takes."""
    error = seen @ levels.astype(np.float32) - wanted @ target.astype(np.float32)
    return float(np.sum(error.var(axis=1, dtype=np.float64)))


def _shift(
    weight: Array,
    levels: NDArray[np.float64],
    conv: Geometry,
    mean: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Mean error of each output channel (O,)."""
    scale = quantize_weight(weight)[1].reshape(conv.groups, 1, -1)
    found = mean[0][:, None] @ (levels * scale) - mean[1][:, None] @ _columns(weight, conv)
    return np.asarray(found.reshape(-1))


def round_if_better(
    source: str | Path,
    table: CalibrationTable,
    dataset: Dataset,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> CalibrationTable:
    """`table` adaptively rounded, or as it was where that leaves the heads with more noise.

    Args:
        source: the FP32 ONNX file of the table.
        dataset: the calibration images; some fit, some others judge.

    Returns:
        The table, with `head_db` of `nearest` and `adaround` rounding on the judging images.

    Raises:
        CalibrationError: too few images that can be read.
    """
    contract = read_manifest(source).spec.contract
    few = replace(dataset, items=tuple(thin(dataset.items, _IMAGES)))
    arrays = [(name, array.copy()) for name, array in inputs_of(few, contract)]
    judges = arrays[_HELD - 1 :: _HELD]
    fit = [one for index, one in enumerate(arrays) if (index + 1) % _HELD]
    rounded = round_adaptively(source, table, fit, progress=progress, threads=threads)
    model = require("onnx").load(str(source))
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
