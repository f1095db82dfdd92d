"""FP16 as a property of the graph: of all of it, or of single convolutions of an INT8 graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.optional import require

__all__ = ["FIXED_INPUTS", "cast_to_half", "to_half"]

_HALF_MAX = float(np.finfo(np.float16).max)

# Inputs that an operation takes in FP32 or int64 whatever its data type.
FIXED_INPUTS = {"Resize": (1, 2, 3), "Reshape": (1,), "Slice": (1, 2, 3, 4)}


def to_half(model: Any) -> Any:
    """Return a copy of an FP32 `ModelProto` that computes in FP16 between FP32 inputs and outputs.

    Raises:
        ValueError: a weight does not fit FP16's range of 65504 (names it).
    """
    onnx = require("onnx")
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    fixed = {
        node.input[index]
        for node in graph.node
        for index in FIXED_INPUTS.get(node.op_type, ())
        if index < len(node.input)
    }
    for initializer in graph.initializer:
        if initializer.data_type == onnx.TensorProto.FLOAT and initializer.name not in fixed:
            initializer.CopyFrom(_half_constant(initializer))
    for node in graph.node:
        if node.op_type == "Cast":  # of imported graphs: whole numbers that meet others again
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                    attribute.i = onnx.TensorProto.FLOAT16
    _cast_borders(graph)
    del graph.value_info[:]
    return half


def _half_constant(initializer: Any) -> Any:
    numpy_helper = require("onnx.numpy_helper")
    value = numpy_helper.to_array(initializer)
    if np.abs(value).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError(
            f"{initializer.name} reaches {np.abs(value).max():.3g}, FP16 ends at 65504"
        )
    return numpy_helper.from_array(value.astype(np.float16), initializer.name)


def _cast_borders(graph: Any) -> None:
    """FP16 behind every input, FP32 before every output; the bindings keep their names."""
    helper, kinds = require("onnx.helper"), require("onnx").TensorProto
    casts_in = []
    for value in graph.input:
        inside = f"{value.name}.half"
        casts_in.append(helper.make_node("Cast", [value.name], [inside], inside, to=kinds.FLOAT16))
        _rename(graph, value.name, inside, outputs=False)
    casts_out = []
    for value in graph.output:
        inside = f"{value.name}.half"
        _rename(graph, value.name, inside, outputs=True)
        casts_out.append(
            helper.make_node("Cast", [inside], [value.name], f"{value.name}.float", to=kinds.FLOAT)
        )
    nodes = [*casts_in, *graph.node, *casts_out]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _rename(graph: Any, old: str, new: str, *, outputs: bool) -> None:
    for node in graph.node:
        for names in (node.input, node.output) if outputs else (node.input,):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def cast_to_half(model: Any, names: list[str]) -> None:
    """Make the convolutions `names` of an onnx `ModelProto` compute in FP16, in place.

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
