"""Mixed precision within an accuracy budget: `edge search` and `export-engine --max-map-drop`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.progress import bar
from apps.quick_timing import quick_ms
from apps.selection import COPIES, Drop, Selection, paired_drop
from apps.table import say, show
from calibration.table import CalibrationTable, read_table
from edge.artifact import read_manifest, write_atomic
from edge.errors import ArtifactError
from edge.spec import Manifest
from export.half_range import beyond_half
from export.head_noise import Heads, head_noise, heads_of
from export.layer_cost import engine_layer_ms, onnx_layer_ms
from export.mixed import annotate, layer_names, write_map, write_mixed
from export.search import (
    FEW_PICTURES,
    Found,
    Trial,
    fits,
    hopeless,
    keep_order,
    pareto,
    search,
    upper_drop,
)
from export.sensitivity import measure_sensitivity

__all__ = [
    "IMAGES",
    "SELECTION_SCENES",
    "Searched",
    "judged",
    "print_search",
    "record",
    "search_command",
    "search_mixed",
    "tell_overlap",
]

IMAGES = 200
# Scenes of the built-in world that neither calibration nor evaluation renders.
SELECTION_SCENES = "scenes://?seed=700000&count=200"
_NOISE_IMAGES = 8

Array = NDArray[np.float32]


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


@dataclass(eq=False)
class _Bench:
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
    drops: dict[frozenset[str], Drop] = field(default_factory=dict)

    def write(self, kept: frozenset[str], target: Path) -> None:
        write_mixed(self.source, self.table, target, {name: self.kind[name] for name in kept})

    def measure(self, kept: frozenset[str]) -> Trial:
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


def search_mixed(
    source: str | Path,
    table: CalibrationTable,
    selection: Selection,
    *,
    budget: float,
    keep_as: str = "fp16",
    engines: tuple[str | Path, str | Path] | None = None,
) -> Searched:
    """Keep the cheapest layers out of INT8 so that mAP@.5 falls by at most `budget`.

    The budget holds where the one-sided 95 % bound of the drop, by a paired bootstrap over the
    images and slightly moved copies of them, lies within it.

    Args:
        source: FP32 ONNX file of the table.
        selection: labelled images, others than those that the result is judged on later.
        keep_as: precision of kept layers, `fp16` or `fp32`; FP32 takes those beyond FP16's range.
        engines: INT8 and FP16 engine whose layers' times are the costs; without them onnxruntime's.

    Raises:
        CalibrationError, ArtifactError: as `write_int8`.
        DeviceError, EngineMismatch, MissingDependency: as `engine_layer_ms`.
    """
    source = Path(source)
    arrays = selection.arrays(read_manifest(source).spec.contract, _NOISE_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        bench = _prepare(source, table, selection, arrays, budget, keep_as, engines, Path(folder))
        noise = _noise(source, table, arrays, selection.threads)
        order = keep_order(noise, bench.cost_ms)
        with _counted(bench) as measure:
            found = search(order, bench.cost_ms, measure, lambda trial: fits(trial, budget))
        timed = _timed(bench, [*pareto(found.trials), found.chosen], Path(folder))
    layers = {name: bench.kind[name] for name in order if name in found.chosen.kept}
    report = _report(found, bench, layers, timed, engines is not None)
    report["data"] = selection.dataset.source
    return Searched(layers, found, report)


def _prepare(
    source: Path,
    table: CalibrationTable,
    selection: Selection,
    arrays: Sequence[Array],
    budget: float,
    keep_as: str,
    engines: tuple[str | Path, str | Path] | None,
    folder: Path,
) -> _Bench:
    names, threads = layer_names(source), selection.threads
    floating, int8 = folder / "floating.onnx", folder / "int8.onnx"
    write_mixed(source, table, floating, dict.fromkeys(names, "fp32"))
    write_mixed(source, table, int8, {})
    beyond = beyond_half(floating, arrays[:2], threads)
    if engines is not None:
        low, high = (engine_layer_ms(engine) for engine in engines)
    else:
        low, high = (onnx_layer_ms(path, arrays[0], threads=threads) for path in (int8, floating))
    return _Bench(
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


def _noise(
    source: Path, table: CalibrationTable, arrays: Sequence[Array], threads: int | None
) -> dict[str, float]:
    with bar("noise of each layer") as advance:
        found = measure_sensitivity(
            source, table, arrays, kept=False, threads=threads, progress=advance
        )
    return {layer.name: layer.alone_share for layer in found.layers}


@contextmanager
def _counted(bench: _Bench) -> Iterator[Any]:
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


def _timed(bench: _Bench, trials: Sequence[Trial], folder: Path) -> dict[frozenset[str], float]:
    """Milliseconds of the trials' graphs on onnxruntime, measured in turns."""
    paths = {}
    for number, trial in enumerate({one.kept: one for one in trials}.values()):
        paths[trial.kept] = folder / f"{number}.onnx"
        bench.write(trial.kept, paths[trial.kept])
    frame = bench.selection.frames[0]
    found = quick_ms(list(paths.values()), [frame], threads=bench.selection.threads)
    return {kept: found[path].engine_ms for kept, path in paths.items()}


def _report(
    found: Found,
    bench: _Bench,
    layers: dict[str, str],
    timed: dict[frozenset[str], float],
    on_engine: bool,
) -> dict[str, Any]:
    images = len(bench.selection.frames)
    return {
        "budget": bench.budget,
        "holds": fits(found.chosen, bench.budget),
        "images": images,
        "costs": "engine, its GPU" if on_engine else "onnxruntime, CPU",
        "bound": "one-sided 95 % of the drop by a paired bootstrap over the images and moved "
        "copies of them; a gain counts as none",
        "chosen": _facts(found.chosen, timed),
        "layers": layers,
        "all_layers": len(bench.cost_ms),
        "pareto": [_facts(trial, timed) for trial in pareto(found.trials)],
        "tried": len(found.trials),
    }


def _facts(trial: Trial, timed: dict[frozenset[str], float]) -> dict[str, Any]:
    return {
        "kept": len(trial.kept),
        "kept_layers": sorted(trial.kept),
        "map50": round(trial.map50, 6),
        "drop": round(trial.drop, 6),
        "drop_upper": round(trial.upper, 6),
        "head_db": round(trial.head_db, 2),
        "ms": round(timed[trial.kept], 4),
        "kept_ms": round(trial.kept_ms, 4),
        "mb": round(trial.size / 1e6, 4),
        "pictures": trial.pictures,
    }


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
    searched = search_mixed(
        source, calibrated, selection, budget=budget, keep_as=keep_as, engines=engines
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


def print_search(report: dict[str, Any]) -> None:
    """The Pareto table on stdout, the choice on stderr."""
    chosen = report["chosen"]
    rows = [
        (
            f"{one['kept']} of {report['all_layers']}" + (" <" if one == chosen else ""),
            f"{one['map50'] * 100:.2f}",
            f"{one['drop'] * 100:+.2f}",
            f"{one['drop_upper'] * 100:.2f}",
            f"{one['head_db']:.1f}",
            f"{one['ms']:.2f}",
            f"{one['mb']:.2f}",
            str(one["pictures"]),
        )
        for one in ([] if chosen in report["pareto"] else [chosen]) + report["pareto"]
    ]
    columns = (
        "kept layers",
        "mAP@.5 %",
        "lost",
        "lost at most",
        "heads dB",
        "CPU ms",
        "MB",
        "pictures",
    )
    show(f"mixed precision on {report['images']} images of {report['data']}", columns, rows)
    if len({one["pictures"] for one in report["pareto"]}) > 1:
        say("mAP@.5 is over so many pictures, moved copies of the images among them: compare lost")
    if not report["holds"]:
        say(
            f"no mixture is sure to lose at most {report['budget'] * 100:g} points on these "
            f"{report['images']} images; more labelled images tell closer"
        )
    kept = ", ".join(report["layers"]) or "none"
    say(f"kept out of INT8 (<): {kept}; costs by {report['costs']}; {report['tried']} graphs tried")
