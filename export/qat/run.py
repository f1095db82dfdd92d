"""`edge qat`: fine-tune a network for INT8, on pictures with or without labels."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.pipeline import calibrate
from calibration.recipe import CalibrationRecipe
from calibration.scales import network_inputs
from calibration.table import CalibrationTable, read_table, write_table
from edge.artifact import read_manifest
from edge.built_in import BUILT_IN
from edge.data.datasets import open_dataset
from edge.data.separate import fingerprints_of, refuse_shared
from edge.errors import ArtifactError, CalibrationError
from edge.files import make_folder
from edge.measure.accuracy import labelled
from edge.measure.evaluate import EvaluateOptions, evaluate
from edge.measure.noise import head_noise, heads_of
from edge.reporting import bar, say
from edge.train.pictures import read_pictures
from export.int8.quantize import write_int8
from export.options import SourceOptions
from export.qat.course import imitate, learn_labels
from export.qat.options import QatOptions, QatResult
from export.qat.prepare import Prepared, prepare, write_trained
from export.source import fp32_onnx

__all__ = ["qat"]

_HELD_ONE_IN = 8
_FEW_IMAGES = 64
Array = NDArray[np.float32]


def qat(model: str | Path, data: str | Path, options: QatOptions | None = None) -> QatResult:
    """Write NAME.qat.fp32.onnx, its NAME.qat.calib.json and the NAME.qat.int8.onnx of both.

    Args:
        model: as `export.source.fp32_onnx` takes it.
        data: pictures, as `open_dataset` takes them; they are held in memory as network inputs.

    Raises:
        ArtifactError: the model is not FP32, or cannot be trained.
        CalibrationError: too few pictures, a table of another graph, or the training diverged.
        DataError: pictures or labels cannot be used.
        MissingDependency: torch or onnx is missing.
    """
    options = options or QatOptions()
    folder, started = make_folder(options.output), time.monotonic()
    source = _fp32_file(model, folder, options)
    _check_validation(source, data, options)
    inputs = [array.copy() for _, array in network_inputs(source, data, options.images)]
    learned, held = _split(inputs)
    table = _table(source, data, options)
    prepared = prepare(source, table, keep=options.keep)
    with bar("learning") as advance:

        def report(step: int, loss: float) -> None:
            advance(step, options.steps)

        if options.labels:
            spec = read_manifest(source).spec
            pictures, _, _ = read_pictures(open_dataset(data, spec.classes, options.images), spec)
            trained = learn_labels(prepared, pictures, options, report)
        else:
            trained = imitate(prepared, learned, options, report)
    files = _write(prepared, trained, folder, learned, options)
    before, after, scores = _judge(prepared, files["int8"], held, options.val)
    return QatResult(
        model=str(model),
        files={kind: str(path) for kind, path in files.items()},
        images=len(learned),
        held=len(held),
        steps=options.steps,
        ptq_db=round(before, 2),
        qat_db=round(after, 2),
        map50=scores,
        better=after > before if scores is None else scores["qat"] >= scores["ptq"],
        seconds=round(time.monotonic() - started, 1),
    )


def _fp32_file(model: str | Path, folder: Path, options: QatOptions) -> Path:
    """Return the FP32 file of the model: itself, where one is given."""
    if str(model) not in BUILT_IN and Path(model).suffix == ".onnx" and options.resize is None:
        precision = read_manifest(model).precision
        if precision != "fp32":
            raise ArtifactError(f"{model}: {precision}; give the FP32 file it was made from")
        return Path(model)
    return fp32_onnx(model, folder, SourceOptions(resize=options.resize)).path


def _check_validation(source: Path, data: str | Path, options: QatOptions) -> None:
    """Refuse a `val` without labels or with training pictures, before the training.

    Raises:
        DataError: it cannot be used.
    """
    if options.val is None:
        return
    validation = labelled(options.val, read_manifest(source).spec.classes)
    known = fingerprints_of(open_dataset(data, limit=options.images).items)
    if options.table is not None:
        table = read_table(options.table)
        known.digests.update(table.images)
        known.hashes.extend(table.hashes)
    note = refuse_shared(known, validation, str(data), allowed=options.allow_overlap)
    if note is not None:
        say(note)


def _split(arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Return what to learn from, and what is held back to measure the gain."""
    if len(arrays) < 2:
        raise CalibrationError(f"learning takes two pictures or more, there are {len(arrays)}")
    if len(arrays) < _FEW_IMAGES:
        say(f"learning from {len(arrays)} images only; some hundreds of all conditions are better")
    step = min(_HELD_ONE_IN, len(arrays))
    held = list(arrays[step - 1 :: step])
    return [array for i, array in enumerate(arrays) if (i + 1) % step], held


def _table(source: Path, data: str | Path, options: QatOptions) -> CalibrationTable:
    """Return the table to start from: the one given, or one calibrated on the pictures."""
    if options.table is not None:
        return read_table(options.table)
    return calibrate(source, data, CalibrationRecipe(images=options.images)).table


def _write(
    prepared: Prepared, trained: Any, folder: Path, arrays: Sequence[Array], options: QatOptions
) -> dict[str, Path]:
    stem = prepared.source.name.removesuffix(".onnx").removesuffix(".fp32")
    files = {kind: folder / f"{stem}.qat.{kind}.onnx" for kind in ("fp32", "int8")}
    files["calibration"] = folder / f"{stem}.qat.calib.json"
    facts = {
        "qat_steps": options.steps,
        "qat_batch": options.batch,
        "qat_peak": options.rate,
        "qat_seed": options.seed,
        "qat_scales": not options.calibrated_scales,
        "qat_labels": options.labels,
        "qat_images": len(arrays),
    }
    table = write_trained(prepared, trained, files["fp32"], arrays, facts)
    write_table(table, files["calibration"])
    write_int8(files["fp32"], table, files["int8"], keep=prepared.keep)
    return files


def _judge(
    prepared: Prepared, trained: Path, held: Sequence[Array], val: str | Path | None
) -> tuple[float, float, dict[str, float] | None]:
    """Return signal to noise of the heads in dB before and after training, and mAP@.5 on `val`."""
    wanted = heads_of(prepared.source, held)
    with tempfile.TemporaryDirectory() as folder:
        calibrated = Path(folder) / "calibrated.int8.onnx"
        write_int8(prepared.source, prepared.table, calibrated, keep=prepared.keep)
        before, after = (head_noise(wanted, heads_of(path, held)) for path in (calibrated, trained))
        if val is None:
            return before, after, None
        graphs = {"fp32": prepared.source, "ptq": calibrated, "qat": trained}
        # Overlap was refused before the training, by the same rule.
        options = EvaluateOptions(allow_overlap=True)
        scores = {kind: evaluate(graph, val, options).map50 for kind, graph in graphs.items()}
        return before, after, scores
