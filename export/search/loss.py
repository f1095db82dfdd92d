"""What a quantized graph loses against FP32, measured where it is made and kept in its manifest.

A verdict needs it beside the times of the target, where neither the FP32 file nor pictures are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.graph import Graph
from calibration.scales import calibration_inputs
from calibration.table import CalibrationTable
from edge.errors import DataError
from edge.measure.noise import decibel, heads_of, noise_share
from edge.measure.selection import Selection
from edge.reporting import bar
from export.int8.quantize import annotate
from export.search.search import FEW_PICTURES
from export.search.sensitivity import measure_sensitivity
from export.search.trials import measure_drop
from export.search.verdict import DROP, FLOOR_DB, off_grid

__all__ = ["Loss", "known_loss", "measure_loss", "noisiest", "note_loss"]

Array = NDArray[np.float32]
_KEY = "int8_loss"
_NOISE_IMAGES = 6
# Layers are looked at one by one where the whole is as near to the floor as this.
_MARGIN_DB = 3.0


@dataclass(frozen=True)
class Loss:
    """What INT8 loses; all but `off_grid` is None where it was not measured.

    Attributes:
        head_db: signal to noise of the heads against FP32.
        measured_on: the pictures that `head_db` is of, or why it was not measured.
        noisy: the fewest convolutions that must stay out of INT8 for sound heads, each with the
            heads' dB when it alone is quantized.
        drop: mAP lost against FP32 and the bounds of its 95 % interval.
        fp32_map50: FP32's own mAP on the same pictures.
        pictures: that `drop` was measured on, copies counted.
        budget: mAP that may be lost.
        off_grid: share of convolutions whose channels are no multiple of 32, 0..1.
    """

    head_db: float | None = None
    measured_on: str = ""
    noisy: tuple[tuple[str, float], ...] = ()
    drop: tuple[float, float, float] | None = None
    fp32_map50: float | None = None
    pictures: int = FEW_PICTURES
    budget: float | None = None
    off_grid: float | None = None


def measure_loss(
    source: Graph,
    graph: Graph,
    table: CalibrationTable,
    *,
    selection: Selection | None = None,
    budget: float | None = None,
    threads: int | None = None,
) -> Loss:
    """Measure noise at the heads, the layers behind it, and with labelled pictures mAP.

    Args:
        source: the FP32 ONNX file that `graph` was made from.
        table: of `graph`.
        selection: labelled pictures; without them noise is measured on the pictures that the
            table was made from, where they still are.
        budget: mAP that may be lost.

    Raises:
        ArtifactError: as `open_backend`.
    """
    arrays, measured_on = _arrays(source, table, selection)
    head_db: float | None = None
    noisy: tuple[tuple[str, float], ...] = ()
    if arrays:
        head_db, noisy = noisiest(source, graph, table, arrays, threads)
    facts: dict[str, Any] = {}
    if selection is not None:
        drop = measure_drop(selection, source, graph, DROP if budget is None else budget)
        facts = {
            "drop": tuple(round(value, 6) for value in drop.interval),
            "fp32_map50": round(drop.before, 6),
            "pictures": drop.pictures,
        }
    return Loss(
        head_db=None if head_db is None else round(head_db, 2),
        measured_on=measured_on,
        noisy=noisy,
        budget=budget,
        off_grid=round(off_grid(source), 4),
        **facts,
    )


def note_loss(graph: Graph, loss: Loss) -> Graph:
    """Write `loss` into the manifest of `graph`, for the machine that the graph goes to."""
    return annotate(graph, **{_KEY: asdict(loss)})


def known_loss(graph: Graph) -> Loss:
    """Return what `note_loss` wrote; nothing measured where it did not.

    Raises:
        ArtifactError: not an ONNX file of edge.
    """
    return graph.manifest.argument(_KEY, Loss) or Loss()


def _arrays(
    source: Graph, table: CalibrationTable, selection: Selection | None
) -> tuple[list[Array], str]:
    """Network inputs to measure noise on, and what they are; none with the reason."""
    if selection is not None:
        arrays = selection.arrays(source.manifest.spec.contract, _NOISE_IMAGES)
        return arrays, f"{len(arrays)} labelled pictures"
    try:
        arrays = calibration_inputs(source, table, _NOISE_IMAGES)
    except DataError as error:
        return [], str(error)
    return arrays, f"{len(arrays)} calibration pictures"


def noisiest(
    source: Graph | str | Path,
    graph: Graph | str | Path,
    table: CalibrationTable,
    arrays: Sequence[Array],
    threads: int | None = None,
) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Return the noise of a graph's heads in dB, and the layers that bring them under the floor.

    These are the fewest that must stay out of INT8 for the heads to come back to `FLOOR_DB`, each
    with the heads' dB when it alone is quantized; none where the heads are sound as they are.
    """
    source, graph = Graph.open(source), Graph.open(graph)
    share = noise_share(heads_of(source, arrays, threads), heads_of(graph, arrays, threads))
    if decibel(share) >= FLOOR_DB:
        return decibel(share), ()
    with bar("noise of each layer") as advance:
        found = measure_sensitivity(
            source, table, arrays, kept=False, threads=threads, progress=advance
        )
    ranked = sorted(found.layers, key=lambda layer: -layer.alone_share)
    left = sum(layer.alone_share for layer in ranked)
    named = []
    for layer in ranked:
        if decibel(left) >= FLOOR_DB + _MARGIN_DB:
            break
        named.append((layer.name, round(layer.alone_db, 2)))
        left -= layer.alone_share
    return decibel(share), tuple(named)
