"""Mixed precision within an accuracy budget: `edge search` and `export-engine --max-map-drop`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from apps.building import Build, needed_engine
from apps.mixed_trials import Array, Trials, prepare, whole_ms
from apps.search_report import search_report
from apps.selection import Selection
from calibration.table import CalibrationTable, read_table
from edge.artifact import read_manifest, write_atomic
from edge.errors import ArtifactError
from edge.reporting import bar, say
from edge.spec import Manifest
from export.mixed import annotate, write_map, write_mixed
from export.search import (
    Found,
    Trial,
    fastest,
    keep_order,
    search,
    worth_timing,
)
from export.sensitivity import measure_sensitivity

__all__ = [
    "IMAGES",
    "SELECTION_SCENES",
    "Searched",
    "record",
    "search_command",
    "search_mixed",
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
    seen = selection.seen_by(table)
    if seen:
        say(
            f"{selection.dataset.source}: {len(seen)} of {len(selection.frames)} labelled images "
            f"are, or look like, calibration images, such as {seen[0].image}: what is measured on "
            "them flatters INT8; calibrate on others"
        )


def search_command(
    onnx: str | Path,
    table: str | Path,
    data: str | Path,
    *,
    budget: float,
    images: int = IMAGES,
    keep_as: str = "fp16",
    engines: tuple[str | Path, str | Path] | None = None,
    threads: int | None = None,
    output: str | Path | None = None,
    map_path: str | Path | None = None,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """`edge search`: write the mixed graph and its precision map; the report.

    Raises:
        DataError: no labelled images; else as `search_mixed`.
    """
    source, calibrated = Path(onnx), read_table(table)
    if read_manifest(source).precision != "fp32":
        raise ArtifactError(f"{source}: not FP32; give the file that the table was measured on")
    selection = Selection.open(data, read_manifest(source).spec.classes, images, threads)
    tell_overlap(selection, calibrated)
    with tempfile.TemporaryDirectory() as folder:
        build = Build(Path(folder), "auto", None, ())
        searched = search_mixed(
            source,
            calibrated,
            selection,
            budget=budget,
            keep_as=keep_as,
            engines=engines,
            engine=None if engines is None else partial(needed_engine, build=build),
        )
    stem = source.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(output) if output else source.with_name(f"{stem}.mixed.onnx")
    write_mixed(source, calibrated, target, searched.layers)
    record(target, searched)
    where = Path(map_path) if map_path else target.with_suffix(".precision.json")
    write_map(where, source, searched.layers, budget=budget)
    result = {
        **searched.report,
        "model": read_manifest(source).spec.name,
        "files": {"onnx": str(target), "precision_map": str(where)},
    }
    if json_path is not None:
        write_atomic(Path(json_path), json.dumps(result, indent=1).encode())
    return result
