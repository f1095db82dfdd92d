"""The lowest and the highest value of each channel of each tensor that convolutions read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.collect import activations, conv_inputs
from calibration.graph import Graph

__all__ = ["ChannelRange", "channel_ranges"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ChannelRange:
    """Lowest and highest value (C,) of a tensor's channels."""

    low: Array
    high: Array

    @property
    def peaks(self) -> Array:
        """Largest |x| of each channel, (C,)."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def channel_ranges(
    graph: Graph | str | Path, arrays: Iterable[tuple[str, Array]], *, threads: int | None = None
) -> dict[str, ChannelRange]:
    """Return the range of each tensor, by name, over (name, network input) pairs.

    Raises:
        CalibrationError: an activation is NaN or infinite (names tensor and picture).
    """
    graph = Graph.open(graph)
    found: dict[str, ChannelRange] = {}
    for _, values in activations(graph, conv_inputs(graph.model), arrays, threads):
        for tensor, value in values:
            low, high = value.min(axis=(0, 2, 3)), value.max(axis=(0, 2, 3))
            known = found.get(tensor)
            if known is not None:
                low, high = np.minimum(low, known.low), np.maximum(high, known.high)
            found[tensor] = ChannelRange(low, high)
    return found
