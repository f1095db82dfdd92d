"""Q/DQ pairs for INT8: the graph that TensorRT fuses and that every INT8 figure is measured with.

Q/DQ stands directly on the input of each convolution, behind activation, concat and resize: there
TensorRT fuses it into the producer's epilogue; anywhere else the next convolution falls back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import CalibrationError
from edge.optional import require

__all__ = ["QMAX", "convolutions", "insert_qdq", "quantize_weight", "shared_scales"]

QMAX = 127
# A residual or a concat reads tensors of several ranges; one scale for all saves a requantization
# and costs log2(ratio) bits, so only ranges that differ by less share it.
_SHARED_RATIO = 1.5
_TINY = float(np.finfo(np.float32).tiny)
_PASS_THROUGH = ("MaxPool", "Resize", "Slice")


def convolutions(model: Any) -> list[Any]:
    """Return the Conv nodes of an onnx `ModelProto`, in the graph's order."""
    return [node for node in model.graph.node if node.op_type == "Conv"]


def quantize_weight(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return symmetric INT8 weights (O, I, kH, kW) and their scale (O,) per output channel."""
    peak = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    # The scale of a channel next to nothing would underflow to 0; its levels are 0 with any scale.
    scale = np.where(peak > QMAX * _TINY, peak / QMAX, 1).astype(np.float32)
    levels = np.rint(weight / scale[:, None, None, None])
    return np.clip(levels, -QMAX, QMAX).astype(np.int8), scale


def shared_scales(model: Any, amax: Mapping[str, float]) -> dict[str, float]:
    """Return `amax` with one value for tensors that else would be quantized twice.

    Joined are the input and the output of an operation that only moves values, and the inputs of
    a concat or an addition with each other and the output; those joined to any of them come
    along, as long as all their own ranges are near.
    """
    group = {name: frozenset((name,)) for name in amax}
    for node in model.graph.node:
        if node.op_type in _PASS_THROUGH:
            names = [node.input[0], node.output[0]]
        elif node.op_type in ("Concat", "Add"):
            names = [*node.input, node.output[0]]
        else:
            continue
        joined = frozenset().union(*(group[name] for name in names if name in group))
        ranges = [amax[name] for name in joined]
        if ranges and max(ranges) <= _SHARED_RATIO * min(ranges):
            group.update(dict.fromkeys(joined, joined))
    return {name: max(amax[other] for other in group[name]) for name in amax}


def insert_qdq(
    model: Any,
    amax: Mapping[str, float],
    *,
    keep: Collection[str] = (),
) -> Any:
    """Return a copy of an FP32 `ModelProto` whose convolutions run in INT8.

    Symmetric, weights per output channel, activations per tensor, scales in FP32, bias in FP32.

    Args:
        model: as `write_onnx` makes it.
        amax: clipping threshold by tensor name, for each quantized convolution's input.
        keep: names of convolutions that stay in floating point.

    Raises:
        CalibrationError: a convolution's input has no threshold.
        ValueError: `keep` names no convolution.
    """
    unknown = set(keep) - {node.name for node in convolutions(model)}
    if unknown:
        raise ValueError(f"no such convolution: {', '.join(sorted(unknown))}")
    onnx = require("onnx")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {i.name: i for i in graph.initializer}
    amax = shared_scales(model, amax)
    added: dict[str, list[Any]] = {}
    for node in convolutions(result):
        if node.name in keep:
            continue
        source, weight = node.input[0], node.input[1]
        if source not in amax:
            raise CalibrationError(f"{node.name}: no threshold for its input {source}; recalibrate")
        if source not in added:
            added[source] = _activation_pair(graph, source, amax[source])
        node.input[0] = f"{source}.dequantized"
        if weight in weights:
            added[weight] = _weight_node(graph, weights.pop(weight))
        node.input[1] = f"{weight}.dequantized"
    _insert(graph, added)
    return result


def _activation_pair(graph: Any, name: str, amax: float) -> list[Any]:
    helper, numpy_helper = require("onnx.helper"), require("onnx.numpy_helper")
    scale, zero = f"{name}.scale", f"{name}.zero_point"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(max(amax / QMAX, _TINY)), scale),
            numpy_helper.from_array(np.int8(0), zero),
        ]
    )
    levels, values = f"{name}.quantized", f"{name}.dequantized"
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [levels], name=levels),
        helper.make_node("DequantizeLinear", [levels, scale, zero], [values], name=values),
    ]


def _weight_node(graph: Any, initializer: Any) -> list[Any]:
    helper, numpy_helper = require("onnx.helper"), require("onnx.numpy_helper")
    name = initializer.name
    levels, scale = quantize_weight(numpy_helper.to_array(initializer))
    graph.initializer.remove(initializer)
    for suffix, array in (
        ("quantized", levels),
        ("scale", scale),
        ("zero_point", np.zeros(len(scale), np.int8)),
    ):
        graph.initializer.append(numpy_helper.from_array(array, f"{name}.{suffix}"))
    inputs = [f"{name}.{suffix}" for suffix in ("quantized", "scale", "zero_point")]
    values = f"{name}.dequantized"
    return [helper.make_node("DequantizeLinear", inputs, [values], name=values, axis=0)]


def _insert(graph: Any, added: Mapping[str, list[Any]]) -> None:
    """Put the new nodes of each tensor after its producer, those of inputs and weights first."""
    produced = {output for node in graph.node for output in node.output}
    ordered = [new for name, nodes in added.items() if name not in produced for new in nodes]
    for node in graph.node:
        ordered.append(node)
        for output in node.output:
            ordered.extend(added.get(output, ()))
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
