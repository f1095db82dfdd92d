"""From an FP32 graph to FP16, INT8 or mixed precision, with the table and the search it takes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from calibration.calibrate import SCENES
from calibration.table import CalibrationTable, is_table, read_table, write_table
from edge.artifact import read_manifest
from edge.built_in import OF_SCENES
from edge.errors import DataError, EdgeError
from edge.files import sha256_of
from edge.measure.selection import Selection
from edge.reporting import say
from edge.runtime.backend import open_backend
from edge.runtime.device import driver_facts
from export.engine.build import Build, built_engine, needed_engine, why_no_builder
from export.int8.kept_layers import Wanted, kept_layers, note_map
from export.int8.mixed import write_map, write_mixed
from export.int8.quantize import write_half
from export.int8.recipe import Recipe, run_calibration
from export.int8.score_threshold import refit
from export.search.facts import half_beside
from export.search.mixed import IMAGES as SELECTION_IMAGES
from export.search.mixed import SELECTION_SCENES, record, search_mixed, tell_overlap

__all__ = ["Made", "lower_precision"]


@dataclass(frozen=True)
class Made:
    """A graph of lower precision and what it was made from; a table only for INT8."""

    graph: Path
    source: Path
    table: CalibrationTable | None = None
    selection: Selection | None = None


def lower_precision(
    source: Path,
    precision: str,
    result: dict[str, Any],
    calib: str | Path | None,
    recipe: Recipe,
    wanted: Wanted,
    build: Build,
) -> Made:
    """Write the graph of `precision` beside `source`; `result` takes files, figures and search.

    Raises:
        ArtifactError, CalibrationError, DataError: see `export.pipeline.export_engine`.
    """
    if precision == "fp32":
        return Made(source, source)
    target = source.with_name(source.name.replace(".fp32.onnx", f".{precision}.onnx"))
    if precision == "fp16":
        write_half(source, target)
        return Made(target, source)
    table, facts = _table(source, calib, recipe)
    result["calibration"] = facts
    result["files"]["calibration"] = facts["file"]
    selection = _selection(source, calib, wanted)
    if selection is not None:
        tell_overlap(selection, table)
    if wanted.max_map_drop is not None and selection is not None:
        write_mixed(source, table, target, {})
        _search(source, table, target, selection, wanted.max_map_drop, build, result)
    else:
        write_mixed(source, table, target, kept_layers(source, wanted))
        note_map(source, target, wanted)
    if selection is not None:
        result["scores"] = refit(selection, source, target)
    return Made(target, source, table, selection)


def _selection(source: Path, calib: str | Path | None, wanted: Wanted) -> Selection | None:
    """Labelled images, where some are given or a budget needs them."""
    data = wanted.accuracy_data
    spec = read_manifest(source).spec
    if data is None:
        if wanted.max_map_drop is None:
            return None
        data = SELECTION_SCENES if spec.name in OF_SCENES else calib
        if data is None or str(data).endswith(".calib.json"):
            raise DataError("--max-map-drop needs labelled images: --accuracy-data FOLDER")
    return Selection.open(data, spec.classes, SELECTION_IMAGES)


def _cost_engines(source: Path, int8: Path, build: Build) -> tuple[Path, Path] | None:
    """INT8 and FP16 engine, whose layers are timed; None where none can be built and run here."""
    half = None if driver_facts() is None else half_beside(source)
    if half is None or why_no_builder(build.options):
        return None
    paths = [Path(built_engine(graph, build).file) for graph in (int8, half)]
    try:
        for path in paths:
            open_backend(path).close()
    except EdgeError as error:
        say(f"layers are timed on onnxruntime: {error}")
        return None
    return paths[0], paths[1]


def _search(
    source: Path,
    table: CalibrationTable,
    target: Path,
    selection: Selection,
    budget: float,
    build: Build,
    result: dict[str, Any],
) -> None:
    engines = _cost_engines(source, target, build)
    with tempfile.TemporaryDirectory() as folder:
        made = partial(needed_engine, build=replace(build, folder=Path(folder)))
        searched = search_mixed(
            source,
            table,
            selection,
            budget=budget,
            engines=engines,
            engine=None if engines is None else made,
        )
    write_mixed(source, table, target, searched.layers)
    record(target, searched)
    path = source.with_name(source.name.replace(".fp32.onnx", ".precision.json"))
    write_map(path, source, searched.layers, budget=budget)
    result["search"] = searched.report
    result["files"]["precision_map"] = str(path)


def _table(
    source: Path, calib: str | Path | None, recipe: Recipe
) -> tuple[CalibrationTable, dict[str, Any]]:
    if calib is not None and is_table(calib):
        table = read_table(calib)
        contract = read_manifest(source).spec.contract
        table.check(sha256_of(source), contract.digest, str(calib))
        return table, {
            "file": str(calib),
            "method": table.method,
            "images": len(table.images),
            "equalised_tensors": len(table.gains),
            "corrected_biases": len(table.bias),
        }
    path = source.with_name(source.name.replace(".fp32.onnx", ".calib.json"))
    made = run_calibration(source, calib, recipe, known=path)
    write_table(made.table, path)
    facts = {
        "file": str(path),
        "method": recipe.method,
        "images": made.used,
        "equalised_tensors": len(made.table.gains),
        "corrected_biases": len(made.table.bias),
        "data": str(calib or SCENES),
        "skipped": list(made.skipped),
    }
    return made.table, facts
