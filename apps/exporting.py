"""`export-engine`: weights to ONNX, calibration table, quantized ONNX and engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from apps.table import say, show
from calibration.calibrate import IMAGES, SCENES, Calibration, calibrate, network_inputs
from calibration.table import CalibrationTable, read_table, write_table
from edge.artifact import read_manifest, write_atomic
from edge.errors import ArtifactError, CalibrationError
from edge.optional import require
from edge.spec import Manifest
from export.correction import correct_bias
from export.engine import EngineReport, available_builders, build_engine
from export.precision import convolutions
from export.quantize import write_half, write_int8
from export.source import BUILT_IN, DEFAULT_MODEL, fp32_onnx

__all__ = ["Recipe", "calibrate_command", "export_engine", "print_export", "quantize_command"]

_FEW_IMAGES = 32
# Each image gives thousands of pixels to a channel's mean, so few serve.
_BIAS_IMAGES = 32


@dataclass(frozen=True)
class Recipe:
    """How scales are made: see `export_engine`."""

    images: int = IMAGES
    method: str = "mse"
    equalise: bool = True
    bias_correction: bool = True


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
    keep: Sequence[str] = (),
    builder: str = "auto",
    workspace_mib: int | None = None,
    targets: Sequence[str] = (),
    random_weights: bool = False,
    seed: int = 0,
    hw: tuple[int, int] | None = None,
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
        keep: convolutions that stay out of INT8, by name, or `first`, `heads`.
        builder: auto, tensorrt, rtx or none.
        workspace_mib, targets: for the builder.
        output: folder of the files; made where it is missing.
        json_path: where to write the result too.

    Returns:
        `model`, `precision`, `files` by kind, `calibration`, `engine` (None without a builder,
        with `reason`).

    Raises:
        ArtifactError, CalibrationError, DataError, BuildError, MissingDependency: one line each.
    """
    folder = Path(output)
    _make(folder)
    result: dict[str, Any] = {"files": {}, "calibration": None}
    ready = _ready(model, precision)
    if ready is not None:
        graph = ready
    else:
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
        steps = Recipe(images, method, equalise, bias_correction)
        graph = _lower_precision(source, precision or "fp16", result, calib, steps, keep)
    manifest = read_manifest(graph)
    result |= {
        "model": manifest.spec.name,
        "precision": manifest.precision,
        "labels": list(manifest.labels),
    }
    result["files"][manifest.precision] = str(graph)
    result["engine"] = _engine(graph, folder, builder, workspace_mib, targets, result)
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


def _lower_precision(
    source: Path,
    precision: str,
    result: dict[str, Any],
    calib: str | Path | None,
    recipe: Recipe,
    keep: Sequence[str],
) -> Path:
    if precision == "fp32":
        return source
    target = source.with_name(source.name.replace(".fp32.onnx", f".{precision}.onnx"))
    if precision == "fp16":
        write_half(source, target)
        return target
    table, facts = _table(source, calib, recipe)
    result["calibration"] = facts
    result["files"]["calibration"] = facts["file"]
    write_int8(source, table, target, keep=_kept(source, keep))
    return target


def _table(
    source: Path, calib: str | Path | None, recipe: Recipe
) -> tuple[CalibrationTable, dict[str, Any]]:
    if calib is not None and str(calib).endswith(".json") and Path(calib).is_file():
        document = Path(calib).read_bytes()
        if b'"amax"' in document:
            table = read_table(calib)
            return table, {
                "file": str(calib),
                "method": table.method,
                "images": len(table.images),
                "equalised_tensors": len(table.gains),
                "corrected_biases": len(table.bias),
            }
    made = run_calibration(source, calib, recipe)
    path = source.with_name(source.name.replace(".fp32.onnx", ".calib.json"))
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


def run_calibration(source: Path, calib: str | Path | None, recipe: Recipe) -> Calibration:
    """Calibrate with a progress bar, and say on stderr what a user should know of the set."""
    spec = read_manifest(source).spec
    if calib is None and spec.name not in BUILT_IN:
        say(
            f"calibrating {spec.name} on the built-in scenes: its scales will fit them, not your "
            "camera; give its own pictures with --calib FOLDER"
        )
    with _bar("calibrating") as advance:
        made = calibrate(
            source,
            calib or SCENES,
            images=recipe.images,
            method=recipe.method,
            equalise=recipe.equalise,
            progress=advance,
        )
        if recipe.bias_correction:
            few = network_inputs(source, calib or SCENES, min(recipe.images, _BIAS_IMAGES))
            made = replace(made, table=correct_bias(source, made.table, few))
    for text in made.skipped[:5]:
        say(f"skipped: {text}")
    if len(made.skipped) > 5:
        say(f"skipped: {len(made.skipped) - 5} more")
    if made.used < _FEW_IMAGES:
        say(f"calibrated on {made.used} images only; {IMAGES} of all conditions are better")
    return made


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


def _engine(
    graph: Path,
    folder: Path,
    builder: str,
    workspace_mib: int | None,
    targets: Sequence[str],
    result: dict[str, Any],
) -> dict[str, Any] | None:
    if builder == "none":
        result["reason"] = "--builder none"
        return None
    if builder == "auto":
        found = available_builders()
        if not any(info.ok for info in found):
            result["reason"] = "; ".join(f"{info.name}: {info.reason}" for info in found)
            return None
    target = folder / f"{graph.name.removesuffix('.onnx')}.engine"
    with _phases("building") as progress:
        report = build_engine(
            graph,
            target,
            builder=builder,  # type: ignore[arg-type]
            workspace_mib=workspace_mib,
            compute_capabilities=targets,
            progress=progress,
        )
    result["files"]["engine"] = str(report.engine)
    return _engine_facts(report)


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
    }


@contextmanager
def _progress(what: str) -> Any:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=None)
        yield progress, task


@contextmanager
def _bar(what: str) -> Any:
    with _progress(what) as (progress, task):
        advance: Callable[[int, int], None] = lambda done, of: progress.update(  # noqa: E731
            task, completed=done, total=of
        )
        yield advance


@contextmanager
def _phases(what: str) -> Any:
    with _progress(what) as (progress, task):

        def on_step(phase: str, step: int, of: int) -> None:
            progress.update(task, description=f"{what}: {phase}", completed=step, total=of)

        yield on_step


def print_export(result: dict[str, Any]) -> None:
    """What was made, as a table on stdout."""
    title = ", ".join([f"{result['model']} {result['precision'].upper()}", *result["labels"]])
    rows = [
        (kind, path, f"{Path(path).stat().st_size / 1e6:.2f}")
        for kind, path in result["files"].items()
    ]
    show(title, ("file", "path", "MB"), rows)
    calibration = result["calibration"]
    if calibration:
        say(
            f"scales: {calibration['method']} over {calibration['images']} images, "
            f"{calibration.get('equalised_tensors', 0)} tensors equalised, "
            f"{calibration.get('corrected_biases', 0)} biases corrected"
        )
    engine = result["engine"]
    if engine is None:
        say(f"no engine: {result['reason']}")
        return
    types = ", ".join(f"{count} {kind}" for kind, count in engine["convolutions"].items())
    say(
        f"engine: {engine['builder']} {engine['version']} ({engine['reason']}), "
        f"{engine['seconds']} s, peak memory {engine['peak_rss_mib']} MiB"
    )
    say(f"convolutions: {types}; layers: {engine['layers']}, {engine['reformats']} only move data")
    if result["precision"] in ("int8", "mixed") and engine["not_int8"]:
        say(f"not in INT8: {', '.join(engine['not_int8'])}")


def calibrate_command(
    onnx: str | Path,
    data: str | Path | None = None,
    *,
    recipe: Recipe | None = None,
    output: str | Path | None = None,
) -> Path:
    """`edge calibrate`: write the calibration table of an FP32 ONNX file; its path."""
    source = Path(onnx)
    manifest: Manifest = read_manifest(source)
    if manifest.precision != "fp32":
        raise CalibrationError(
            f"{source}: {manifest.precision}; scales are measured on the FP32 file"
        )
    recipe = recipe or Recipe()
    made = run_calibration(source, data, recipe)
    stem = source.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(output) if output else source.with_name(f"{stem}.calib.json")
    write_table(made.table, target)
    rows = [(name, f"{amax:.5g}") for name, amax in made.table.amax]
    show(f"{target}: {recipe.method} over {made.used} images", ("tensor", "amax"), rows)
    return target


def quantize_command(
    onnx: str | Path,
    table: str | Path,
    *,
    keep: Sequence[str] = (),
    output: str | Path | None = None,
) -> Path:
    """`edge quantize`: write the INT8 graph of an FP32 ONNX file at a table's scales; its path."""
    source = Path(onnx)
    stem = source.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(output) if output else source.with_name(f"{stem}.int8.onnx")
    write_int8(source, read_table(table), target, keep=_kept(source, keep))
    say(f"wrote {target}")
    return target
