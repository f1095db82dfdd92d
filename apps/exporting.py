"""`export-engine`: weights to ONNX, calibration table, quantized ONNX and engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apps.dla import check_options, dla_engine, dla_facts
from apps.export_printing import print_export
from apps.int8_loss import known_loss, measure_loss, note_loss
from apps.judging import half_beside, half_twin, verdict_of
from apps.progress import phases
from apps.recipe import Recipe, run_calibration
from apps.scores import refit
from apps.searching import IMAGES as SELECTION_IMAGES
from apps.searching import SELECTION_SCENES, record, search_mixed, tell_overlap
from apps.selection import Selection
from apps.table import say
from calibration.calibrate import IMAGES, SCENES, check_readable
from calibration.table import CalibrationTable, read_table, write_table
from edge.artifact import read_manifest, sha256_of, write_atomic
from edge.built_in import BUILT_IN
from edge.errors import ArtifactError, DataError, EdgeError
from edge.optional import require
from edge.runtime.backend import open_backend
from edge.runtime.device import driver_facts
from export.engine import EngineReport, available_builders, build_engine
from export.mixed import annotate, read_map, write_map, write_mixed
from export.precision import convolutions
from export.quantize import write_half
from export.source import DEFAULT_MODEL, fp32_onnx
from export.sparsity import check_sparse

__all__ = ["export_engine", "print_export", "quantize_command"]


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
    folder = Path(output)
    _make(folder)
    result: dict[str, Any] = {"files": {}, "calibration": None, "search": None, "scores": None}
    wanted = Wanted(keep, max_map_drop, accuracy_data, precision_map)
    wanted.check(precision)
    if dla is not None:
        chosen = (*wanted.keep, *filter(None, (wanted.max_map_drop, wanted.precision_map)))
        check_options(dla, precision, builder, chosen, sparse)
    build = Build(folder, builder, workspace_mib, targets, sparse, int8_float)
    made: Made | None = None
    ready = _ready(model, precision)
    if ready is not None:
        graph = source = ready
    else:
        if precision == "int8" and calib is not None and not _is_table(calib):
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
        made = _lower_precision(source, precision or "fp16", result, calib, steps, wanted, build)
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
    if json_path is not None:
        write_atomic(Path(json_path), json.dumps(result, indent=1).encode())
    return result


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be made: {error.strerror}") from error


def _ready(model: str | Path, precision: str | None) -> Path | None:
    """The model itself, when it is an ONNX file of the precision asked for."""
    if str(model) in BUILT_IN or Path(model).suffix != ".onnx":
        return None
    own = read_manifest(model).precision
    asked = precision or own
    if own == asked or (own == "mixed" and asked == "int8"):
        return Path(model)
    return None


@dataclass(frozen=True)
class Wanted:
    """What may stay out of INT8, and how accurate the rest must be: see `export_engine`."""

    keep: Sequence[str] = ()
    max_map_drop: float | None = None
    accuracy_data: str | Path | None = None
    precision_map: str | Path | None = None

    def check(self, precision: str | None) -> None:
        """Refuse options that contradict each other.

        Raises:
            ArtifactError: a budget with layers chosen by hand, or without INT8.
        """
        if self.max_map_drop is None:
            return
        if self.keep or self.precision_map is not None:
            raise ArtifactError(
                "--max-map-drop chooses the layers itself; leave out --keep and --precision-map"
            )
        if precision != "int8":
            raise ArtifactError("--max-map-drop bounds what INT8 loses; add --int8")


@dataclass(frozen=True)
class Made:
    """A graph of lower precision and what it was made from; a table only for INT8."""

    graph: Path
    source: Path
    table: CalibrationTable | None = None
    selection: Selection | None = None


@dataclass(frozen=True)
class Build:
    """Where engines go, and what builds them: see `export_engine`."""

    folder: Path
    builder: str
    workspace_mib: int | None
    targets: Sequence[str]
    sparse: bool = False
    int8_float: str = "fp16"


def _lower_precision(
    source: Path,
    precision: str,
    result: dict[str, Any],
    calib: str | Path | None,
    recipe: Recipe,
    wanted: Wanted,
    build: Build,
) -> Made:
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
        engines = _cost_engines(source, target, build)
        _search(source, table, target, selection, wanted.max_map_drop, engines, result)
    else:
        write_mixed(source, table, target, _layers(source, wanted))
        _note_map(source, target, wanted)
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
        data = SELECTION_SCENES if spec.name in BUILT_IN else calib
        if data is None or str(data).endswith(".calib.json"):
            raise DataError("--max-map-drop needs labelled images: --accuracy-data FOLDER")
    return Selection.open(data, spec.classes, SELECTION_IMAGES)


def _cost_engines(source: Path, int8: Path, build: Build) -> tuple[Path, Path] | None:
    """INT8 and FP16 engine, whose layers are timed; None where none can be built and run here."""
    half = None if driver_facts() is None else half_beside(source)
    if half is None:
        return None
    made = [_engine(graph, build, {"files": {}}) for graph in (int8, half)]
    paths = [Path(one["file"]) for one in made if one is not None]
    if len(paths) < 2:
        return None
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
    engines: tuple[Path, Path] | None,
    result: dict[str, Any],
) -> None:
    searched = search_mixed(source, table, selection, budget=budget, engines=engines)
    write_mixed(source, table, target, searched.layers)
    record(target, searched)
    path = source.with_name(source.name.replace(".fp32.onnx", ".precision.json"))
    write_map(path, source, searched.layers, budget=budget)
    result["search"] = searched.report
    result["files"]["precision_map"] = str(path)


def _layers(source: Path, wanted: Wanted) -> dict[str, str]:
    """The layers that the user keeps out of INT8, by hand in FP32 or by an earlier search."""
    layers = {} if wanted.precision_map is None else read_map(wanted.precision_map, source)
    return dict.fromkeys(_kept(source, wanted.keep), "fp32") | layers


def _note_map(source: Path, target: Path, wanted: Wanted) -> None:
    """The engine keeps a map's FP32 layers in FP32; those of --keep only have to leave INT8."""
    if wanted.precision_map is not None:
        annotate(target, layers=read_map(wanted.precision_map, source))


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


def _table(
    source: Path, calib: str | Path | None, recipe: Recipe
) -> tuple[CalibrationTable, dict[str, Any]]:
    if calib is not None and _is_table(calib):
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


def _is_table(calib: str | Path) -> bool:
    """A calibration table and no COCO json."""
    path = Path(calib)
    return path.suffix == ".json" and path.is_file() and b'"amax"' in path.read_bytes()


def _kept(source: Path, keep: Sequence[str]) -> list[str]:
    """Names of the convolutions that `keep` speaks of, `first` and `heads` among them."""
    if not keep:
        return []
    found = [node.name for node in convolutions(require("onnx").load(str(source)))]
    heads = {head.tensor for head in read_manifest(source).spec.heads}
    kept: list[str] = []
    for word in keep:
        if word == "first":
            kept.append(found[0])
        elif word == "heads":
            kept.extend(name for name in found if name in heads)
        elif word in found:
            kept.append(word)
        else:
            raise ArtifactError(
                f"{source}: no convolution {word!r} to keep; edge show {source} lists them"
            )
    return list(dict.fromkeys(kept))


def _engine(graph: Path, build: Build, result: dict[str, Any]) -> dict[str, Any] | None:
    if build.builder == "none":
        result["reason"] = "--builder none"
        return None
    if build.builder == "auto":
        found = available_builders()
        if not any(info.ok for info in found):
            result["reason"] = "; ".join(f"{info.name}: {info.reason}" for info in found)
            return None
    target = build.folder / f"{graph.name.removesuffix('.onnx')}.engine"
    with phases("building") as progress:
        report = build_engine(
            graph,
            target,
            builder=build.builder,  # type: ignore[arg-type]
            workspace_mib=build.workspace_mib,
            compute_capabilities=build.targets,
            progress=progress,
            sparse=build.sparse,
            int8_float=build.int8_float,  # type: ignore[arg-type]
        )
    result["files"]["engine"] = str(report.engine)
    _tell(report, build)
    return _engine_facts(report)


def _tell(report: EngineReport, build: Build) -> None:
    part = report.float_part
    if part is None or part.precision == build.int8_float == "fp32":
        return
    if part.reason:
        say(f"{report.engine.name}: FP32 outside of INT8, not FP16: {part.reason}")
    elif part.single:
        names = ", ".join(part.single)
        say(f"{report.engine.name}: FP32 around {names}, by the map or beyond FP16's range")


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
        workspace_mib=build.workspace_mib,
    )
    assert report.dla is not None
    result["files"] |= {"engine": str(report.engine), "scales": str(report.dla.cache)}
    return _engine_facts(report) | {"dla": dla_facts(report.dla)}


def _engine_facts(report: EngineReport) -> dict[str, Any]:
    summary = report.summary
    types: dict[str, int] = {}
    for conv in summary.convolutions:
        types[conv.dtype] = types.get(conv.dtype, 0) + 1
    return {
        "file": str(report.engine),
        "builder": report.builder,
        "version": report.version,
        "reason": report.reason,
        "seconds": round(report.seconds, 2),
        "peak_rss_mib": report.peak_rss_mib,
        "bytes": report.engine.stat().st_size,
        "layers": summary.layers,
        "reformats": summary.reformats,
        "convolutions": types,
        "not_int8": [conv.name for conv in summary.convolutions if conv.dtype != "int8"],
        "sparse": list(report.sparse),
        "sparsity": list(report.sparsity),
        "float_part": None if report.float_part is None else asdict(report.float_part),
    }


def quantize_command(
    onnx: str | Path,
    table: str | Path,
    *,
    keep: Sequence[str] = (),
    precision_map: str | Path | None = None,
    output: str | Path | None = None,
) -> Path:
    """`edge quantize`: write the INT8 graph of an FP32 ONNX file at a table's scales; its path."""
    source = Path(onnx)
    stem = source.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(output) if output else source.with_name(f"{stem}.int8.onnx")
    layers = _layers(source, Wanted(keep, precision_map=precision_map))
    write_mixed(source, read_table(table), target, layers)
    _note_map(source, target, Wanted(precision_map=precision_map))
    say(f"wrote {target}")
    return target
