"""Mixed graphs of one network on trial: accuracy, noise and time of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.table import CalibrationTable
from edge.measure.noise import Heads, head_noise, heads_of
from edge.measure.selection import COPIES, Drop, Selection, paired_drop
from edge.measure.turns import quick_ms
from export.graph.half_range import beyond_half
from export.int8.mixed import layer_names, write_mixed
from export.search.layer_cost import engine_layer_ms, onnx_layer_ms
from export.search.search import FEW_PICTURES, Trial, fits, hopeless, upper_drop

__all__ = ["Array", "Trials", "judged", "prepare", "whole_ms"]

Array = NDArray[np.float32]
# Of each graph, of all together; a median of fewer rounds says little.
_SECONDS, _ROUNDS = 0.5, 9


@dataclass(eq=False)
class Trials:
    """One network under search: its files, its judges, its layers' costs."""

    source: Path
    table: CalibrationTable
    selection: Selection
    budget: float
    kind: dict[str, str]
    cost_ms: dict[str, float]
    reference: Heads
    arrays: Sequence[Array]
    candidate: Path

    def write(self, kept: frozenset[str], target: Path) -> None:
        """The graph with the convolutions `kept` out of INT8."""
        write_mixed(self.source, self.table, target, {name: self.kind[name] for name in kept})

    def fits(self, trial: Trial) -> bool:
        """Whether a trial keeps the budget."""
        return fits(trial, self.budget)

    def measure(self, kept: frozenset[str]) -> Trial:
        """Accuracy and noise of that graph on the selection pictures; its time is an estimate."""
        self.write(kept, self.candidate)
        heads = heads_of(self.candidate, self.arrays, self.selection.threads)
        drop = judged(self.selection, self.source, self.candidate, self.budget)
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


def judged(
    selection: Selection, before: Path, now: Path, budget: float, copies: int = len(COPIES)
) -> Drop:
    """mAP lost from `before` to `now`, over as many copies as it takes to hold it to `budget`.

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
    source: Path,
    table: CalibrationTable,
    selection: Selection,
    arrays: Sequence[Array],
    budget: float,
    keep_as: str,
    engines: tuple[str | Path, str | Path] | None,
    folder: Path,
) -> Trials:
    """Everything that trials of `source` (FP32) are measured with.

    Args:
        arrays: network inputs (1, 3, H, W) for the noise of the heads; the first also for times.
        budget: mAP@.5 that may be lost, 0..1.
        keep_as: `fp16` or `fp32`; what FP16 cannot hold is kept in FP32 in any case.
        engines: INT8 and FP16 engine for the layers' times; None: onnxruntime's.
        folder: takes graphs as long as the trials are in use.
    """
    names, threads = layer_names(source), selection.threads
    floating, int8 = folder / "floating.onnx", folder / "int8.onnx"
    write_mixed(source, table, floating, dict.fromkeys(names, "fp32"))
    write_mixed(source, table, int8, {})
    beyond = beyond_half(floating, arrays[:2], threads)
    if engines is not None:
        low, high = (engine_layer_ms(engine) for engine in engines)
    else:
        low, high = (onnx_layer_ms(path, arrays[0], threads=threads) for path in (int8, floating))
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


def whole_ms(
    bench: Trials,
    trials: Sequence[Trial],
    folder: Path,
    engine: Callable[[Path], Path] | None = None,
) -> tuple[dict[frozenset[str], float], str]:
    """Milliseconds of the trials' graphs, each as a whole, in turns; and what ran them.

    Args:
        folder: takes the graphs.
        engine: from a graph to the engine that is timed in its place; without it onnxruntime runs.
    """
    paths = {}
    for number, kept in enumerate(dict.fromkeys(trial.kept for trial in trials)):
        graph = folder / f"{number}.onnx"
        bench.write(kept, graph)
        paths[kept] = graph if engine is None else engine(graph)
    found = quick_ms(
        list(paths.values()),
        bench.selection.frames[:1],
        seconds=_SECONDS * len(paths),
        threads=bench.selection.threads,
        least=_ROUNDS,
    )
    times = {kept: found[path].engine_ms for kept, path in paths.items()}
    return times, found[next(iter(paths.values()))].backend
