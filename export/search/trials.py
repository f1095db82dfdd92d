"""Mixed graphs of one network on trial: accuracy, noise and time of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.graph import Graph
from calibration.table import CalibrationTable
from edge.measure.noise import Heads, head_noise, heads_of
from edge.measure.selection import COPIES, Drop, Selection, paired_drop
from edge.measure.turns import quick_ms
from export.graph.half_range import beyond_half
from export.int8.precision_map import layer_names
from export.int8.quantize import write_mixed
from export.search.layer_cost import engine_layer_ms, onnx_layer_ms
from export.search.search import FEW_PICTURES, Trial, fits, hopeless, upper_drop

__all__ = ["Array", "Trials", "WholeTimes", "measure_drop", "prepare", "whole_ms"]

Array = NDArray[np.float32]
# Of each graph, of all together; a median of fewer rounds says little.
_SECONDS, _ROUNDS = 0.5, 9


@dataclass(eq=False)
class Trials:
    """One network under search: its graph, the pictures that judge it, the costs of its layers.

    Attributes:
        source, table: the FP32 graph and its scales.
        selection: labelled pictures.
        budget: mAP@.5 that may be lost, 0..1.
        kind: precision of each convolution where it is kept out of INT8.
        cost_ms: milliseconds that keeping each convolution costs, an estimate.
        reference: heads of the FP32 graph for `arrays`.
        arrays: network inputs (1, 3, H, W).
        candidate: file that takes one graph after the other.
    """

    source: Graph
    table: CalibrationTable
    selection: Selection
    budget: float
    kind: dict[str, str]
    cost_ms: dict[str, float]
    reference: Heads
    arrays: Sequence[Array]
    candidate: Path

    def write(self, kept: frozenset[str], target: Path) -> Graph:
        """Write the graph with the convolutions `kept` out of INT8."""
        return write_mixed(
            self.source, self.table, target, {name: self.kind[name] for name in kept}
        )

    def fits(self, trial: Trial) -> bool:
        """Whether a trial keeps the budget."""
        return fits(trial, self.budget)

    def measure(self, kept: frozenset[str]) -> Trial:
        """Measure accuracy and noise of that graph on the pictures; its time is an estimate."""
        graph = self.write(kept, self.candidate)
        heads = heads_of(graph, self.arrays, self.selection.threads)
        drop = measure_drop(self.selection, self.source, graph, self.budget)
        return Trial(
            kept=kept,
            map50=drop.now,
            drop=drop.loss,
            spread=drop.spread,
            head_db=head_noise(self.reference, heads),
            kept_ms=sum(self.cost_ms[name] for name in kept),
            pictures=drop.pictures,
            size=self.candidate.stat().st_size,
        )


def measure_drop(
    selection: Selection,
    before: Graph,
    now: Graph,
    budget: float,
    copies: int = len(COPIES),
) -> Drop:
    """Measure the mAP lost from `before` to `now`, on copies until it is clear against `budget`.

    Two copies at least are needed to say that it holds: one may agree by chance.
    """
    sides: tuple[list[Any], list[Any]] = ([], [])
    for copy in range(copies):
        sides[0].append(selection.reference(before, copy))
        sides[1].append(selection.matches(now, copy))
        drop = paired_drop(*sides, len(selection.frames))
        sure = drop.pictures >= FEW_PICTURES and upper_drop(drop.loss, drop.spread) <= budget
        if (sure and copy) or hopeless(drop.loss, drop.spread, budget):
            break
    return drop


def prepare(
    source: Graph,
    table: CalibrationTable,
    selection: Selection,
    arrays: Sequence[Array],
    budget: float,
    keep_as: str,
    engines: tuple[str | Path, str | Path] | None,
    folder: Path,
) -> Trials:
    """Prepare what trials of the FP32 graph `source` are measured with.

    Args:
        arrays: network inputs (1, 3, H, W) for the noise of the heads; the first also for times.
        budget: mAP@.5 that may be lost, 0..1.
        keep_as: `fp16` or `fp32`; what FP16 cannot hold is kept in FP32 in any case.
        engines: INT8 and FP16 engine for the layers' times; None: onnxruntime's.
        folder: takes graphs as long as the trials are in use.
    """
    names, threads = layer_names(source), selection.threads
    floating = write_mixed(source, table, folder / "floating.onnx", dict.fromkeys(names, "fp32"))
    int8 = write_mixed(source, table, folder / "int8.onnx", {})
    beyond = beyond_half(floating, arrays[:2], threads)
    if engines is not None:
        low, high = (engine_layer_ms(engine) for engine in engines)
    else:
        low, high = (onnx_layer_ms(one, arrays[0], threads=threads) for one in (int8, floating))
    return Trials(
        source=source,
        table=table,
        selection=selection,
        budget=budget,
        kind={name: "fp32" if name in beyond else keep_as for name in names},
        cost_ms={name: max(0.0, high.get(name, 0.0) - low.get(name, 0.0)) for name in names},
        reference=heads_of(source, arrays, threads),
        arrays=arrays,
        candidate=folder / "candidate.onnx",
    )


@dataclass(frozen=True)
class WholeTimes:
    """Times of whole graphs.

    Attributes:
        ms: milliseconds by kept layers.
        backend: what ran the graphs.
        unsure: how far the ratio of two of them may be off, as `Quick.unsure`.
        disturbed: what else the machine did meanwhile.
    """

    ms: dict[frozenset[str], float]
    backend: str
    unsure: float
    disturbed: tuple[str, ...]


def whole_ms(
    bench: Trials,
    trials: Sequence[Trial],
    folder: Path,
    engine: Callable[[Graph], Path] | None = None,
    *,
    settle: bool = False,
) -> WholeTimes:
    """Time the graphs of the trials, each as a whole, in turns.

    Args:
        folder: takes the graphs.
        engine: from a graph to the engine that is timed in its place; without it onnxruntime runs.
        settle: measure until the times are sure, as `quick_ms`.
    """
    timed: dict[frozenset[str], Graph | Path] = {}
    for number, kept in enumerate(dict.fromkeys(trial.kept for trial in trials)):
        graph = bench.write(kept, folder / f"{number}.onnx")
        timed[kept] = graph if engine is None else engine(graph)
    found = quick_ms(
        list(timed.values()),
        bench.selection.frames[:1],
        seconds=_SECONDS * len(timed),
        threads=bench.selection.threads,
        least=_ROUNDS,
        settle=settle,
    )
    times = {kept: found[Path(one)].engine_ms for kept, one in timed.items()}
    first = next(iter(found.values()))
    unsure = max(one.unsure for one in found.values())
    return WholeTimes(times, first.backend, unsure, first.disturbed)
