"""Which convolutions compute beyond FP16's range, and so are kept in FP32 instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.graph import Graph
from calibration.qdq import convolutions
from edge.measure.noise import open_network
from edge.optional import require

__all__ = ["beyond_half"]

# FP16 ends at 65504; half of that leaves room for images that were not seen.
_LIMIT = 32752.0


def beyond_half(
    onnx: Graph | str | Path, arrays: Sequence[NDArray[np.float32]], threads: int | None = None
) -> frozenset[str]:
    """Convolutions of a floating-point ONNX file whose weights, input or output are too large.

    Args:
        arrays: network inputs (1, 3, H, W).

    Raises:
        ArtifactError: not an ONNX file of edge.
    """
    to_array = require("onnx.numpy_helper").to_array
    graph = Graph.open(onnx)
    model = graph.model
    peaks = {one.name: _peak(to_array(one)) for one in model.graph.initializer}
    network = open_network(graph, threads)
    for array in arrays:
        for name, value in network.run(array).items():
            peaks[name] = max(peaks.get(name, 0.0), _peak(value))
    return frozenset(
        node.name
        for node in convolutions(model)
        if max(peaks.get(name, 0.0) for name in (*node.input, node.output[0])) > _LIMIT
    )


def _peak(value: NDArray[np.float32]) -> float:
    return float(np.abs(value).max(initial=0))
