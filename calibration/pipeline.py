"""From pictures to a calibration table: thresholds, bias correction, adaptive rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.adaround import round_if_better
from calibration.best import calibrate_best
from calibration.correction import correct_bias
from calibration.graph import Graph
from calibration.recipe import IMAGES, CalibrationRecipe
from calibration.scales import SCENES, Calibration, inputs_of, measure_scales
from calibration.table import CalibrationTable, read_table
from edge import __version__
from edge.built_in import OF_SCENES
from edge.data.datasets import open_dataset
from edge.data.distinct import Seen, pictures
from edge.data.items import Dataset, thin
from edge.errors import CalibrationError
from edge.reporting import bar, say

__all__ = ["calibrate", "report_skipped"]

_FEW_IMAGES = 32
# Each picture gives thousands of pixels to a channel's mean, so few serve.
_BIAS_IMAGES = 32


def calibrate(
    onnx: Graph | str | Path,
    data: str | Path | None = None,
    recipe: CalibrationRecipe | None = None,
    *,
    known: Path | None = None,
    threads: int | None = None,
) -> Calibration:
    """Measure the INT8 scales of an FP32 graph on pictures.

        table = calibrate("out/yolo.fp32.onnx", "pictures/").table
        write_table(table, "out/yolo.calib.json")

    Args:
        onnx: FP32 ONNX file that edge wrote.
        data: folder of pictures, labelled set or `scenes://`, as `open_dataset` takes it; the
            built-in scenes where None.
        recipe: how the scales are made; `CalibrationRecipe()` by default.
        known: file of a table that is returned as it is where it was made from the same graph,
            pictures and recipe by the same version; there are no histograms then.
        threads: of onnxruntime; all cores by default.

    Raises:
        CalibrationError: `onnx` is not FP32, no picture could be read, too few for `best`, an
            activation is not finite, or without `data` the table `known` is of other pictures.
        ArtifactError: `onnx` is not an ONNX file of edge.
        DataError: `data` is not there.
    """
    graph, recipe = Graph.open(onnx), recipe or CalibrationRecipe()
    if graph.manifest.precision != "fp32":
        raise CalibrationError(
            f"{graph}: {graph.manifest.precision}; scales are measured on the FP32 file"
        )
    name = graph.manifest.spec.name
    if data is None and name not in OF_SCENES:
        say(
            f"calibrating {name} on the built-in scenes: its scales will fit them, not your "
            "camera; give its own pictures (export-engine --calib, edge calibrate --data)"
        )
    dataset = open_dataset(data or SCENES, limit=recipe.images)
    if known is not None and known.exists():
        table = _there(known, replaceable=data is not None)
        if table is not None and _is_current(table, graph, dataset, recipe):
            say(f"{known}: up to date, nothing to measure (edge calibrate --fresh measures again)")
            return Calibration(table, {}, len(table.images), ())
        if table is not None and data is None:
            _refuse_to_replace(known, table, graph)
    made = _measured(graph, dataset, recipe, threads)
    report_skipped(made.skipped)
    if made.used < _FEW_IMAGES:
        say(f"calibrated on {made.used} images only; {IMAGES} of all conditions are better")
    table = replace(made.table, recipe=recipe.steps, data=str(data or SCENES), asked=recipe.images)
    return replace(made, table=table)


def _measured(
    graph: Graph, dataset: Dataset, recipe: CalibrationRecipe, threads: int | None
) -> Calibration:
    with bar("calibrating") as advance:
        if recipe.method == "best":
            found = calibrate_best(
                graph,
                dataset,
                equalise=recipe.equalise,
                bias=recipe.bias_correction,
                progress=advance,
                threads=threads,
            )
            made = found.calibration
            say(f"best on the images held back: {found.best}, {found.decibel[found.best]:.2f} dB")
        else:
            made = measure_scales(
                graph,
                dataset,
                method=recipe.method,
                equalise=recipe.equalise,
                progress=advance,
                threads=threads,
            )
    if recipe.bias_correction:
        few = replace(dataset, items=tuple(thin(dataset.items, _BIAS_IMAGES)))
        inputs = inputs_of(few, graph.manifest.spec.contract)
        made = replace(made, table=correct_bias(graph, made.table, inputs))
    if recipe.adaround:
        made = replace(made, table=_rounded(graph, made.table, dataset, threads))
    return made


def _rounded(
    graph: Graph, table: CalibrationTable, dataset: Dataset, threads: int | None
) -> CalibrationTable:
    with bar("rounding weights") as advance:
        found = round_if_better(graph, table, dataset, progress=advance, threads=threads)
    before, after = dict(found.head_db)["nearest"], dict(found.head_db)["adaround"]
    kept = "kept" if found.rounding else "not kept"
    say(f"adaptive rounding: heads {before:.2f} dB before, {after:.2f} dB with it; {kept}")
    return found


def report_skipped(skipped: Sequence[str]) -> None:
    """Say which pictures cannot be used, the first five by name."""
    for text in skipped[:5]:
        say(f"skipped: {text}")
    if len(skipped) > 5:
        say(f"skipped: {len(skipped) - 5} more")


def _there(path: Path, *, replaceable: bool) -> CalibrationTable | None:
    """The table at `path`; None for what is no table, if that may be replaced."""
    try:
        return read_table(path)
    except CalibrationError as error:
        if replaceable:
            return None
        raise CalibrationError(
            f"{error}; it is not replaced by scales of the built-in scenes: name another file, or "
            "replace it with edge calibrate --fresh"
        ) from error


def _is_current(
    table: CalibrationTable, graph: Graph, dataset: Dataset, recipe: CalibrationRecipe
) -> bool:
    """Whether `table` is what `recipe` over `dataset` would give."""
    asked = CalibrationTable(
        amax=(),
        method=recipe.method,
        graph_sha256=graph.sha256,
        contract_digest=graph.manifest.spec.contract.digest,
        images=table.images,
        recipe=recipe.steps,
        made_by=f"edge {__version__}",
    )
    # Pictures are decoded only where all else is the same.
    return asked.key == table.key and list(table.images) == _digests(dataset)


def _refuse_to_replace(path: Path, table: CalibrationTable, graph: Graph) -> None:
    """The built-in scenes, which nobody asked for, replace no table of somebody's pictures."""
    if table.data.startswith("scenes"):
        return
    # Tables of older versions do not say what they are of.
    scenes = open_dataset(SCENES, limit=len(table.images))
    if not table.data and list(table.images) == _digests(scenes):
        return
    use = f"use the table (export-engine --calib {path}), " * (table.graph_sha256 == graph.sha256)
    raise CalibrationError(
        f"{path}: holds scales of other pictures{f' ({table.data})' if table.data else ''}, which "
        f"are not replaced by those of the built-in scenes: {use}give the pictures, or replace it "
        "with edge calibrate --fresh"
    )


def _digests(dataset: Dataset) -> Sequence[str]:
    seen = Seen()
    for _ in pictures(dataset, seen):
        pass
    return sorted(seen.digests)
