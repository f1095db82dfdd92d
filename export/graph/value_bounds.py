"""Bounds of the values of each tensor of a graph, from its weights and scales alone.

No image is run: a convolution's output is at most its input's bound times the sum of its weights'
magnitudes, plus the bias. After a quantizer, which clips, this is tight enough to decide whether
FP16 can hold the values. Over several layers without a quantizer the bound grows fast, and FP32 is
kept where FP16 would do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST", "array_of", "is_half", "value_bounds"]

# FP16 ends at 65504; half of that, as in `export.graph.half_range`.
LARGEST = 32752.0
_TYPES = {1: np.float32, 3: np.int8, 7: np.int64, 10: np.float16}
_LEVELS, _HALF = 128.0, 10


def array_of(tensor: Any) -> NDArray[Any]:
    """Return the values of an initializer of `edge.runtime.onnx_proto`.

    Raises:
        ValueError: `edge` writes no such data type, or does not store it in this way.
    """
    kind = _TYPES.get(tensor.data_type)
    shape = list(tensor.dims)
    if kind is None or len(tensor.raw_data) != math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError(f"the constant {tensor.name} is not stored as edge stores one")
    return np.frombuffer(tensor.raw_data, kind).reshape(shape)


class _Bounds(dict[str, float]):
    """Bound by tensor; that of a constant is computed when it is needed."""

    def __init__(self, graph: Any, inputs: Mapping[str, float]) -> None:
        super().__init__(inputs)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}

    def __missing__(self, name: str) -> float:
        self[name] = float(np.abs(self.array(name).astype(np.float64)).max(initial=0))
        return self[name]

    def array(self, name: str) -> NDArray[Any]:
        return array_of(self.constants[name])


Rule = Callable[[Any, _Bounds], float]


def value_bounds(graph: Any, inputs: Mapping[str, float]) -> Mapping[str, float]:
    """Return the largest magnitude by tensor name; infinite after an operation without a rule.

    Constants are in it too; their bounds are computed when they are needed.

    Args:
        graph: a `Graph` of `edge.runtime.onnx_proto`.
        inputs: largest magnitude of the graph's inputs.

    Raises:
        ValueError: a constant that cannot be read, or a tensor that nothing makes.
    """
    bounds = _Bounds(graph, inputs)
    for node in graph.node:
        rule = _RULES.get(node.op_type)
        try:
            bound = math.inf if rule is None else rule(node, bounds)
        except (KeyError, IndexError) as error:
            raise ValueError(f"{node.name}: nothing in the graph makes its {error}") from error
        bounds.update(dict.fromkeys(node.output, bound))
    return bounds


def _first(node: Any, bounds: _Bounds) -> float:
    return bounds[node.input[0]]


def _convolution(node: Any, bounds: _Bounds) -> float:
    sums = _magnitudes(node.input[1], bounds)
    bias = bounds.array(node.input[2]) if len(node.input) > 2 else np.float32(0)
    bound = float((bounds[node.input[0]] * sums + np.abs(bias)).max())
    # It was put in FP16 because its values fit there.
    return min(bound, LARGEST) if is_half(node, bounds.constants) else bound


def is_half(conv: Any, constants: Mapping[str, Any]) -> bool:
    """Whether a convolution's weights are FP16, as a precision map can ask for."""
    weight = constants.get(conv.input[1])
    return weight is not None and weight.data_type == _HALF


def _magnitudes(name: str, bounds: _Bounds) -> NDArray[np.float64]:
    """Sum of the weights' magnitudes by output channel."""
    maker = bounds.makers.get(name)
    if maker is None:
        weight, scale = bounds.array(name), np.float32(1)
    else:
        weight, scale = (bounds.array(maker.input[index]) for index in (0, 1))
    rows = weight.reshape(len(weight), -1)
    # One row at a time: all weights in double precision would take eight times the file.
    sums = np.array([np.abs(row.astype(np.float64)).sum() for row in rows])
    magnitudes: NDArray[np.float64] = sums * np.abs(scale)
    return magnitudes


def _dequantized(node: Any, bounds: _Bounds) -> float:
    return _LEVELS * bounds[node.input[1]]


def _clipped(node: Any, bounds: _Bounds) -> float:
    limits = [bounds[name] for name in node.input[1:] if name]
    return min(bounds[node.input[0]], max(limits)) if len(limits) == 2 else _first(node, bounds)


def _normalised(node: Any, bounds: _Bounds) -> float:
    gain, shift, mean, var = (np.abs(bounds.array(name)) for name in node.input[1:5])
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    gain = gain / np.sqrt(var + epsilon)
    return float((gain * (bounds[node.input[0]] + mean) + shift).max())


_RULES: dict[str, Rule] = {
    "Conv": _convolution,
    "QuantizeLinear": lambda node, bounds: _LEVELS,
    "DequantizeLinear": _dequantized,
    "Clip": _clipped,
    "BatchNormalization": _normalised,
    "Concat": lambda node, bounds: max(bounds[name] for name in node.input),
    "Add": lambda node, bounds: sum(bounds[name] for name in node.input),
    "Mul": lambda node, bounds: math.prod(bounds[name] for name in node.input),
    "Sigmoid": lambda node, bounds: 1.0,
    "Tanh": lambda node, bounds: 1.0,
    "Softplus": lambda node, bounds: _first(node, bounds) + math.log(2),
    **dict.fromkeys(
        (
            "Cast",
            "GlobalAveragePool",
            "LeakyRelu",
            "MaxPool",
            "Relu",
            "Reshape",
            "Resize",
            "Slice",
            "Transpose",
        ),
        _first,
    ),
}
