"""The graph of an ONNX file of edge as torch functions, for training from the file.

Only what `export.graph.writer` writes is read: one input, the raw heads as outputs. The meaning of
each operation is that of the ONNX specification, opset 19.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edge.errors import ArtifactError
from edge.optional import require

__all__ = ["Step", "read_constants", "read_steps"]

Compute = Callable[..., torch.Tensor]
Constants = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Step:
    """One node of a graph.

    Attributes:
        name: of the node.
        is_conv: whether `compute` takes a weight and a bias after the tensor.
        inputs: names of the tensors that it reads, without constants.
        output: name of the tensor that it makes.
        compute: turns the inputs' values into the output's.
    """

    name: str
    is_conv: bool
    inputs: tuple[str, ...]
    output: str
    compute: Compute


def read_constants(model: Any) -> Constants:
    """Return the initializers of an onnx `ModelProto` by name."""
    to_array = require("onnx.numpy_helper").to_array
    return {initializer.name: to_array(initializer) for initializer in model.graph.initializer}


def read_steps(model: Any) -> list[Step]:
    """Return the nodes of an FP32 `ModelProto` in their order.

    Raises:
        ArtifactError: an operation that edge does not write (names the node).
    """
    constants = read_constants(model)
    return [_step(node, constants) for node in model.graph.node]


def _step(node: Any, constants: Constants) -> Step:
    make = _MAKERS.get(node.op_type)
    if make is None:
        raise ArtifactError(f"{node.name}: {node.op_type} cannot be trained; known: {_KNOWN}")
    given = require("onnx.helper").get_attribute_value
    attributes = {a.name: given(a) for a in node.attribute}
    fixed = [constants.get(name) for name in node.input]
    inputs = tuple(name for name in node.input if name and name not in constants)
    is_conv = node.op_type == "Conv"
    return Step(node.name, is_conv, inputs, node.output[0], make(attributes, fixed))


def _padded(pads: Sequence[int], value: float) -> tuple[Compute, list[int]]:
    """Return the padding before an operation, and the padding that it does itself."""
    top, left, bottom, right = pads
    if top == bottom and left == right:
        return (lambda x: x), [top, left]
    return (lambda x: functional.pad(x, (left, right, top, bottom), value=value)), [0, 0]


def _conv(attributes: dict[str, Any], _: list[Any]) -> Compute:
    before, padding = _padded(attributes.get("pads", [0] * 4), 0.0)
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    groups = attributes.get("group", 1)
    return lambda x, weight, bias: functional.conv2d(
        before(x), weight, bias, strides, padding, dilations, groups
    )


def _max_pool(attributes: dict[str, Any], _: list[Any]) -> Compute:
    size, strides = attributes["kernel_shape"], attributes.get("strides", [1, 1])
    before, padding = _padded(attributes.get("pads", [0] * 4), float("-inf"))
    if any(2 * pad > kernel for pad, kernel in zip(padding, size, strict=True)):
        raise ArtifactError("a pool with padding over half its size cannot be trained")
    dilations, ceil = attributes.get("dilations", [1, 1]), bool(attributes.get("ceil_mode", 0))
    return lambda x: functional.max_pool2d(before(x), size, strides, padding, dilations, ceil)


def _norm(attributes: dict[str, Any], fixed: list[Any]) -> Compute:
    weight, bias, mean, variance = (torch.from_numpy(np.array(value)) for value in fixed[1:])
    gain = weight / torch.sqrt(variance + attributes.get("epsilon", 1e-5))
    shift = bias - mean * gain
    return lambda x: x * gain.to(x)[:, None, None] + shift.to(x)[:, None, None]


def _clip(_: dict[str, Any], fixed: list[Any]) -> Compute:
    low, high = (float(bound.item()) for bound in fixed[1:3])
    return lambda x: torch.clamp(x, low, high)


def _resize(attributes: dict[str, Any], fixed: list[Any]) -> Compute:
    scales = [float(scale) for scale in fixed[2]]
    whole = scales[2] == scales[3] == int(scales[2])
    if attributes.get("mode") != b"nearest" or not whole:
        raise ArtifactError("a resize other than nearest by one whole factor cannot be trained")
    return lambda x: functional.interpolate(x, scale_factor=scales[2], mode="nearest")


def _slice(_: dict[str, Any], fixed: list[Any]) -> Compute:
    start, stop, axis = (int(value[0]) for value in fixed[1:4])
    return lambda x: x.narrow(axis, start, min(stop, x.shape[axis]) - start)


def _reshape(_: dict[str, Any], fixed: list[Any]) -> Compute:
    # The file has a batch of 1; training takes any.
    shape = [int(size) for size in fixed[1][1:]]
    return lambda x: x.reshape(x.shape[0], *shape)


def _transpose(attributes: dict[str, Any], _: list[Any]) -> Compute:
    order = list(attributes["perm"])
    return lambda x: x.permute(order)


def _concat(attributes: dict[str, Any], _: list[Any]) -> Compute:
    axis = int(attributes["axis"])
    return lambda *parts: torch.cat(parts, dim=axis)


def _leaky(attributes: dict[str, Any], _: list[Any]) -> Compute:
    slope = float(attributes.get("alpha", 0.01))
    return lambda x: functional.leaky_relu(x, slope)


def _pair(compute: Compute) -> Callable[[dict[str, Any], list[Any]], Compute]:
    """Make an operation of two tensors, or of one and a constant."""

    def make(_: dict[str, Any], fixed: list[Any]) -> Compute:
        known = [torch.from_numpy(np.array(value)) for value in fixed if value is not None]
        return (lambda x: compute(x, known[0].to(x))) if known else compute

    return make


def _plain(compute: Compute) -> Callable[[dict[str, Any], list[Any]], Compute]:
    return lambda attributes, fixed: compute


_MAKERS: dict[str, Callable[[dict[str, Any], list[Any]], Compute]] = {
    "Add": _pair(torch.add),
    "BatchNormalization": _norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "GlobalAveragePool": _plain(lambda x: x.mean(dim=(2, 3), keepdim=True)),
    "LeakyRelu": _leaky,
    "MaxPool": _max_pool,
    "Mul": _pair(torch.mul),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softplus": _plain(functional.softplus),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
}
_KNOWN = ", ".join(_MAKERS)
