"""`edge qat`: fine-tune a network for INT8, on pictures with or without labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.calibrate import calibrate, network_inputs
from calibration.table import CalibrationTable, read_table, write_table
from edge.artifact import read_manifest
from edge.built_in import BUILT_IN
from edge.data.datasets import open_dataset
from edge.errors import ArtifactError, CalibrationError, DataError
from edge.files import make_folder, write_json
from edge.measure.evaluate import evaluate
from edge.measure.noise import head_noise, heads_of
from edge.optional import require
from edge.reporting import bar, say
from export.int8.correction import correct_bias
from export.int8.quantize import write_int8
from export.qat.course import Course, imitate, learn_labels
from export.qat.prepare import Prepared, prepare, write_trained
from export.source import fp32_onnx

__all__ = ["qat"]

_HELD = 8
_BIAS_IMAGES = 32
_FEW_IMAGES = 64
Array = NDArray[np.float32]


def qat(
    model: str | Path,
    data: str | Path,
    *,
    images: int = 256,
    table: str | Path | None = None,
    steps: int = 1000,
    batch: int = 4,
    rate: float = 0.01,
    learn_scales: bool = True,
    labels: bool = False,
    val: str | Path | None = None,
    keep: Sequence[str] = (),
    resize: str | None = None,
    seed: int = 0,
    output: str | Path = "out",
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Write NAME.qat.fp32.onnx, its NAME.qat.calib.json and the NAME.qat.int8.onnx of both.

    Args:
        model: as `export.source.fp32_onnx` takes it.
        data: pictures, as `open_dataset` takes them; they are held in memory as network inputs.
        images: at most so many; one in eight is held back.
        table: to start from; by default the pictures that are learned from are calibrated on.
        steps, batch, rate, learn_scales, seed: see `export.qat.course.Course`.
        labels: learn from the pictures' boxes; by default from the FP32 network's heads.
        val: labelled pictures to judge by.
        keep: convolutions that stay in floating point, by name.
        resize: how the model was trained.
        output: folder of the files.

    Returns:
        `model`, `files` by kind, `images`, `held`, `steps`, `ptq_db`, `qat_db` (signal to noise of
        the raw heads against the FP32 network's on the images held back), `map50` (of `fp32`,
        `ptq` and `qat` on `val`, 0..1, or None), `better`, `seconds`.

    Raises:
        ArtifactError, CalibrationError, DataError, MissingDependency: one line each.
    """
    if labels and val is None:
        raise DataError("learning from boxes moves the heads; to judge it give --val FOLDER")
    folder, started = Path(output), time.monotonic()
    make_folder(folder)
    source = _source(model, folder, resize)
    learned, held = _split([array.copy() for _, array in network_inputs(source, data, images)])
    scales = read_table(table) if table else _calibrated(source, data, images)
    prepared = prepare(source, scales, keep=keep)
    course = Course(steps, batch, rate, seed, learn_scales)
    with bar("learning") as advance:

        def report(step: int, loss: float) -> None:
            advance(step, steps)

        if labels:
            pictures = _pictures(source, data, images)
            trained = learn_labels(prepared, pictures, course, report)
        else:
            trained = imitate(prepared, learned, course, report)
    facts = {**asdict(course), "labels": labels, "images": len(learned)}
    files = _write(prepared, trained, folder, learned, {f"qat_{k}": v for k, v in facts.items()})
    result = {
        "model": str(model),
        "files": {kind: str(path) for kind, path in files.items()},
        "images": len(learned),
        "held": len(held),
        "steps": steps,
        **_judge(prepared, files["int8"], held, val),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(result, json_path)
    return result


def _source(model: str | Path, folder: Path, resize: str | None) -> Path:
    """The FP32 file itself, where one is given."""
    if str(model) not in BUILT_IN and Path(model).suffix == ".onnx" and resize is None:
        precision = read_manifest(model).precision
        if precision != "fp32":
            raise ArtifactError(f"{model}: {precision}; give the FP32 file it was made from")
        return Path(model)
    return fp32_onnx(model, folder, resize=resize)


def _split(arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    if len(arrays) < 2:
        raise CalibrationError(f"learning takes two pictures or more, there are {len(arrays)}")
    if len(arrays) < _FEW_IMAGES:
        say(f"learning from {len(arrays)} images only; some hundreds of all conditions are better")
    step = min(_HELD, len(arrays))
    held = list(arrays[step - 1 :: step])
    return [array for i, array in enumerate(arrays) if (i + 1) % step], held


def _calibrated(source: Path, data: str | Path, images: int) -> CalibrationTable:
    table = calibrate(source, data, images=images).table
    return correct_bias(source, table, network_inputs(source, data, min(images, _BIAS_IMAGES)))


def _pictures(source: Path, data: str | Path, images: int) -> Sequence[Any]:
    spec = read_manifest(source).spec
    dataset = open_dataset(data, spec.classes, images)
    pictures: Sequence[Any] = require("edge.train.pictures").read_pictures(dataset, spec)[0]
    return pictures


def _write(
    prepared: Prepared, trained: Any, folder: Path, arrays: Sequence[Array], facts: dict[str, Any]
) -> dict[str, Path]:
    stem = prepared.source.name.removesuffix(".onnx").removesuffix(".fp32")
    files = {kind: folder / f"{stem}.qat.{kind}.onnx" for kind in ("fp32", "int8")}
    files["calibration"] = folder / f"{stem}.qat.calib.json"
    table = write_trained(prepared, trained, files["fp32"], arrays, facts)
    write_table(table, files["calibration"])
    write_int8(files["fp32"], table, files["int8"], keep=prepared.keep)
    return files


def _judge(
    prepared: Prepared, trained: Path, held: Sequence[Array], val: str | Path | None
) -> dict[str, Any]:
    """Signal to noise of the heads, dB, before and after training, and mAP where there is `val`."""
    wanted = heads_of(prepared.source, held)
    before = trained.with_name(f".{trained.name}.before.onnx")
    try:
        write_int8(prepared.source, prepared.table, before, keep=prepared.keep)
        noise = [head_noise(wanted, heads_of(path, held)) for path in (before, trained)]
        graphs = {"fp32": prepared.source, "ptq": before, "qat": trained}
        scores = val and {kind: evaluate(path, val)["map50"] for kind, path in graphs.items()}
    finally:
        before.unlink(missing_ok=True)
    return {
        "ptq_db": round(noise[0], 2),
        "qat_db": round(noise[1], 2),
        "map50": scores or None,
        "better": scores["qat"] >= scores["ptq"] if scores else noise[1] > noise[0],
    }
