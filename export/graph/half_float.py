"""The floating-point part of a Q/DQ graph in FP16, as the engine builder gets it.

The `.int8.onnx` has FP32 between its quantizers, which suits onnxruntime's kernels. A strongly
typed engine takes the types of the graph literally, and would run its heads, residuals and all
layers that are kept out of INT8 in FP32. This module makes them FP16, only in the copy that the
parser gets.

DequantizeLinear gives the type of its scale (ONNX, opset 19; onnx-tensorrt's importer likewise),
so an FP16 convolution needs FP16 scales, as NVIDIA's ModelOpt writes them (`high_precision_dtype`):
with an FP32 scale and a Cast, the Cast would stand between the pair and the convolution that it
should fuse with. Rounding changes a scale by at most 2^-11 of itself, an error 66 dB below the
signal; INT8's own steps make errors that are at least 20 dB louder. Below FP16's normal range a
scale would lose more. A convolution with such a scale keeps FP32 around it, as in the file, and so
does one whose values FP16 may not hold.

Made with protobuf alone (`edge.runtime.onnx_proto`): a Jetson that builds a ready file has no onnx.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from edge.optional import require
from edge.runtime.onnx_proto import model_class
from export.graph.precision import FIXED_INPUTS
from export.graph.value_bounds import LARGEST, array_of, is_half, value_bounds

__all__ = ["half_floats"]

_FLOAT, _HALF, _INT_ATTRIBUTE = 1, 10, 2
_OLDEST_OPSET = 19
_LEAST_SCALE = float(np.finfo(np.float16).smallest_normal)
# A batch norm that could not be folded into a convolution: small variances vanish in FP16.
_NEVER_HALF = ("BatchNormalization",)
_ACTIVATIONS = ("Clip", "LeakyRelu", "Relu")
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def half_floats(
    model: bytes, peak: float, keep: Collection[str] = ()
) -> tuple[bytes, tuple[str, ...]]:
    """Make the float tensors of a Q/DQ model FP16, and name the convolutions that stay in FP32.

    Inputs and outputs stay FP32; a convolution that already has FP16 weights stays FP16.

    Args:
        model: an ONNX file's bytes.
        peak: the largest magnitude of the network's input.
        keep: convolutions that stay in FP32 in any case.

    Raises:
        MissingDependency: protobuf is not installed.
        ValueError: its opset is older than 19, or it is not as `edge` writes one.
    """
    proto = _parsed(model)
    opset = max((one.version for one in proto.opset_import if not one.domain), default=0)
    if opset < _OLDEST_OPSET:
        raise ValueError(f"opset {opset} has no FP16 scales; they came with {_OLDEST_OPSET}")
    _drop_casts(proto.graph)
    half = _which(proto.graph, peak, keep)
    convs = [node.name for node in proto.graph.node if node.op_type == "Conv"]
    _retype(proto.graph, half)
    return bytes(proto.SerializeToString()), tuple(name for name in convs if not half[name])


def _parsed(model: bytes) -> Any:
    decode_error = require("google.protobuf.message").DecodeError
    try:
        proto = model_class().FromString(model)
    except decode_error as error:
        raise ValueError(f"not an ONNX file: {error}") from error
    names = [node.name for node in proto.graph.node]
    if len(set(names)) < len(names):
        raise ValueError("two nodes of the graph have one name, or none")
    return proto


def _drop_casts(graph: Any) -> None:
    """Remove the casts around layers that a precision map put in FP16; `_retype` adds its own."""
    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Cast":
            to_float = any(a.name == "to" and a.i == _FLOAT for a in node.attribute)
            old, new = (node.input[0], node.output[0])[:: 1 if to_float else -1]
            if old in renamed:
                raise ValueError(f"{node.name}: casts {old} once more")
            renamed[old] = new
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                for _ in renamed:
                    name = renamed.get(name, name)
                names[index] = name
    _replace(graph, [node for node in graph.node if node.op_type != "Cast"])


def _replace(graph: Any, nodes: list[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _which(graph: Any, peak: float, keep: Collection[str]) -> dict[str, bool]:
    """Whether a node computes in FP16, by its name."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    bounds = value_bounds(graph, {value.name: peak for value in graph.input})
    half: dict[str, bool] = {}
    for node in graph.node:
        if node.op_type in _QUANTIZERS:
            half[node.name] = _scale_fits(node, constants)
        elif node.op_type == "Conv" and is_half(node, constants):
            half[node.name] = True
        else:
            names = [*(node.input[index] for index in _floats(node)), *node.output]
            fits = all(bounds[name] <= LARGEST for name in names)
            half[node.name] = fits and node.op_type not in _NEVER_HALF and node.name not in keep
    _agree(graph, half)
    return half


def _scale_fits(node: Any, constants: dict[str, Any]) -> bool:
    if node.input[1] not in constants:
        raise ValueError(f"{node.name}: its scale is no constant")
    scale = array_of(constants[node.input[1]])
    return bool(scale.min() >= _LEAST_SCALE and scale.max() <= LARGEST)


def _floats(node: Any) -> list[int]:
    """Return which inputs of a node have its float type."""
    if node.op_type in _QUANTIZERS:
        return [0, 1] if node.op_type == "QuantizeLinear" else [1]
    fixed = FIXED_INPUTS.get(node.op_type, ())
    return [index for index, name in enumerate(node.input) if name and index not in fixed]


def _agree(graph: Any, half: dict[str, bool]) -> None:
    """Give a convolution and what fuses with it one type, so that no Cast comes between them."""
    makers = {name: node for node in graph.node for name in node.output}
    fused = [
        (node.name, makers[node.input[index]].name)
        for node in graph.node
        for index in _floats(node)
        if node.input[index] in makers and _fuses(makers[node.input[index]], node)
    ]
    before = -1
    while before != (before := sum(half.values())):
        for first, second in fused:
            half[first] = half[second] = half[first] and half[second]
    for node in graph.node:
        if node.op_type == "QuantizeLinear":  # it reads any type, so it takes that of its input
            maker = makers.get(node.input[0])
            half[node.name] &= maker is not None and half[maker.name]


def _fuses(maker: Any, reader: Any) -> bool:
    return maker.op_type == "DequantizeLinear" or (
        maker.op_type == "Conv" and reader.op_type in _ACTIVATIONS
    )


class _Casts:
    """Collects nodes, with each tensor in the types that its readers need, cast once."""

    def __init__(self, graph: Any, half: dict[str, bool]) -> None:
        self.graph, self.half = graph, half
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.nodes: list[Any] = []
        # A tensor's name in FP32 and in FP16, as far as it exists in both.
        self.names: dict[tuple[str, bool], str] = {(v.name, False): v.name for v in graph.input}

    def constant(self, name: str, half: bool) -> str:
        tensor = self.constants[name]
        if tensor.data_type not in (_FLOAT, _HALF) or (tensor.data_type == _HALF) == half:
            return name
        if (name, half) not in self.names:
            self.names[name, half] = twin = f"{name}.{'fp16' if half else 'fp32'}"
            kind, code = (np.float16, _HALF) if half else (np.float32, _FLOAT)
            raw = array_of(tensor).astype(kind).tobytes()
            self.graph.initializer.add(
                name=twin, data_type=code, dims=list(tensor.dims), raw_data=raw
            )
        return self.names[name, half]

    def wanted(self, name: str, half: bool) -> str:
        if name in self.constants:
            return self.constant(name, half)
        if (name, half) not in self.names:
            self._cast(self.names[name, not half], name, half)
        return self.names[name, half]

    def _cast(self, source: str, name: str, half: bool) -> None:
        target = f"{name}.fp16" if half else name if source != name else f"{name}.fp32"
        node = self.graph.node.add(op_type="Cast", input=[source], output=[target])
        node.name = f"{target}.cast"
        node.attribute.add(name="to", i=_HALF if half else _FLOAT, type=_INT_ATTRIBUTE)
        self.nodes.append(node)
        self.names[name, half] = target

    def add(self, node: Any) -> None:
        half = self.half[node.name]
        for index in _floats(node):
            node.input[index] = self.wanted(node.input[index], half)
        self.nodes.append(node)
        if node.op_type == "QuantizeLinear":
            return
        for index, name in enumerate(node.output):
            leaves = half and name in self.outputs
            self.names[name, half] = node.output[index] = f"{name}.fp16" if leaves else name
            if leaves:
                self._cast(f"{name}.fp16", name, half=False)


def _retype(graph: Any, half: dict[str, bool]) -> None:
    casts = _Casts(graph, half)
    for node in list(graph.node):
        casts.add(node)
    _replace(graph, casts.nodes)
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    graph.ClearField("value_info")  # its types are no longer right
