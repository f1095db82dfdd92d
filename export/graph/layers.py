"""The convolutions of an ONNX graph, with their precision, size and work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edge.errors import ArtifactError
from edge.files import read_file
from edge.optional import require

__all__ = ["GraphConvolution", "GraphLayers", "graph_layers"]

_FLOAT16, _INT8, _UINT8 = 10, 3, 2  # TensorProto.DataType of onnx.proto3
Shape = tuple[int, ...]


@dataclass(frozen=True)
class GraphConvolution:
    """One convolution.

    Attributes:
        dtype: `int8` where activations and weights both are, because TensorRT falls back if only
            one is; else `int8 weights`, `half` or `float`.
        input, output: shapes; empty where they are unknown, a side of 0 where that is.
        kernel: down and across.
        parameters: weights and biases.
        macs: multiply-accumulate operations a frame; 0 where the output's shape is unknown.
    """

    name: str
    dtype: str
    input: Shape
    output: Shape
    kernel: Shape
    stride: Shape
    groups: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class GraphLayers:
    """The nodes of a graph.

    Attributes:
        count: number of nodes.
        by_dtype: number of convolutions by data type.
        parameters, macs: of all convolutions.
        operations: number of nodes by operator, the most frequent first.
    """

    count: int
    by_dtype: Mapping[str, int]
    parameters: int
    macs: int
    operations: Mapping[str, int]
    convolutions: tuple[GraphConvolution, ...]


def graph_layers(path: Path) -> GraphLayers:
    """Describe the graph of an ONNX file; weights that lie in other files are not read.

    Raises:
        ArtifactError: it is not ONNX, or a convolution's weights are no constant of the graph.
        MissingDependency: onnx is not installed.
    """
    onnx = require("onnx")
    data = read_file(path)
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    except Exception as error:  # protobuf's and onnx's exceptions share no other base
        text = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{path}: onnx cannot read it: {text}") from error
    try:
        return _described(model.graph)
    except ValueError as error:
        raise ArtifactError(f"{path}: its graph is damaged: {error}") from error


def _described(graph: Any) -> GraphLayers:
    shapes: dict[str, Shape] = {
        value.name: tuple(max(0, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        for side in (graph.value_info, graph.input, graph.output)
        for value in side
    }
    makers = {output: node for node in graph.node for output in node.output}
    constants = {constant.name: constant for constant in graph.initializer}
    found = tuple(
        _convolution(node, shapes, makers, constants)
        for node in graph.node
        if node.op_type == "Conv"
    )
    return GraphLayers(
        count=len(graph.node),
        by_dtype=dict(Counter(conv.dtype for conv in found)),
        parameters=sum(conv.parameters for conv in found),
        macs=sum(conv.macs for conv in found),
        operations=dict(Counter(node.op_type for node in graph.node).most_common()),
        convolutions=found,
    )


def _convolution(
    node: Any, shapes: Mapping[str, Shape], makers: Mapping[str, Any], constants: Mapping[str, Any]
) -> GraphConvolution:
    if len(node.input) < 2 or not node.output:
        raise ValueError(f"the convolution {node.name!r} has no weights or no output")
    weight, *bias = (_constant(name, makers, constants) for name in node.input[1:])
    strides = next((tuple(a.ints) for a in node.attribute if a.name == "strides"), (1, 1))
    groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    dims, output = tuple(weight.dims), shapes.get(node.output[0], ())
    # (O, I / groups, kH, kW): each output number sums over all but the first.
    return GraphConvolution(
        name=node.name,
        dtype=_dtype(node, weight, makers),
        input=shapes.get(node.input[0], ()),
        output=output,
        kernel=dims[2:],
        stride=strides,
        groups=groups,
        parameters=prod(dims) + sum(prod(each.dims) for each in bias),
        macs=prod(output) * prod(dims[1:]) if output else 0,
    )


def _constant(name: str, makers: Mapping[str, Any], constants: Mapping[str, Any]) -> Any:
    """Find the constant that `name` is made from, through quantizers and casts."""
    origin = name
    for _ in range(len(makers) + 1):
        if origin in constants:
            return constants[origin]
        if origin not in makers or not makers[origin].input:
            break
        origin = makers[origin].input[0]
    raise ValueError(f"the weights {name!r} are no constant of the graph")


def _dtype(node: Any, weight: Any, makers: Mapping[str, Any]) -> str:
    maker = makers.get(node.input[0])
    if weight.data_type in (_INT8, _UINT8):
        quantized = maker is not None and maker.op_type == "DequantizeLinear"
        return "int8" if quantized else "int8 weights"
    return "half" if weight.data_type == _FLOAT16 else "float"
