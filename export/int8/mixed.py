"""Graphs of several precisions: INT8 but for named convolutions, which compute in FP16 or FP32.

A precision map names them. It is plain JSON, so that a search's result can be read, edited and
run again on the same network with other weights or another calibration table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.table import CalibrationTable
from edge.artifact import read_manifest
from edge.errors import ArtifactError
from edge.files import sha256_of, write_file, write_json
from edge.optional import require
from edge.spec import Manifest
from export.graph.precision import convolutions
from export.graph.writer import attach_manifest
from export.int8.quantize import write_int8

__all__ = [
    "LAYER_PRECISIONS",
    "annotate",
    "cast_to_half",
    "layer_names",
    "read_map",
    "write_map",
    "write_mixed",
]

LAYER_PRECISIONS = ("int8", "fp16", "fp32")
_SCHEMA = 1
_HALF_MAX = float(np.finfo(np.float16).max)


def layer_names(source: str | Path) -> list[str]:
    """Names of an ONNX file's convolutions, in the graph's order.

    Raises:
        ArtifactError: not an ONNX file.
    """
    try:
        model = require("onnx").load(str(source), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's exceptions share no other base
        raise ArtifactError(f"{source}: not an ONNX file: {error}") from error
    return [node.name for node in convolutions(model)]


def write_mixed(
    source: str | Path,
    table: CalibrationTable,
    target: str | Path,
    layers: Mapping[str, str],
) -> Manifest:
    """Write `source` in INT8, but the convolutions of `layers` in `fp16` or `fp32`.

    The activations between them stay FP32, which every target converts for itself.

    Raises:
        CalibrationError, ArtifactError: as `write_int8`; or a weight does not fit FP16.
        ValueError: `layers` names no convolution, or an unknown precision.
    """
    wrong = {name: kind for name, kind in layers.items() if kind not in LAYER_PRECISIONS}
    if wrong:
        raise ValueError(f"precisions are {', '.join(LAYER_PRECISIONS)}; not {wrong}")
    kept = {name: kind for name, kind in layers.items() if kind != "int8"}
    manifest = write_int8(source, table, target, keep=kept)
    half = [name for name, kind in kept.items() if kind == "fp16"]
    if not half:
        return manifest
    model = require("onnx").load(str(target))
    try:
        cast_to_half(model, half)
    except ValueError as error:
        Path(target).unlink(missing_ok=True)
        raise ArtifactError(f"{source}: {error}; keep it in fp32") from error
    manifest = replace(manifest, arguments=(*manifest.arguments, ("fp16", json.dumps(half))))
    attach_manifest(model, manifest)
    write_file(Path(target), model.SerializeToString())
    return manifest


def cast_to_half(model: Any, names: list[str]) -> None:
    """Let the convolutions `names` of an onnx `ModelProto` compute in FP16, in place.

    Raises:
        ValueError: a weight lies beyond FP16's range.
    """
    helper, kinds = require("onnx.helper"), require("onnx").TensorProto
    graph = model.graph
    constants = {initializer.name: initializer for initializer in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type != "Conv" or node.name not in names:
            nodes.append(node)
            continue
        inside, outside = f"{node.name}.half_input", node.output[0]
        nodes.append(helper.make_node("Cast", [node.input[0]], [inside], inside, to=kinds.FLOAT16))
        node.input[0] = inside
        for index in range(1, len(node.input)):
            node.input[index] = _half(graph, constants[node.input[index]])
        node.output[0] = f"{node.name}.half"
        name = f"{node.name}.float"
        nodes.append(node)
        nodes.append(helper.make_node("Cast", [node.output[0]], [outside], name, to=kinds.FLOAT))
    _replace(graph, nodes)


def _half(graph: Any, constant: Any) -> str:
    """Name of the FP16 twin of a constant; the FP32 one goes where nothing else reads it."""
    numpy_helper = require("onnx.numpy_helper")
    value = numpy_helper.to_array(constant)
    if np.abs(value).max(initial=0) > _HALF_MAX:
        raise ValueError(f"{constant.name} reaches {np.abs(value).max():.3g}, FP16 ends at 65504")
    name = f"{constant.name}.half"
    if all(initializer.name != name for initializer in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float16), name))
    return name


def _replace(graph: Any, nodes: list[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    read = {name for node in graph.node for name in node.input}
    used = [initializer for initializer in graph.initializer if initializer.name in read]
    kept = [type(initializer).FromString(initializer.SerializeToString()) for initializer in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def annotate(onnx: str | Path, **arguments: Any) -> Manifest:
    """Add `arguments` to the manifest of an ONNX file; values are written as JSON.

    Raises:
        ArtifactError: not an ONNX file of edge, or it cannot be written.
    """
    path = Path(onnx)
    manifest = read_manifest(path)
    every = dict(manifest.arguments) | {k: json.dumps(v) for k, v in arguments.items()}
    manifest = replace(manifest, arguments=tuple(every.items()))
    model = require("onnx").load(str(path))
    attach_manifest(model, manifest)
    write_file(path, model.SerializeToString())
    return manifest


def write_map(
    target: str | Path, source: str | Path, layers: Mapping[str, str], **facts: Any
) -> None:
    """Write the precision of every convolution of `source` as JSON; `layers` names the non-INT8."""
    document = {
        "schema": _SCHEMA,
        "model": read_manifest(source).spec.name,
        "graph_sha256": sha256_of(Path(source)),
        **facts,
        "layers": {name: layers.get(name, "int8") for name in layer_names(source)},
    }
    write_json(document, Path(target))


def read_map(path: str | Path, source: str | Path) -> dict[str, str]:
    """The convolutions of `source` that a precision map takes out of INT8, with their precision.

    The map may come from other weights of the same network: names join the two.

    Raises:
        ArtifactError: not a precision map, or it names a layer that `source` does not have.
    """
    try:
        layers = json.loads(Path(path).read_bytes())["layers"]
        wrong = {str(kind) for kind in layers.values()} - set(LAYER_PRECISIONS)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path}: not a precision map: {error}") from error
    if wrong:
        raise ArtifactError(
            f"{path}: precision {sorted(wrong)[0]!r}; known: {', '.join(LAYER_PRECISIONS)}"
        )
    foreign = set(layers) - set(layer_names(source))
    if foreign:
        raise ArtifactError(
            f"{path}: names {sorted(foreign)[0]!r}, which {source} does not have; "
            "make a map of this model: edge search"
        )
    return {name: kind for name, kind in layers.items() if kind != "int8"}
