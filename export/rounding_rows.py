"""What a convolution reads, in the FP32 graph and in the quantized one, as rows of a fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.optional import require
from export.judge import session
from export.patches import Geometry, mean_patch, patches

__all__ = ["HELD", "Array", "Rows", "rows_of"]

Array = NDArray[np.float32]
# Rows of the fit: more than unknowns, as far as small maps have them.
_ROWS = 6000
# One image of so many judges and does not fit.
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
    """Rows of what the convolution reads as `tensor`, at the same random places of both graphs.

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
