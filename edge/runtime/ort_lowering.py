"""A Q/DQ graph written for TensorRT, rearranged so that onnxruntime's CPU kernels run it in INT8.

TensorRT wants Q/DQ on the convolution's input alone; onnxruntime fuses a convolution only when
its output is quantized as well. So quantizers move up to their convolutions: through pooling,
resize, slice and concat without any change of the numbers (these only move values), and through
a leaky activation with one more rounding in front of it, unless that would clip what the
activation is known to let through. What stays in floating point gets its weights dequantized
once, here, rather than for every frame. A convolution over a picture's few channels stays, with
its pooling: INT8 kernels unfold their input, which for three channels costs more than it saves.

`fold_weights` alone changes no number: that is how `exact=True` runs the graph as TensorRT would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge.runtime.onnx_proto import model_class

__all__ = ["fold_weights", "is_quantized", "lower"]

_MOVES = ("MaxPool", "Resize", "Slice", "Concat")
_ACTIVATIONS = ("LeakyRelu", "Relu")
_FLOAT, _UINT8 = 1, 2
# How far a leaky activation's negative side may reach past what its quantizer holds: rare values,
# which the slope makes small. Depthwise networks lose by it; `edge evaluate --fast-int8` beside the
# plain command tells how much.
_CLIPPED = 5.0
_LEVELS = 128
# A picture has three. Their INT8 kernel takes longer than the float one, pooling and quantizing
# included (x86, `tools/benchmarks/benchmark_int8.py`; not measured on ARM).
_FEW_CHANNELS = 3
Scale = tuple[str, str]


class _Graph:
    """A parsed graph with its links: who makes and who reads each tensor, constants by name."""

    def __init__(self, model: bytes) -> None:
        self.proto = model_class().FromString(model)
        self.graph = self.proto.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.low: dict[str, float] = {}
        self.link()

    def link(self) -> None:
        self.maker = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def replace(self, nodes: list[Any]) -> None:
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        self.link()

    def value(self, name: str) -> float:
        return float(np.frombuffer(self.constants[name].raw_data, np.float32)[0])


def is_quantized(model: bytes) -> bool:
    """Whether a graph holds a quantizer at all."""
    return any(node.op_type == "QuantizeLinear" for node in _Graph(model).graph.node)


def fold_weights(model: bytes) -> bytes:
    """The model with every INT8 weight dequantized into a constant; no number changes."""
    graph = _Graph(model)
    _fold(graph, [node for node in graph.graph.node if node.op_type == "Conv"])
    return bytes(graph.proto.SerializeToString())


def lower(model: bytes, low: Mapping[str, float] | None = None) -> bytes:
    """The model arranged for INT8 kernels; see the module's text for what that changes.

    Args:
        low: lowest value by tensor, where known; a tensor that is not named is taken to fit.
    """
    graph = _Graph(model)
    graph.low = dict(low or {})
    demands = _demands(graph)
    _separate_readers(graph)
    _move_up(graph, demands)
    _as_unsigned(graph)
    fused = [node for node in graph.graph.node if node.op_type == "Conv" and _fuses(graph, node)]
    names = {node.name for node in fused}
    rest = [n for n in graph.graph.node if n.op_type == "Conv" and n.name not in names]
    _hide_relu(graph, rest)
    _fold(graph, rest)
    return bytes(graph.proto.SerializeToString())


def _hide_relu(graph: _Graph, convolutions: list[Any]) -> None:
    """ReLU as the leaky one of slope 0 behind what stays in floating point.

    Between a dequantizer and ReLU onnxruntime 1.31 takes a convolution for one of INT8 and rounds
    its weights, with one scale for all channels (WeightBiasQuantization).
    """
    for conv in convolutions:
        for reader in graph.readers.get(conv.output[0], []):
            if reader.op_type == "Relu":
                _make_leaky(reader)


def _make_leaky(relu: Any) -> None:
    relu.op_type = "LeakyRelu"
    relu.attribute.add(name="alpha", f=0.0, type=_FLOAT)


def _as_unsigned(graph: _Graph) -> None:
    """Activations as level + 128 in UINT8: the same numbers, in the type x86 multiplies fastest."""
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = graph.constants[node.input[2]]
            zero.data_type, zero.raw_data = _UINT8, b"\x80"


def _dequantizer(graph: _Graph, tensor: str) -> Any | None:
    maker = graph.maker.get(tensor)
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _fuses(graph: _Graph, conv: Any) -> bool:
    """Whether onnxruntime makes one INT8 kernel of a convolution and its neighbours."""
    readers = graph.readers.get(conv.output[0], [])
    clipped = len(readers) == 1 and readers[0].op_type == "Clip"
    if clipped:
        readers = graph.readers.get(readers[0].output[0], [])
    return (
        (clipped or not _sees_few(graph, conv))
        and _dequantizer(graph, conv.input[0]) is not None
        and len(readers) == 1
        and readers[0].op_type == "QuantizeLinear"
    )


def _sees_few(graph: _Graph, conv: Any) -> bool:
    """Whether a convolution stays in floating point because of its few input channels."""
    made = _dequantizer(graph, conv.input[1])
    weight = graph.constants.get(conv.input[1] if made is None else made.input[0])
    groups = next((a.i for a in conv.attribute if a.name == "group"), 1)
    return weight is not None and groups == 1 and weight.dims[1] <= _FEW_CHANNELS


def _of_few(graph: _Graph, tensor: str) -> bool:
    """Whether `tensor` comes from such a convolution, through its activation or not."""
    maker = graph.maker.get(tensor)
    if maker is not None and maker.op_type in _ACTIVATIONS:
        maker = graph.maker.get(maker.input[0])
    return maker is not None and maker.op_type == "Conv" and _sees_few(graph, maker)


def _demands(graph: _Graph) -> dict[tuple[str, str], Scale]:
    """The scale that each (tensor, reader's name) edge above a quantizer is to be rounded to."""
    demands: dict[tuple[str, str], Scale] = {}

    def upward(tensor: str, scale: Scale) -> None:
        maker = graph.maker.get(tensor)
        if maker is None or maker.op_type not in _MOVES:
            return
        if maker.op_type == "MaxPool" and _of_few(graph, maker.input[0]):
            return
        for name in maker.input[: len(maker.input) if maker.op_type == "Concat" else 1]:
            demands[name, maker.name] = scale
            if tensor in graph.low:
                graph.low[name] = min(graph.low[tensor], graph.low.get(name, 0.0))
            upward(name, scale)

    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear":
            demands[node.input[0], node.name] = (node.input[1], node.input[2])
            upward(node.input[0], (node.input[1], node.input[2]))
    return demands


def _separate_readers(graph: _Graph) -> None:
    """One dequantizer for each reader: onnxruntime fuses no shared one."""
    nodes: list[Any] = []
    for node in list(graph.graph.node):
        nodes.append(node)
        if node.op_type != "DequantizeLinear":
            continue
        for count, reader in enumerate(graph.readers.get(node.output[0], [])[1:], 1):
            twin = type(node).FromString(node.SerializeToString())
            twin.name = twin.output[0] = f"{node.output[0]}.{count}"
            _rewire(reader, node.output[0], twin.output[0])
            nodes.append(twin)
    graph.replace(nodes)


def _rewire(node: Any, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def _move_up(graph: _Graph, demands: dict[tuple[str, str], Scale]) -> None:
    """Round every demanded tensor where it is made, and again where a reader's scale differs."""
    by_tensor: dict[str, dict[str, Scale]] = {}
    for (tensor, reader), scale in demands.items():
        by_tensor.setdefault(tensor, {})[reader] = scale
    nodes: list[Any] = []
    for node in list(graph.graph.node):
        for tensor in node.output:
            readers = by_tensor.get(tensor)
            if readers is None or node.op_type == "DequantizeLinear":
                nodes.append(node)
                continue
            widest = max(readers.values(), key=lambda scale: graph.value(scale[0]))
            nodes.extend(_before_activation(graph, node, widest))
            nodes.append(node)
            nodes.extend(_after(graph, tensor, readers, widest))
        if not node.output:
            nodes.append(node)
    graph.replace(nodes)


def _before_activation(graph: _Graph, node: Any, scale: Scale) -> list[Any]:
    """Q/DQ between a convolution and its activation; ReLU is the leaky one of slope 0."""
    if node.op_type not in _ACTIVATIONS:
        return []
    source = node.input[0]
    maker = graph.maker.get(source)
    if maker is None or maker.op_type != "Conv" or len(graph.readers[source]) != 1:
        return []
    if _dequantizer(graph, maker.input[0]) is None or _sees_few(graph, maker):
        return []  # a float convolution fuses its activation; a quantizer between would split it
    slope = next((a.f for a in node.attribute if a.name == "alpha"), 0.0)
    room = _CLIPPED * _LEVELS * graph.value(scale[0]) * slope
    if slope and graph.low.get(node.output[0], 0.0) < -room:
        return []
    if node.op_type == "Relu":
        _make_leaky(node)
    node.input[0] = f"{source}.moved"
    return _pair(type(node), source, source, scale)


def _after(graph: _Graph, tensor: str, readers: dict[str, Scale], widest: Scale) -> list[Any]:
    by_name = {node.name: node for node in graph.readers[tensor]}
    moved = [name for name in readers if by_name[name].op_type != "QuantizeLinear"]
    if not moved and len(readers) == 1:
        return []
    added = _pair(type(next(iter(by_name.values()))), tensor, tensor, widest)
    for name in by_name:
        _rewire(by_name[name], tensor, f"{tensor}.moved")
    for count, name in enumerate(moved):
        if readers[name] != widest:
            stem = f"{tensor}.{count}"
            added += _pair(type(by_name[name]), f"{tensor}.moved", stem, readers[name])
            _rewire(by_name[name], f"{tensor}.moved", f"{stem}.moved")
    return added


def _pair(node: Any, source: str, stem: str, scale: Scale) -> list[Any]:
    levels, values = f"{stem}.levels", f"{stem}.moved"
    return [
        node(op_type="QuantizeLinear", name=levels, input=[source, *scale], output=[levels]),
        node(op_type="DequantizeLinear", name=values, input=[levels, *scale], output=[values]),
    ]


def _fold(graph: _Graph, convolutions: list[Any]) -> None:
    """Dequantize the weights of `convolutions` into constants.

    Convolutions may share a weight: it becomes one constant, and where others than these read it,
    it stays quantized for them.
    """
    names = {conv.name for conv in convolutions}
    gone, folded = set(), dict[str, str]()
    for conv in convolutions:
        node = _dequantizer(graph, conv.input[1])
        if node is None or node.input[0] not in graph.constants:
            continue
        if node.name not in folded:
            levels = graph.constants[node.input[0]]
            scale = np.frombuffer(graph.constants[node.input[1]].raw_data, np.float32)
            weight = np.frombuffer(levels.raw_data, np.int8).reshape(list(levels.dims))
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            if all(reader.name in names for reader in graph.readers[node.output[0]]):
                gone.add(node.name)
            else:
                name = f"{levels.name}.folded"
                levels = graph.graph.initializer.add(name=name, dims=list(levels.dims))
            levels.data_type, levels.raw_data = _FLOAT, weight.astype(np.float32).tobytes()
            folded[node.name] = levels.name
        conv.input[1] = folded[node.name]
    graph.replace([node for node in graph.graph.node if node.name not in gone])
