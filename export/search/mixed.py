"""Search the layers to keep out of INT8 for an accuracy budget."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from calibration.graph import Graph
from calibration.table import CalibrationTable, read_table
from edge.errors import ArtifactError
from edge.measure.selection import Selection
from edge.options import count, option, share
from edge.reporting import bar, say
from export.engine.build import Build, needed_engine
from export.engine.options import BuildOptions
from export.int8.precision_map import write_map
from export.int8.quantize import annotate, write_mixed
from export.search.search import (
    Trial,
    fastest,
    fits,
    keep_order,
    most_int8,
    pareto,
    search,
    worth_timing,
)
from export.search.sensitivity import measure_sensitivity
from export.search.trials import Array, Trials, prepare, whole_ms

__all__ = [
    "IMAGES",
    "SELECTION_SCENES",
    "SearchOptions",
    "SearchResult",
    "TrialFigures",
    "record",
    "search_layers",
    "search_mixed",
    "tell_overlap",
]

IMAGES = 200
# Scenes of the built-in world that neither calibration nor evaluation renders.
SELECTION_SCENES = "scenes://?seed=700000&count=200"
_NOISE_IMAGES = 8
# At most this many graphs, or engines, which have to be built for it, are timed as a whole.
_MOST_GRAPHS, _MOST_ENGINES = 12, 4
# Times that are off by more choose nothing.
_UNSURE = 0.1


@dataclass(frozen=True)
class SearchOptions:
    """What `edge search` takes besides the graph, its table and labelled pictures.

    Attributes:
        max_map_drop: mAP@.5 that may be lost against FP32, 0..1; more lets more layers be INT8
        images: judge on at most this many pictures, spread evenly
        keep_as: precision of the layers that stay out of INT8; those beyond FP16's range take fp32
        engines: INT8 and FP16 engine of this GPU, whose layer times order the layers; candidates
            are then timed as engines, else on onnxruntime
        fastest_on_cpu: choose the mixture that is fastest on this CPU, for a network that will run
            on it; without it, and without engines of a GPU, the one with most layers in INT8
        threads: CPU threads of onnxruntime; left out, every core
        precision_map: the map to write (NAME.precision.json beside the mixed graph)
        output: the mixed graph to write (NAME.mixed.onnx beside the FP32 graph)
    """

    max_map_drop: float = option(0.005, metavar="D", check=share)
    images: int = option(IMAGES, metavar="N", check=count)
    keep_as: Literal["fp16", "fp32"] = "fp16"
    engines: tuple[str | Path, str | Path] | None = option(None, hidden=True)
    fastest_on_cpu: bool = False
    threads: int | None = option(None, metavar="N", check=count)
    precision_map: str | Path | None = option(None, hidden=True)
    output: str | Path | None = option(None, hidden=True)


@dataclass(frozen=True)
class TrialFigures:
    """One mixture of precisions that was tried, and what was measured of it.

    Attributes:
        kept: number of layers out of INT8.
        kept_layers: their names.
        map50: on the pictures.
        drop, drop_upper: mAP lost against FP32, and its one-sided 95 % bound.
        head_db: signal to noise of the heads.
        ms: of the whole graph.
        kept_ms: what keeping the layers costs by their own times, an estimate.
        mb: size of the graph.
        pictures: how many judged it, moved copies counted.
    """

    kept: int
    kept_layers: tuple[str, ...]
    map50: float
    drop: float
    drop_upper: float
    head_db: float
    ms: float
    kept_ms: float
    mb: float
    pictures: int


@dataclass(frozen=True)
class SearchResult:
    """What a search chose, and the best of what it tried.

    Attributes:
        budget: mAP that may be lost.
        holds: whether the choice keeps it.
        images: labelled pictures, without copies.
        costs: what the choice goes by, and how times were measured.
        disturbed: what else the machine did while graphs were timed.
        bound: what `drop_upper` is.
        chosen: the choice.
        layers: precision of each convolution that is not INT8.
        all_layers: number of convolutions.
        pareto: trials that no other one beats, the fastest first.
        tried: number of trials.
        data: the pictures.
        model, files: what `edge search` adds.
    """

    budget: float
    holds: bool
    images: int
    costs: str
    bound: str
    chosen: TrialFigures
    layers: Mapping[str, str]
    all_layers: int
    pareto: tuple[TrialFigures, ...]
    tried: int
    data: str
    disturbed: tuple[str, ...] = ()
    model: str | None = None
    files: Mapping[str, Path] | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as `edge search --json` and `export-engine --json` write it."""
        return {name: value for name, value in vars(self).items() if value is not None}


def search_mixed(
    source: Graph | str | Path,
    table: CalibrationTable,
    selection: Selection,
    *,
    budget: float,
    keep_as: str = "fp16",
    engines: tuple[str | Path, str | Path] | None = None,
    engine: Callable[[Graph], Path] | None = None,
    fastest_on_cpu: bool = False,
) -> SearchResult:
    """Return the best mixture that was found of which mAP@.5 falls by at most `budget`.

    The best is the one with most layers in INT8; on a GPU whose engines are given, and with
    `fastest_on_cpu`, the fastest. Times on this CPU say little of another target.

    The budget holds where the one-sided 95 % bound of the drop, by a paired bootstrap over the
    pictures and slightly moved copies of them, lies within it.

    Args:
        source: FP32 ONNX file of the table.
        selection: labelled pictures, others than those that the result is judged on later.
        keep_as: precision of kept layers, `fp16` or `fp32`; FP32 takes those beyond FP16's range.
        engines: INT8 and FP16 engine whose layers' times order the layers; without them
            onnxruntime's.
        engine: from a graph to its engine, which is timed as a whole; without it onnxruntime runs
            the graph.
        fastest_on_cpu: whether the network will run on this CPU.

    Raises:
        CalibrationError, ArtifactError: as `write_mixed`.
        DeviceError, EngineMismatch, MissingDependency: as `engine_layer_ms`.
        BuildError: as `engine` raises it.
    """
    source = Graph.open(source)
    arrays = selection.arrays(source.manifest.spec.contract, _NOISE_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(source, table, selection, arrays, budget, keep_as, engines, Path(folder))
        noise = _noise(source, table, arrays, selection.threads)
        by_time = engines is not None or fastest_on_cpu
        costs = bench.cost_ms if by_time else dict.fromkeys(bench.cost_ms, 1.0)
        order = keep_order(noise, costs)
        with _counted(bench) as measure:
            found = search(order, costs, measure, bench.fits)
        most = _MOST_GRAPHS if engine is None else _MOST_ENGINES
        best = most_int8(found.trials, bench.fits) or found.chosen
        timed = list(dict.fromkeys([*worth_timing(found, bench.fits, most), best]))
        say(f"timing {len(timed)} whole graphs in turns")
        times = whole_ms(bench, timed, Path(folder), engine, settle=by_time)
    chosen, by_time = best, by_time and times.unsure <= _UNSURE
    if by_time:
        chosen = fastest(timed, times.ms, bench.fits) or found.chosen
    elif engines is not None or fastest_on_cpu:
        say(
            f"cannot tell on this machine now which mixture is fastest: times are off by up to "
            f"{times.unsure:.0%}; the one with most layers in INT8 is chosen"
        )
    ms = times.ms
    return SearchResult(
        budget=budget,
        holds=fits(chosen, budget),
        images=len(selection.frames),
        costs=f"{'' if by_time else 'number of layers; times of '}whole graphs in turns, "
        f"{times.backend}",
        disturbed=times.disturbed,
        bound="one-sided 95 % of the drop by a paired bootstrap over the images and moved "
        "copies of them; a gain counts as none",
        chosen=_figures(chosen, ms),
        layers={name: bench.kind[name] for name in order if name in chosen.kept},
        all_layers=len(bench.cost_ms),
        pareto=tuple(_figures(trial, ms) for trial in pareto(found.trials, ms)),
        tried=len(found.trials),
        data=selection.dataset.source,
    )


def _noise(
    source: Graph, table: CalibrationTable, arrays: Sequence[Array], threads: int | None
) -> dict[str, float]:
    with bar("noise of each layer") as advance:
        found = measure_sensitivity(
            source, table, arrays, kept=False, threads=threads, progress=advance
        )
    return {layer.name: layer.alone_share for layer in found.layers}


@contextmanager
def _counted(bench: Trials) -> Iterator[Callable[[frozenset[str]], Trial]]:
    """`bench.measure`, with progress for each trial."""
    with bar("mAP of mixed graphs") as advance:
        count = 0

        def measure(kept: frozenset[str]) -> Trial:
            nonlocal count
            trial = bench.measure(kept)
            count += 1
            advance(count, count + 1)
            return trial

        yield measure


def _figures(trial: Trial, ms: Mapping[frozenset[str], float]) -> TrialFigures:
    return TrialFigures(
        kept=len(trial.kept),
        kept_layers=tuple(sorted(trial.kept)),
        map50=round(trial.map50, 6),
        drop=round(trial.drop, 6),
        drop_upper=round(trial.upper, 6),
        head_db=round(trial.head_db, 2),
        ms=round(ms[trial.kept], 4),
        kept_ms=round(trial.kept_ms, 4),
        mb=round(trial.size / 1e6, 4),
        pictures=trial.pictures,
    )


def record(graph: Graph, found: SearchResult) -> Graph:
    """Write what a search found into the manifest of the graph that was made from it."""
    facts = {
        **{key: getattr(found, key) for key in ("budget", "holds", "data", "images", "bound")},
        "costs": found.costs,
        **{k: getattr(found.chosen, k) for k in ("drop", "drop_upper", "head_db", "pictures")},
    }
    return annotate(graph, precision_search=facts, layers=dict(found.layers))


def tell_overlap(selection: Selection, table: CalibrationTable) -> None:
    """Say where INT8 is measured on pictures that its scales were made from."""
    seen = selection.seen_in(table.hashes, table.images)
    if seen:
        say(
            f"{selection.dataset.source}: {len(seen)} of {len(selection.frames)} labelled images "
            f"are, or look like, calibration images, such as {seen[0].image}: what is measured on "
            "them flatters INT8; calibrate on others"
        )


def search_layers(
    onnx: Graph | str | Path,
    table: CalibrationTable | str | Path,
    data: str | Path,
    options: SearchOptions | None = None,
) -> SearchResult:
    """Search, and write the mixed graph and its precision map.

    Args:
        onnx: FP32 ONNX file of the table.
        table: a table, or its file.
        data: labelled pictures.

    Raises:
        DataError: no labelled pictures; else as `search_mixed`.
    """
    source, options = Graph.open(onnx), options or SearchOptions()
    scales = table if isinstance(table, CalibrationTable) else read_table(table)
    spec = source.manifest.spec
    if source.manifest.precision != "fp32":
        raise ArtifactError(f"{source}: not FP32; give the file that the table was measured on")
    selection = Selection.open(data, spec.classes, options.images, options.threads)
    tell_overlap(selection, scales)
    with tempfile.TemporaryDirectory() as folder:
        build = partial(needed_engine, build=Build(Path(folder), BuildOptions()))
        found = search_mixed(
            source,
            scales,
            selection,
            budget=options.max_map_drop,
            keep_as=options.keep_as,
            engines=options.engines,
            engine=None if options.engines is None else build,
            fastest_on_cpu=options.fastest_on_cpu,
        )
    stem = source.path.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(options.output or source.path.with_name(f"{stem}.mixed.onnx"))
    record(write_mixed(source, scales, target, found.layers), found)
    where = Path(options.precision_map or target.with_suffix(".precision.json"))
    write_map(where, source, found.layers, budget=options.max_map_drop)
    files = {"onnx": target, "precision_map": where}
    return replace(found, model=spec.name, files=files)
