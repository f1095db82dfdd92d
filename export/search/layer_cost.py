"""Measured milliseconds of each convolution: on onnxruntime, or in an engine on its GPU.

A layer's cost is what it takes with all that its module brings along: activation, quantizers,
reorders. Parameter or operation counts say little of either target.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.graph import Graph
from edge.artifact import layers_path
from edge.errors import ArtifactError
from edge.runtime.backend import open_backend
from edge.runtime.ort_profile import node_ms
from export.engine.layer_report import LayerInfo
from export.int8.precision_map import layer_names

__all__ = ["attribute", "engine_layer_ms", "engine_layers", "onnx_layer_ms"]


def onnx_layer_ms(
    onnx: Graph | str | Path,
    tensor: NDArray[np.float32],
    *,
    runs: int = 12,
    threads: int | None = None,
) -> dict[str, float]:
    """Return the median milliseconds of each convolution of an ONNX file on onnxruntime.

    Args:
        tensor: a network input; quantized kernels take the same time whatever it holds.
        runs: measured ones, behind two that warm up.

    Raises:
        ArtifactError: onnxruntime cannot load the file.
    """
    onnx = Graph.open(onnx)
    return attribute(layer_names(onnx), node_ms(onnx, tensor, runs=runs, threads=threads))


def attribute(names: Iterable[str], times: Mapping[str, float]) -> dict[str, float]:
    """Sum the times of a graph's nodes by the convolution whose module they belong to.

    A node of `layers.4.act` or `layers.4.conv_nchwc` counts for the convolution `layers.4.conv`;
    what belongs to no convolution's module (concat, pool, resize) is left out.
    """
    modules: dict[str, str] = {}
    for name in names:
        modules.setdefault(name.rpartition(".")[0] or name, name)
        modules[name] = name
    found = dict.fromkeys(modules.values(), 0.0)
    for node, ms in times.items():
        owner = _owner(node, modules)
        if owner is not None:
            found[owner] += ms
    return found


def _owner(node: str, modules: Mapping[str, str]) -> str | None:
    """Return the convolution of the longest module path that a node's name begins with."""
    ends = [i for i, letter in enumerate(node) if letter in "._"] + [len(node)]
    for end in reversed(ends):
        if node[:end] in modules:
            return modules[node[:end]]
    return None


def engine_layer_ms(engine: str | Path, runs: int = 20) -> dict[str, float]:
    """Return the median milliseconds of each convolution of an engine, on its GPU.

    Convolutions that one layer computes share its time.

    Raises:
        ArtifactError: no layer report beside the engine, or not an engine.
        DeviceError, EngineMismatch, MissingDependency: no such GPU or TensorRT here.
    """
    _, summary = engine_layers(engine)
    with open_backend(engine) as backend:
        times = dict(backend.layer_times(runs))  # type: ignore[attr-defined]
    sharing = Counter(conv["layer"] for conv in summary["convolutions"])
    return {
        conv["name"]: times.get(conv["layer"], 0.0) / sharing[conv["layer"]]
        for conv in summary["convolutions"]
    }


def engine_layers(engine: str | Path) -> tuple[list[LayerInfo], dict[str, Any]]:
    """Return the layers of the report beside an engine, and its summary.

    Raises:
        ArtifactError: not there, or damaged.
    """
    path = layers_path(Path(engine))
    try:
        data = json.loads(path.read_bytes())
        layers = [
            LayerInfo(
                one["name"],
                one["type"],
                tuple(one["inputs"]),
                tuple(one["outputs"]),
                one["metadata"],
            )
            for one in data["layers"]
        ]
        summary: dict[str, Any] = data["summary"]
        if not isinstance(summary["convolutions"], list):
            raise ValueError("it lists no convolutions")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: no layer report: {error}; build the engine again") from error
    return layers, summary
