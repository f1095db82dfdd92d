"""From an FP32 ONNX file to the INT8, mixed or FP16 one beside it, manifest and all."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.graph import Graph
from calibration.int8_graph import int8_graph
from calibration.table import CalibrationTable
from edge.data.overlap import DIGITS, HASHES_KEY, IMAGES_KEY
from edge.errors import ArtifactError
from edge.onnx_metadata import LOW_KEY
from edge.optional import require
from edge.spec import Precision
from export.graph.precision import cast_to_half, to_half
from export.graph.writer import save_graph

__all__ = ["LAYER_PRECISIONS", "annotate", "write_half", "write_int8", "write_mixed"]

LAYER_PRECISIONS = ("int8", "fp16", "fp32")


_IMPORTED = ("head", "iou", "sure", "evidence")


def write_int8(
    source: Graph | str | Path,
    table: CalibrationTable,
    target: str | Path,
    *,
    keep: Collection[str] = (),
) -> Graph:
    """Write `source` with Q/DQ pairs at the scales of `table`.

    Args:
        source: the FP32 ONNX file that the table was measured on.
        keep: convolutions that stay in FP32, by name.

    Raises:
        CalibrationError: the table belongs to another graph or contract, or misses a tensor.
        ArtifactError: `source` is not an FP32 ONNX file of edge.
        ValueError: `keep` names no convolution.
    """
    return write_mixed(source, table, target, dict.fromkeys(keep, "fp32"))


def write_mixed(
    source: Graph | str | Path,
    table: CalibrationTable,
    target: str | Path,
    layers: Mapping[str, str],
) -> Graph:
    """Write `source` in INT8, but the convolutions of `layers` in `fp16` or `fp32`.

    The activations between them stay FP32, which every target converts for itself.

    Raises:
        CalibrationError, ArtifactError: as `write_int8`; or a weight does not fit FP16.
        ValueError: `layers` names no convolution, or an unknown precision.
    """
    wrong = {name: kind for name, kind in layers.items() if kind not in LAYER_PRECISIONS}
    if wrong:
        raise ValueError(f"precisions are {', '.join(LAYER_PRECISIONS)}; not {wrong}")
    source = _fp32(source)
    table.check(source.sha256, source.manifest.spec.contract.digest, str(source))
    keep = {name for name, kind in layers.items() if kind != "int8"}
    quantized = int8_graph(source.model, table, keep=keep)
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
    half = [name for name, kind in layers.items() if kind == "fp16"]
    if half:
        try:
            cast_to_half(quantized, half)
        except ValueError as error:
            raise ArtifactError(f"{source}: {error}; keep it in fp32") from error
        arguments["fp16"] = half
    return _save(quantized, source, target, "mixed" if keep else "int8", arguments)


def write_half(source: Graph | str | Path, target: str | Path) -> Graph:
    """Write `source` with its weights and tensors in FP16; inputs and outputs stay FP32.

    Raises:
        ArtifactError: `source` is not an FP32 ONNX file of edge, or a weight exceeds FP16.
    """
    source = _fp32(source)
    try:
        half = to_half(source.model)
    except ValueError as error:
        raise ArtifactError(f"{source}: {error}; use INT8 or FP32") from error
    return _save(half, source, target, "fp16", {})


def annotate(onnx: Graph | str | Path, **arguments: Any) -> Graph:
    """Add `arguments`, as JSON, to the manifest of an ONNX file; return the graph as it is now.

    Raises:
        ArtifactError: not an ONNX file of edge, or it cannot be written.
    """
    graph = Graph.open(onnx)
    every = dict(graph.manifest.arguments) | {k: json.dumps(v) for k, v in arguments.items()}
    manifest = replace(graph.manifest, arguments=tuple(every.items()))
    return save_graph(graph.model, manifest, graph.path)


def _fp32(source: Graph | str | Path) -> Graph:
    graph = Graph.open(source)
    if graph.manifest.precision != "fp32":
        raise ArtifactError(
            f"{graph}: already {graph.manifest.precision}; give the FP32 file it was made from"
        )
    if not graph.convolutions:
        raise ArtifactError(f"{graph}: the graph has no convolution")
    return graph


def _save(
    model: Any,
    source: Graph,
    target: str | Path,
    precision: Precision,
    arguments: dict[str, Any],
) -> Graph:
    manifest = replace(
        source.manifest,
        precision=precision,
        parent_sha256=source.sha256,
        arguments=(
            # How an imported detector was recognised holds for what is made of it, too.
            *((name, text) for name, text in source.manifest.arguments if name in _IMPORTED),
            *((name, json.dumps(value)) for name, value in arguments.items()),
        ),
    )
    return save_graph(model, manifest, target)
