"""What a convolution reads, as rows of a matrix: its output is a product with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["Geometry", "geometry", "mean_patch", "patches"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """A two-dimensional ONNX convolution without its numbers.

    Attributes:
        kernel, strides, dilations: down and across.
        pads: rows above, columns left, rows below, columns right.
        groups: of channels.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1


def geometry(node: Any, weight: NDArray[Any]) -> Geometry:
    """Return the geometry of an ONNX Conv node with explicit pads and weights (O, I, kH, kW)."""
    known: dict[str, Any] = {a.name: tuple(a.ints) or a.i for a in node.attribute}
    return Geometry(
        kernel=(weight.shape[2], weight.shape[3]),
        strides=known.get("strides", (1, 1)),
        dilations=known.get("dilations", (1, 1)),
        pads=known.get("pads", (0, 0, 0, 0)),
        groups=int(known.get("group", 1)),
    )


def _windows(x: Array, conv: Geometry) -> Array:
    """Return windows (C, rows, columns, kH, kW) of x (1, C, H, W), which is padded first."""
    top, left, bottom, right = conv.pads
    padded = np.pad(x[0], ((0, 0), (top, bottom), (left, right)))
    reach = [(k - 1) * d + 1 for k, d in zip(conv.kernel, conv.dilations, strict=True)]
    views = sliding_window_view(padded, tuple(reach), axis=(1, 2))
    (down, across), (far_down, far_across) = conv.strides, conv.dilations
    picked: Array = views[:, ::down, ::across, ::far_down, ::far_across]
    return picked


def patches(x: Array, conv: Geometry, count: int, rng: np.random.Generator) -> Array:
    """Return at most `count` random patches of x (1, C, H, W): (groups, count, C/g kH kW)."""
    windows = _windows(x, conv)
    rows, columns = windows.shape[1:3]
    drawn = rng.permutation(rows * columns)[:count]
    chosen = windows[:, drawn // columns, drawn % columns]
    channels, count, *kernel = chosen.shape
    grouped = chosen.reshape(conv.groups, channels // conv.groups, count, *kernel)
    return np.asarray(grouped.swapaxes(1, 2).reshape(conv.groups, count, -1))


def mean_patch(x: Array, conv: Geometry) -> NDArray[np.float64]:
    """Return the mean patch over all positions of x (1, C, H, W): (groups, C/g kH kW)."""
    mean = _windows(x, conv).mean(axis=(1, 2), dtype=np.float64)
    return np.asarray(mean.reshape(conv.groups, -1))
