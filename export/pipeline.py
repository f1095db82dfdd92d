"""`export-engine`: weights to ONNX, calibration table, quantized ONNX and engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.calibrate import IMAGES, check_readable
from calibration.table import is_table
from edge.artifact import read_manifest
from edge.built_in import BUILT_IN
from edge.errors import ArtifactError
from edge.files import make_folder, write_json
from edge.reporting import say
from edge.runtime.device import driver_facts
from export.engine.build import Build, built_engine, engine_facts, why_no_builder
from export.engine.dla import check_dla_options, dla_engine
from export.engine.options import BuildOptions
from export.foreign.importing import import_model, is_foreign
from export.graph.sparsity import check_sparse
from export.int8.kept_layers import Wanted
from export.int8.recipe import Recipe
from export.lowering import Made, lower_precision
from export.search.facts import half_beside, half_twin, verdict_of
from export.search.loss import known_loss, measure_loss, note_loss
from export.source import DEFAULT_MODEL, fp32_onnx

__all__ = ["export_engine"]


def export_engine(
    model: str | Path = DEFAULT_MODEL,
    *,
    precision: str | None = None,
    weights: str | Path | None = None,
    names: str | Path | None = None,
    resize: str | None = None,
    calib: str | Path | None = None,
    images: int = IMAGES,
    method: str = "mse",
    equalise: bool = True,
    bias_correction: bool = True,
    adaround: bool = False,
    keep: Sequence[str] = (),
    max_map_drop: float | None = None,
    accuracy_data: str | Path | None = None,
    precision_map: str | Path | None = None,
    verdict: bool = True,
    builder: str = "auto",
    workspace_mib: int | None = None,
    targets: Sequence[str] = (),
    sparse: bool = False,
    int8_float: str = "fp16",
    random_weights: bool = False,
    seed: int = 0,
    hw: tuple[int, int] | None = None,
    dla: int | None = None,
    output: str | Path = "out",
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Make every file between a model and its engine, and the engine where a builder is there.

    Args:
        model: built-in or zoo name, .cfg, .npz, .safetensors or .onnx. An .onnx that is quantized
            already goes straight to the builder, which needs neither torch nor onnx.
        precision: fp32, fp16 or int8; by default the file's own, FP16 for anything else.
        weights, names, resize, random_weights, seed, hw: see `export.source.fp32_onnx`.
        calib: calibration images, or a `.calib.json` of the same graph; default: built-in scenes.
        images, method, equalise: of the calibration.
        bias_correction: take the mean error of rounding out of the biases.
        adaround: round weights as their layer's output wants it, where the heads gain by it.
        keep: convolutions that stay out of INT8, by name, or `first`, `heads`.
        max_map_drop: mAP@.5 that INT8 may lose, 0..1: as few layers as that takes stay in FP16.
        accuracy_data: labelled images for it, for the verdict and for the score threshold.
        precision_map: JSON of an earlier search, whose layers are kept again.
        verdict: measure INT8 beside FP16 for a second or two and say which to ship.
        builder: auto, tensorrt, rtx or none.
        workspace_mib, targets: for the builder.
        sparse: kernels for weights of which two in four are zero; refused where none are.
        int8_float: what an INT8 engine computes outside of INT8: fp16, or fp32 as in its graph.
        dla: core of a Jetson's DLA to build for, with TensorRT 10.7 or older.
        output: folder of the files; made where it is missing.
        json_path: where to write the result too.

    Returns:
        `model`, `precision`, `files` by kind, `calibration`, `search`, `scores`, `engine` (None
        without a builder, with `reason`), `verdict` (of INT8, else None; of a graph that was
        quantized elsewhere only where its engine runs and the FP16 file lies beside it).

    Raises:
        ArtifactError, CalibrationError, DataError, BuildError, MissingDependency: one line each.
    """
    folder = make_folder(output)
    result: dict[str, Any] = {"files": {}, "calibration": None, "search": None, "scores": None}
    wanted = Wanted(keep, max_map_drop, accuracy_data, precision_map)
    wanted.check(precision)
    if dla is not None:
        chosen = (*wanted.keep, *filter(None, (wanted.max_map_drop, wanted.precision_map)))
        check_dla_options(dla, precision, builder, chosen, sparse)
    options: Any = (builder, workspace_mib, tuple(targets), sparse, int8_float)
    build = Build(folder, BuildOptions(*options))
    made: Made | None = None
    if is_foreign(model):
        imported = import_model(model, names=names, data=accuracy_data, hw=hw, output=folder)
        result["import"] = imported.to_json()
        model, names, hw = imported.file, None, None
    ready = _ready(model, precision)
    if ready is not None:
        graph = source = ready
    else:
        if precision == "int8" and calib is not None and not is_table(calib):
            check_readable(calib, images)
        source = fp32_onnx(
            model,
            folder,
            weights=weights,
            names=names,
            resize=resize,
            random_weights=random_weights,
            seed=seed,
            hw=hw,
        )
        result["files"]["fp32"] = str(source)
    if sparse:
        check_sparse(source)
    if ready is None:
        steps = Recipe(images, method, equalise, bias_correction, adaround)
        made = lower_precision(source, precision or "fp16", result, calib, steps, wanted, build)
        graph = made.graph
        if verdict and dla is None and made.table is not None:
            _note_loss(made, calib, wanted)
    manifest = read_manifest(graph)
    result |= {
        "model": manifest.spec.name,
        "precision": manifest.precision,
        "labels": list(manifest.labels),
    }
    result["files"][manifest.precision] = str(graph)
    result["engine"] = (
        _engine(graph, build, result) if dla is None else _for_dla(made, build, dla, calib, result)
    )
    result["verdict"] = None
    if verdict and dla is None and manifest.precision in ("int8", "mixed"):
        result["verdict"] = _verdict(graph, made, build, result)
    write_json(result, json_path)
    return result


def _ready(model: str | Path, precision: str | None) -> Path | None:
    """The model itself, when it is an ONNX file of the precision asked for."""
    if str(model) in BUILT_IN or Path(model).suffix != ".onnx":
        return None
    own = read_manifest(model).precision
    asked = precision or own
    if own == asked or (own == "mixed" and asked == "int8"):
        return Path(model)
    return None


def _note_loss(made: Made, calib: str | Path | None, wanted: Wanted) -> None:
    """Before the engine is built, which is bound to the graph with its manifest."""
    assert made.table is not None
    loss = measure_loss(
        made.source,
        made.graph,
        made.table,
        calib=calib,
        selection=made.selection,
        budget=wanted.max_map_drop,
    )
    note_loss(made.graph, loss)


def _verdict(
    graph: Path, made: Made | None, build: Build, result: dict[str, Any]
) -> dict[str, Any] | None:
    """Of a graph made here; of one that was brought here, where its engine can be measured."""
    engine = result["engine"]
    if made is None and (engine is None or driver_facts() is None):
        return None
    half = half_twin(graph) if made is None else half_beside(made.source)
    if half is not None:
        result["files"]["fp16"] = str(half)
    elif made is None:
        say(f"no verdict: it takes the FP16 file made beside {graph.name}, in the same folder")
        return None

    def other(half: Path) -> Path | None:
        found = _engine(half, build, {"files": {}})
        return None if found is None else Path(found["file"])

    judged = verdict_of(
        graph,
        half,
        known_loss(graph),
        source=None if made is None else made.source,
        frames=() if made is None or made.selection is None else made.selection.frames,
        engine=None if engine is None else Path(engine["file"]),
        build=other,
    )
    return judged.to_json()


def _for_dla(
    made: Made | None,
    build: Build,
    core: int,
    calib: str | Path | None,
    result: dict[str, Any],
) -> dict[str, Any]:
    if made is None or made.table is None:
        raise ArtifactError("--dla takes the FP32 file and its table, not a quantized graph")
    report = dla_engine(
        made.source,
        made.table,
        build.folder,
        core=core,
        calib=calib,
        workspace_mib=build.options.workspace_mib,
    )
    result["files"]["engine"] = str(report.engine)
    if report.dla is not None:
        result["files"]["scales"] = str(report.dla.cache)
    return engine_facts(report).to_json()


def _engine(graph: Path, build: Build, result: dict[str, Any]) -> dict[str, Any] | None:
    reason = why_no_builder(build.options)
    if reason:
        result["reason"] = reason
        return None
    facts = built_engine(graph, build)
    result["files"]["engine"] = facts.file
    return facts.to_json()
