"""How much of a detector's raw outputs is quantization noise: what recipes are ranked by.

It ranks INT8 recipes as mAP does, and with a dozen images in place of hundreds: no matching, no
threshold and no label stands between the noise and the figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import CalibrationError
from edge.measure.noise import signal_to_noise_db
from edge.runtime.ort_lowering import fold_weights
from edge.runtime.session import open_session

__all__ = ["Reference", "head_decibel", "reference", "session"]

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reference:
    """Network inputs and what the FP32 graph makes of them.

    Attributes:
        inputs: (1, 3, H, W) each.
        wanted: raw outputs of each input, in the graph's order.
    """

    inputs: tuple[Array, ...]
    wanted: tuple[tuple[Array, ...], ...]


def session(model: Any, threads: int | None = None) -> Any:
    """An onnxruntime session of a `ModelProto` that runs Q/DQ pairs as they are written."""
    graph = fold_weights(model.SerializeToString())
    return open_session(graph, model.graph.name or "the graph", threads=threads, as_written=True)


def reference(
    model: Any, arrays: Iterable[tuple[str, Array]], threads: int | None = None
) -> Reference:
    """Run the FP32 `model` over (name, network input) pairs; inputs are copied.

    Raises:
        CalibrationError: `arrays` is empty.
    """
    runs = session(model, threads)
    feed = runs.get_inputs()[0].name
    inputs = tuple(array.copy() for _, array in arrays)
    if not inputs:
        raise CalibrationError("no image to measure the noise of the heads on")
    return Reference(inputs, tuple(tuple(runs.run(None, {feed: one})) for one in inputs))


def head_decibel(runs: Any, known: Reference, feeds: Mapping[str, Array] | None = None) -> float:
    """Signal to noise of the outputs of a session, dB, the mean over the heads.

    Args:
        runs: of `session`.
        known: what the outputs should be.
        feeds: further inputs of the graph, by name.
    """
    name = runs.get_inputs()[0].name
    power = np.zeros((2, len(known.wanted[0])))
    for array, wanted in zip(known.inputs, known.wanted, strict=True):
        found = runs.run(None, {name: array, **(feeds or {})})
        power += _power(wanted, found)
    return float(np.mean([signal_to_noise_db(signal, noise) for signal, noise in power.T.tolist()]))


def _power(wanted: Sequence[Array], found: Sequence[Array]) -> NDArray[np.float64]:
    """Sum of squares of each head's signal and of its error, (2, heads)."""
    pairs = zip(wanted, found, strict=True)
    sums = [(np.vdot(w, w), np.vdot(f - w, f - w)) for w, f in pairs]
    power: NDArray[np.float64] = np.asarray(sums, np.float64).T
    return power
