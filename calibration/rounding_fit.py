"""Rounding of one layer's weights, descended one weight at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.patches import Geometry, mean_patch, patches
from calibration.qdq import QMAX, quantize_weight
from edge.measure.reference import session
from edge.optional import require

__all__ = ["HELD", "Array", "Rows", "descend", "fit_rounding", "mean_error", "rows_of"]

# Keeps weights that the images say nothing of at their nearest level.
_DAMPING = 0.01
_PASSES = 8
_BLOCK = 64


def fit_rounding(
    weight: Array, conv: Geometry, rows: Rows
) -> tuple[NDArray[np.float64], NDArray[np.int8], float]:
    """Return levels of the weights (groups, K, O/g), steps from the nearest, and the gain in dB."""
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
    """Return weights (O, I, kH, kW) as (groups, I kH kW, O/groups)."""
    grouped = weight.reshape(conv.groups, len(weight) // conv.groups, -1)
    columns: NDArray[np.float64] = grouped.swapaxes(1, 2).astype(np.float64)
    return columns


def _moments(seen: Array, wanted: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return second moments (groups, K, K) of the inputs, and of them with the FP32 inputs."""
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
    """Return levels next to `target` that bring inputs times levels near the FP32 output.

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
    """Return the power of the output's error about its mean, which the bias takes."""
    error = seen @ levels.astype(np.float32) - wanted @ target.astype(np.float32)
    return float(np.sum(error.var(axis=1, dtype=np.float64)))


def mean_error(
    weight: Array,
    levels: NDArray[np.float64],
    conv: Geometry,
    mean: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return the mean error of each output channel (O,)."""
    scale = quantize_weight(weight)[1].reshape(conv.groups, 1, -1)
    found = mean[0][:, None] @ (levels * scale) - mean[1][:, None] @ _columns(weight, conv)
    return np.asarray(found.reshape(-1))


Array = NDArray[np.float32]
# Rows of the fit: more than unknowns, as far as small maps have them.
_ROWS = 6000
# One picture in four judges and does not fit.
HELD = 4


@dataclass
class Rows:
    """What a convolution reads in the quantized graph and in the FP32 one, fit and held back."""

    fit: tuple[Array, Array]
    held: tuple[Array, Array]
    mean: tuple[NDArray[np.float64], NDArray[np.float64]]


def rows_of(
    plain: Any,
    quantized: Any,
    tensor: str,
    conv: Geometry,
    arrays: Sequence[tuple[str, Array]],
    threads: int | None,
) -> Rows:
    """Return what the convolution reads as `tensor`, at the same random places of both graphs.

    Args:
        plain, quantized: the FP32 graph, and the one whose earlier layers are in INT8.
        arrays: name and network input (1, 3, H, W) of each image; one in `HELD` is held back.
    """
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
            (fit if (index + 1) % HELD else held)[side].append(rows)
            means[side].append(mean_patch(value, conv))
    joined = [tuple(np.concatenate(side, axis=1) for side in part) for part in (fit, held)]
    mean = [np.mean(side, axis=0) for side in means]
    return Rows(joined[0], joined[1], (mean[0], mean[1]))  # type: ignore[arg-type]


def _tap(model: Any, tensor: str, threads: int | None) -> Callable[[Array], Array]:
    """Return a function from a network input to the value of `tensor`."""
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
