"""From an FP32 graph to FP16, INT8 or mixed precision, with the table and the search it takes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from calibration.graph import Graph
from calibration.pipeline import calibrate
from calibration.recipe import CalibrationRecipe
from calibration.scales import SCENES
from calibration.table import CalibrationTable, write_table
from edge.built_in import OF_SCENES
from edge.errors import DataError, EdgeError
from edge.measure.selection import Selection
from edge.reporting import say
from edge.runtime.backend import open_backend
from edge.runtime.device import driver_facts
from export.engine.build import Build, built_engine, needed_engine, why_no_builder
from export.int8.kept_layers import write_quantized
from export.int8.precision_map import write_map
from export.int8.quantize import write_half, write_mixed
from export.int8.score_threshold import FittedScore, fit_score
from export.options import ExportOptions
from export.search.facts import half_beside
from export.search.mixed import IMAGES as SELECTION_IMAGES
from export.search.mixed import SELECTION_SCENES, SearchResult, record, search_mixed, tell_overlap

__all__ = ["Lowered", "TableFacts", "lower_precision"]


@dataclass(frozen=True)
class TableFacts:
    """The table that an INT8 graph was made at.

    Attributes:
        file: of the table.
        method, images: how and on how many pictures it was made.
        equalised_tensors, corrected_biases: how many of each.
        data, skipped: the pictures and what was left out, where the table was made here.
    """

    file: Path
    method: str
    images: int
    equalised_tensors: int
    corrected_biases: int
    data: str | None = None
    skipped: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The facts as `export-engine --json` writes them."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Lowered:
    """A graph of the precision asked for, and what it was made from.

    Attributes:
        graph, source: the graph, and the FP32 graph behind it.
        files: what was written besides the two, by kind.
        table, facts: scales, for INT8 alone.
        selection: labelled pictures, where they were needed.
        search: of a mixture within a budget.
        scores: the score threshold that fits the graph.
    """

    graph: Graph
    source: Graph
    files: dict[str, Path] = field(default_factory=dict)
    table: CalibrationTable | None = None
    facts: TableFacts | None = None
    selection: Selection | None = None
    search: SearchResult | None = None
    scores: FittedScore | None = None


def lower_precision(
    source: Graph, options: ExportOptions, table: CalibrationTable | None, folder: Path
) -> Lowered:
    """Write the graph of the precision asked for beside `source`.

    Args:
        table: what `options.calib` names, where that is a table.
        folder: takes engines that a search needs.

    Raises:
        ArtifactError, CalibrationError, DataError: see `export.pipeline.export_engine`.
    """
    precision = options.precision or "fp16"
    if precision == "fp32":
        return Lowered(source, source)
    target = _beside(source, f"{precision}.onnx")
    if precision == "fp16":
        return Lowered(write_half(source, target), source)
    if table is None:
        table, facts = _made_table(source, options.calib, options.recipe)
    else:
        table.check(source.sha256, source.manifest.spec.contract.digest, str(options.calib))
        facts = _facts(Path(str(options.calib)), table)
    files, found = {"calibration": facts.file}, None
    selection = _selection(source, options, is_table="data" not in facts.to_json())
    if selection is not None:
        tell_overlap(selection, table)
    if options.max_map_drop is not None and selection is not None:
        graph, found = _searched(source, table, target, selection, options, folder)
        files["precision_map"] = _beside(source, "precision.json")
    else:
        graph = write_quantized(source, table, target, options.keep, options.precision_map)
    scores = None
    if selection is not None and graph is not source:
        graph, scores = fit_score(selection, source, graph)
    return Lowered(graph, source, files, table, facts, selection, found, scores)


def _beside(source: Graph, end: str) -> Path:
    return source.path.with_name(source.path.name.replace(".fp32.onnx", f".{end}"))


def _selection(source: Graph, options: ExportOptions, *, is_table: bool) -> Selection | None:
    """Labelled pictures, where some are given or a budget needs them."""
    data = options.accuracy_data
    spec = source.manifest.spec
    if data is None:
        if options.max_map_drop is None:
            return None
        data = SELECTION_SCENES if spec.name in OF_SCENES else options.calib
        if data is None or (is_table and data == options.calib):
            raise DataError("--max-map-drop needs labelled images: --accuracy-data FOLDER")
    return Selection.open(data, spec.classes, SELECTION_IMAGES)


def _searched(
    source: Graph,
    table: CalibrationTable,
    target: Path,
    selection: Selection,
    options: ExportOptions,
    folder: Path,
) -> tuple[Graph, SearchResult]:
    budget = options.max_map_drop or 0.0
    engines = _cost_engines(source, write_mixed(source, table, target, {}), options, folder)
    with tempfile.TemporaryDirectory() as scratch:
        build = partial(needed_engine, build=Build(Path(scratch), options.build))
        found = search_mixed(
            source,
            table,
            selection,
            budget=budget,
            engines=engines,
            engine=None if engines is None else build,
            fastest_on_cpu=options.fastest_on_cpu,
        )
    if found.chosen.kept == found.all_layers:
        # What has no layer in INT8 is not called that.
        target.unlink(missing_ok=True)
        say(
            f"no layer can be in INT8 within the budget of {100 * budget:g} points: the result is "
            "floating point"
        )
        half = half_beside(source)
        graph = source if half is None else record(half, found)
    else:
        graph = record(write_mixed(source, table, target, found.layers), found)
    write_map(_beside(source, "precision.json"), source, found.layers, budget=budget)
    return graph, found


def _cost_engines(
    source: Graph, int8: Graph, options: ExportOptions, folder: Path
) -> tuple[Path, Path] | None:
    """INT8 and FP16 engine, whose layers are timed; None where none can be built and run here."""
    half = None if driver_facts() is None else half_beside(source)
    if half is None or why_no_builder(options.build):
        return None
    build = Build(folder, options.build)
    engines = [Path(built_engine(graph, build).file) for graph in (int8, half)]
    try:
        for path in engines:
            open_backend(path).close()
    except EdgeError as error:
        say(f"layers are timed on onnxruntime: {error}")
        return None
    return engines[0], engines[1]


def _made_table(
    source: Graph, calib: str | Path | None, recipe: CalibrationRecipe
) -> tuple[CalibrationTable, TableFacts]:
    path = _beside(source, "calib.json")
    made = calibrate(source, calib, recipe, known=path)
    write_table(made.table, path)
    facts = _facts(path, made.table)
    return made.table, replace(
        facts,
        method=recipe.method,
        images=made.used,
        data=str(calib or SCENES),
        skipped=made.skipped,
    )


def _facts(path: Path, table: CalibrationTable) -> TableFacts:
    return TableFacts(path, table.method, len(table.images), len(table.gains), len(table.bias))
