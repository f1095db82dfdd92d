"""Mixed precision within an accuracy budget: `edge search` and `export-engine --max-map-drop`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibration.table import CalibrationTable
from edge.artifact import read_manifest
from edge.measure.selection import Selection
from edge.reporting import bar, say
from edge.spec import Manifest
from export.int8.mixed import annotate
from export.search.search import (
    Found,
    Trial,
    fastest,
    fits,
    keep_order,
    pareto,
    search,
    worth_timing,
)
from export.search.sensitivity import measure_sensitivity
from export.search.trials import Array, Trials, prepare, whole_ms

__all__ = [
    "IMAGES",
    "SELECTION_SCENES",
    "Searched",
    "record",
    "search_mixed",
    "search_report",
    "tell_overlap",
]

IMAGES = 200
# Scenes of the built-in world that neither calibration nor evaluation renders.
SELECTION_SCENES = "scenes://?seed=700000&count=200"
_NOISE_IMAGES = 8
# So many are timed as a whole; each engine has to be built for it.
_MOST_GRAPHS, _MOST_ENGINES = 12, 4


@dataclass(frozen=True)
class Searched:
    """What a search chose, and all that it tried.

    Attributes:
        layers: precision of each convolution that is not INT8.
        found: the trials.
        report: JSON values: `budget`, `chosen`, `pareto`, `order`, ....
    """

    layers: dict[str, str]
    found: Found
    report: dict[str, Any]


def search_mixed(
    source: str | Path,
    table: CalibrationTable,
    selection: Selection,
    *,
    budget: float,
    keep_as: str = "fp16",
    engines: tuple[str | Path, str | Path] | None = None,
    engine: Callable[[Path], Path] | None = None,
) -> Searched:
    """The fastest mixture that was found of which mAP@.5 falls by at most `budget`.

    The budget holds where the one-sided 95 % bound of the drop, by a paired bootstrap over the
    images and slightly moved copies of them, lies within it.

    Args:
        source: FP32 ONNX file of the table.
        selection: labelled images, others than those that the result is judged on later.
        keep_as: precision of kept layers, `fp16` or `fp32`; FP32 takes those beyond FP16's range.
        engines: INT8 and FP16 engine whose layers' times order the layers; without them
            onnxruntime's.
        engine: from a graph to its engine, which is timed as a whole; without it onnxruntime runs
            the graph.

    Raises:
        CalibrationError, ArtifactError: as `write_int8`.
        DeviceError, EngineMismatch, MissingDependency: as `engine_layer_ms`.
        BuildError: as `engine` raises it.
    """
    source = Path(source)
    arrays = selection.arrays(read_manifest(source).spec.contract, _NOISE_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(source, table, selection, arrays, budget, keep_as, engines, Path(folder))
        noise = _noise(source, table, arrays, selection.threads)
        order = keep_order(noise, bench.cost_ms)
        with _counted(bench) as measure:
            found = search(order, bench.cost_ms, measure, bench.fits)
        most = _MOST_GRAPHS if engine is None else _MOST_ENGINES
        timed = worth_timing(found, bench.fits, most)
        say(f"timing {len(timed)} whole graphs in turns")
        ms, backend = whole_ms(bench, timed, Path(folder), engine)
    best = fastest(timed, ms, bench.fits)
    found = found if best is None else replace(found, chosen=best)
    layers = {name: bench.kind[name] for name in order if name in found.chosen.kept}
    report = search_report(found, bench, layers, ms, backend)
    report["data"] = selection.dataset.source
    return Searched(layers, found, report)


def _noise(
    source: Path, table: CalibrationTable, arrays: Sequence[Array], threads: int | None
) -> dict[str, float]:
    with bar("noise of each layer") as advance:
        found = measure_sensitivity(
            source, table, arrays, kept=False, threads=threads, progress=advance
        )
    return {layer.name: layer.alone_share for layer in found.layers}


@contextmanager
def _counted(bench: Trials) -> Iterator[Any]:
    """`bench.measure` with a line on a terminal for each trial."""
    with bar("mAP of mixed graphs") as advance:
        count = 0

        def measure(kept: frozenset[str]) -> Trial:
            nonlocal count
            trial = bench.measure(kept)
            count += 1
            advance(count, count + 1)
            return trial

        yield measure


def record(target: str | Path, searched: Searched) -> Manifest:
    """Write what the search found into the manifest of the graph that was made from it."""
    chosen = searched.report["chosen"]
    keys = ("budget", "holds", "data", "images", "bound", "costs")
    facts = {key: searched.report[key] for key in keys}
    picked = {key: chosen[key] for key in ("drop", "drop_upper", "head_db", "pictures")}
    return annotate(target, precision_search={**facts, **picked}, layers=searched.layers)


def tell_overlap(selection: Selection, table: CalibrationTable) -> None:
    """Say where INT8 is measured on pictures that its scales were made from."""
    seen = selection.seen_in(table.hashes, table.images)
    if seen:
        say(
            f"{selection.dataset.source}: {len(seen)} of {len(selection.frames)} labelled images "
            f"are, or look like, calibration images, such as {seen[0].image}: what is measured on "
            "them flatters INT8; calibrate on others"
        )


def search_report(
    found: Found,
    bench: Trials,
    layers: dict[str, str],
    ms: dict[frozenset[str], float],
    backend: str,
) -> dict[str, Any]:
    """JSON values of a search.

    Args:
        layers: precision of each kept layer.
        ms: of the trials that were timed, each as a whole graph.
        backend: what ran them.
    """
    images = len(bench.selection.frames)
    return {
        "budget": bench.budget,
        "holds": fits(found.chosen, bench.budget),
        "images": images,
        "costs": f"whole graphs in turns, {backend}",
        "bound": "one-sided 95 % of the drop by a paired bootstrap over the images and moved "
        "copies of them; a gain counts as none",
        "chosen": _facts(found.chosen, ms),
        "layers": layers,
        "all_layers": len(bench.cost_ms),
        "pareto": [_facts(trial, ms) for trial in pareto(found.trials, ms)],
        "tried": len(found.trials),
    }


def _facts(trial: Trial, ms: dict[frozenset[str], float]) -> dict[str, Any]:
    return {
        "kept": len(trial.kept),
        "kept_layers": sorted(trial.kept),
        "map50": round(trial.map50, 6),
        "drop": round(trial.drop, 6),
        "drop_upper": round(trial.upper, 6),
        "head_db": round(trial.head_db, 2),
        "ms": round(ms[trial.kept], 4),
        "kept_ms": round(trial.kept_ms, 4),
        "mb": round(trial.size / 1e6, 4),
        "pictures": trial.pictures,
    }
