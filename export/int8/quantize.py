"""FP32 ONNX file to the INT8 or FP16 one beside it, manifest and all."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.equalise import apply_gains
from calibration.table import CalibrationTable
from edge.artifact import read_manifest
from edge.data.overlap import DIGITS, HASHES_KEY, IMAGES_KEY
from edge.errors import ArtifactError, CalibrationError
from edge.files import sha256_of, write_file
from edge.onnx_metadata import LOW_KEY
from edge.optional import require
from edge.spec import Manifest, Precision
from export.graph.precision import convolutions, insert_qdq, to_half
from export.graph.writer import attach_manifest
from export.int8.rounding import apply_rounding

__all__ = ["int8_graph", "subtract_shifts", "write_half", "write_int8"]


def write_int8(
    source: str | Path,
    table: CalibrationTable,
    target: str | Path,
    *,
    keep: Collection[str] = (),
) -> Manifest:
    """Write `source` with Q/DQ pairs at the scales of `table`.

    Args:
        source: the FP32 ONNX file that the table was measured on.
        keep: convolutions that stay in floating point, by name.

    Raises:
        CalibrationError: the table belongs to another graph or contract, or misses a tensor.
        ArtifactError: `source` is not an FP32 ONNX file of edge.
        ValueError: `keep` names no convolution.
    """
    model, manifest = _load(source)
    table.check(sha256_of(Path(source)), manifest.spec.contract.digest, str(source))
    quantized = int8_graph(model, table, keep=keep)
    require("onnx.helper").set_model_props(quantized, {LOW_KEY: json.dumps(dict(table.low))})
    arguments = {
        "method": table.method,
        "images": len(table.images),
        "keep": sorted(keep),
        "equalised_tensors": len(table.gains),
        "corrected_biases": len(table.bias),
        "rounded_weights": len(table.rounding),
        "noise_db": dict(table.noise_db),
        "gain_db": dict(table.gain_db),
        "head_db": dict(table.head_db),
        # So that an evaluation can tell whether it uses what the scales were made from.
        IMAGES_KEY: [digest[:DIGITS] for digest in table.images],
        HASHES_KEY: list(table.hashes),
    }
    precision: Precision = "mixed" if keep else "int8"
    return _write(quantized, manifest, source, target, precision, arguments)


def int8_graph(model: Any, table: CalibrationTable, *, keep: Collection[str] = ()) -> Any:
    """A copy of an FP32 `ModelProto` with all that `table` says: gains, Q/DQ, rounding, biases.

    Raises:
        CalibrationError: the table misses a tensor, or its gains, rounding or biases do not fit.
        ValueError: `keep` names no convolution.
    """
    gains = {name: np.asarray(gain, np.float32) for name, gain in table.gains}
    with _fitting("gains"):
        equal = apply_gains(model, gains)
    quantized = insert_qdq(equal, dict(table.amax), keep=keep)
    apply_rounding(quantized, dict(table.rounding))
    with _fitting("biases"):
        subtract_shifts(quantized, {name: shift for name, shift in table.bias if name not in keep})
    return quantized


@contextmanager
def _fitting(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise CalibrationError(
            f"the table's {what} do not fit the graph ({error}); calibrate again: edge calibrate"
        ) from error


def write_half(source: str | Path, target: str | Path) -> Manifest:
    """Write `source` with its weights and tensors in FP16; inputs and outputs stay FP32.

    Raises:
        ArtifactError: `source` is not an FP32 ONNX file of edge, or a weight exceeds FP16.
    """
    model, manifest = _load(source)
    try:
        half = to_half(model)
    except ValueError as error:
        raise ArtifactError(f"{source}: {error}; use INT8 or FP32") from error
    return _write(half, manifest, source, target, "fp16", {})


def subtract_shifts(model: Any, shifts: dict[str, tuple[float, ...]]) -> None:
    """Take the mean error that rounding adds out of each convolution's bias, in place."""
    numpy_helper = require("onnx.numpy_helper")
    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in convolutions(model):
        if node.name in shifts:
            bias = constants[node.input[2]]
            value = numpy_helper.to_array(bias) - np.asarray(shifts[node.name], np.float32)
            bias.CopyFrom(numpy_helper.from_array(value, bias.name))


def _load(source: str | Path) -> tuple[Any, Manifest]:
    manifest = read_manifest(source)
    if manifest.precision != "fp32":
        raise ArtifactError(
            f"{source}: already {manifest.precision}; give the FP32 file it was made from"
        )
    onnx = require("onnx")
    try:
        model = onnx.load(str(source))
    except Exception as error:  # protobuf's and onnx's exceptions share no other base
        raise ArtifactError(f"{source}: not an ONNX file: {error}") from error
    if not convolutions(model):
        raise ArtifactError(f"{source}: the graph has no convolution")
    return model, manifest


def _write(
    model: Any,
    manifest: Manifest,
    source: str | Path,
    target: str | Path,
    precision: Precision,
    arguments: dict[str, Any],
) -> Manifest:
    written = replace(
        manifest,
        precision=precision,
        parent_sha256=sha256_of(Path(source)),
        arguments=tuple((name, json.dumps(value)) for name, value in arguments.items()),
    )
    attach_manifest(model, written)
    write_file(Path(target), model.SerializeToString())
    return written
