"""Equal ranges for a tensor's channels, so that one INT8 scale serves them all.

A convolution's output channels can be divided by any positive gains, and the weights of the
convolutions behind it multiplied by them, without changing what the network computes, as long as
only operations stand between that commute with a positive gain (Nagel et al., "Data-free
quantization through weight equalization and bias correction", arXiv:1906.04721). The gains here
come from measured channel peaks, and shift what is hard to quantize from activations, which have
one scale, to weights, which have one for each output channel (Xiao et al., "SmoothQuant",
arXiv:2211.10438). A depthwise convolution takes all of it at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.optional import require

__all__ = ["apply_gains", "find_gains"]

_COMMUTES = ("LeakyRelu", "Relu", "MaxPool", "Resize")
# Beyond this a channel carries next to nothing, and scaling it up would only raise its noise.
_MOST = 32.0
# Share of the channels' differences that the weights take. Channels differ most in a network with
# depthwise convolutions: with more of that in the weights yolo-fastest-1.1 keeps .4 points of
# mAP@.5 more, the mean of four draws of the calibration pictures
# (`tools/int8/equalise_strength.py`); a single draw is off by up to as much. Plain networks keep
# no more.
STRENGTH, DEPTHWISE_STRENGTH = 0.5, 0.7
Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class _Link:
    """A tensor between the convolution that makes it and the convolutions that read it."""

    tensor: str
    maker: Any
    readers: tuple[Any, ...]


def find_gains(
    model: Any, peaks: Mapping[str, NDArray[np.float32]], strength: float | None = None
) -> dict[str, NDArray[np.float32]]:
    """Return gains (C,) by tensor name for each tensor that can be equalised.

    Args:
        model: FP32 onnx `ModelProto`.
        peaks: largest |x| of each channel (C,), by tensor name.
        strength: 0 makes the weights' ranges equal, 1 the activations' peaks; a depthwise reader
            always gets 1. By default `DEPTHWISE_STRENGTH` where the network has such convolutions,
            else `STRENGTH`.
    """
    weights = _weights(model)
    if strength is None:
        strength = DEPTHWISE_STRENGTH if _has_depthwise(model, weights) else STRENGTH
    found = {}
    for link in _links(model):
        if link.tensor in peaks:
            ranges = [_input_ranges(node, weights[node.input[1]]) for node in link.readers]
            free = all(_is_depthwise(node, weights[node.input[1]]) for node in link.readers)
            found[link.tensor] = _gain(
                peaks[link.tensor], np.max(ranges, axis=0), 1.0 if free else strength
            )
    return found


def apply_gains(model: Any, gains: Mapping[str, NDArray[np.float32]]) -> Any:
    """Return a copy of `model` with `gains` in its weights; it computes the same.

    Raises:
        ValueError: a tensor of `gains` is not one that can be equalised in this graph.
    """
    onnx, numpy_helper = require("onnx"), require("onnx.numpy_helper")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = _weights(result)
    links = {link.tensor: link for link in _links(result)}
    for tensor, gain in gains.items():
        if tensor not in links:
            raise ValueError(f"{tensor} cannot be equalised in this graph")
        weight, bias = links[tensor].maker.input[1:3]
        weights[weight] = weights[weight] / gain[:, None, None, None]
        weights[bias] = weights[bias] / gain
        for reader in links[tensor].readers:
            weights[reader.input[1]] = _scaled(reader, weights[reader.input[1]], gain)
    for initializer in result.graph.initializer:
        if initializer.name in weights:
            value = weights[initializer.name].astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    return result


def _weights(model: Any) -> Weights:
    numpy_helper = require("onnx.numpy_helper")
    used = {name for n in model.graph.node if n.op_type == "Conv" for name in n.input[1:]}
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer if i.name in used}


def _links(model: Any) -> list[_Link]:
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in model.graph.output}
    links = []
    for tensor, nodes in readers.items():
        if all(node.op_type == "Conv" and node.input[0] == tensor for node in nodes):
            maker = _maker(tensor, makers, readers, outputs)
            if maker is not None:
                links.append(_Link(tensor, maker, tuple(nodes)))
    return links


def _maker(
    tensor: str, makers: dict[str, Any], readers: dict[str, list[Any]], outputs: set[str]
) -> Any | None:
    """Return the convolution above `tensor`, if all between commutes and has no other reader."""
    node = makers.get(tensor)
    while node is not None and node.op_type in _COMMUTES:
        tensor = node.input[0]
        if len(readers[tensor]) != 1 or tensor in outputs:
            return None
        node = makers.get(tensor)
    if node is None or node.op_type != "Conv" or tensor in outputs or len(node.input) < 3:
        return None
    return node


def _groups(node: Any) -> int:
    return int(next((a.i for a in node.attribute if a.name == "group"), 1))


def _has_depthwise(model: Any, weights: Weights) -> bool:
    convs = (node for node in model.graph.node if node.op_type == "Conv")
    return any(_is_depthwise(node, weights[node.input[1]]) for node in convs)


def _is_depthwise(node: Any, weight: NDArray[np.float32]) -> bool:
    return _groups(node) == len(weight) and weight.shape[1] == 1


def _by_group(node: Any, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weight as (groups, outputs of a group, inputs of a group, kH, kW)."""
    groups = _groups(node)
    return weight.reshape(groups, len(weight) // groups, *weight.shape[1:])


def _input_ranges(node: Any, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest |w| that each input channel meets, (C,)."""
    ranges: NDArray[np.float32] = np.abs(_by_group(node, weight)).max(axis=(1, 3, 4)).reshape(-1)
    return ranges


def _scaled(
    node: Any, weight: NDArray[np.float32], gain: NDArray[np.float32]
) -> NDArray[np.float32]:
    grouped = _by_group(node, weight)
    return (grouped * gain.reshape(len(grouped), 1, -1, 1, 1)).reshape(weight.shape)


def _gain(
    peaks: NDArray[np.float32], ranges: NDArray[np.float32], strength: float
) -> NDArray[np.float32]:
    activation = np.log(np.maximum(peaks, peaks.max() * 1e-6 + 1e-12))
    weight = np.log(np.maximum(ranges, ranges.max() * 1e-6 + 1e-12))
    gain = strength * (activation - activation.max()) - (1 - strength) * (weight - weight.max())
    # Only ratios matter; about the geometric mean the clip takes both ends alike.
    limit = np.log(_MOST)
    centred: NDArray[np.float32] = np.exp(np.clip(gain - gain.mean(), -limit, limit))
    return centred.astype(np.float32)
