"""The ONNX nodes of each kind of torch module; batch norm is folded into its convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ArtifactError
from edge.optional import require
from export.graph.builder import GraphBuilder

__all__ = ["convolution", "module_emitters"]


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * 2


def _numpy(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().double().numpy()
    return array


def _fold(conv: Any, norm: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight and bias of `conv` followed by `norm`, computed in double precision."""
    weight = _numpy(conv.weight)
    bias = np.zeros(len(weight)) if conv.bias is None else _numpy(conv.bias)
    if norm is not None:
        with np.errstate(invalid="ignore", divide="ignore"):  # `_weights` refuses the result
            gain = 1 / np.sqrt(_numpy(norm.running_var) + norm.eps)
        gain = gain * (_numpy(norm.weight) if norm.affine else 1.0)
        bias = (bias - _numpy(norm.running_mean)) * gain
        bias = bias + (_numpy(norm.bias) if norm.affine else 0.0)
        weight = weight * gain[:, None, None, None]
    return weight.astype(np.float32), bias.astype(np.float32)


def _weights(graph: GraphBuilder, name: str, array: NDArray[np.float32]) -> str:
    if not np.isfinite(array).all():
        raise ArtifactError(f"{name} holds NaN or infinity: the weights are damaged")
    return graph.constant(name, array)


def convolution(graph: GraphBuilder, path: str, conv: Any, inputs: list[str], norm: Any) -> str:
    """Add a convolution, with the batch norm `norm` after it (or None) folded in.

    Returns:
        The name of its output.

    Raises:
        ArtifactError: weights are NaN or infinite, or the padding is not of zeros.
    """
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise ArtifactError(f"{path}: its padding has no ONNX form; pad with zeros, in numbers")
    weight, bias = _fold(conv, norm)
    constants = [_weights(graph, f"{path}.weight", weight), _weights(graph, f"{path}.bias", bias)]
    return graph.add(
        "Conv",
        inputs + constants,
        path,
        kernel_shape=_pair(conv.kernel_size),
        strides=_pair(conv.stride),
        pads=list(getattr(conv, "pads", _pair(conv.padding) * 2)),
        dilations=_pair(conv.dilation),
        group=conv.groups,
    )


def _norm(graph: GraphBuilder, path: str, norm: Any, inputs: list[str]) -> str:
    values = {
        "weight": norm.weight,
        "bias": norm.bias,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }
    constants = [
        _weights(graph, f"{path}.{name}", _numpy(v).astype(np.float32))
        for name, v in values.items()
    ]
    return graph.add("BatchNormalization", inputs + constants, path, epsilon=norm.eps)


def _swish(graph: GraphBuilder, path: str, _: Any, inputs: list[str]) -> str:
    gate = graph.add("Sigmoid", inputs, f"{path}.gate")
    return graph.add("Mul", [inputs[0], gate], path)


def _mish(graph: GraphBuilder, path: str, _: Any, inputs: list[str]) -> str:
    soft = graph.add("Softplus", inputs, f"{path}.softplus")
    gate = graph.add("Tanh", [soft], f"{path}.gate")
    return graph.add("Mul", [inputs[0], gate], path)


def _relu6(graph: GraphBuilder, path: str, _: Any, inputs: list[str]) -> str:
    low = graph.constant(f"{path}.low", np.float32(0))
    high = graph.constant(f"{path}.high", np.float32(6))
    return graph.add("Clip", [*inputs, low, high], path)


def _max_pool(graph: GraphBuilder, path: str, pool: Any, inputs: list[str]) -> str:
    return graph.add(
        "MaxPool",
        inputs,
        path,
        kernel_shape=_pair(pool.kernel_size),
        strides=_pair(pool.stride),
        pads=_pair(pool.padding) * 2,
        dilations=_pair(pool.dilation),
        ceil_mode=int(pool.ceil_mode),
    )


def _darknet_max_pool(graph: GraphBuilder, path: str, pool: Any, inputs: list[str]) -> str:
    return graph.add(
        "MaxPool",
        inputs,
        path,
        kernel_shape=[pool.size] * 2,
        strides=[pool.stride] * 2,
        pads=list(pool.pads),
    )


def _upsample(graph: GraphBuilder, path: str, upsample: Any, inputs: list[str]) -> str:
    if upsample.mode != "nearest" or not isinstance(upsample.scale_factor, (int, float)):
        raise ArtifactError(f"{path}: has no ONNX form; upsample to the nearest, by one factor")
    factor = float(upsample.scale_factor)
    scales = graph.constant(f"{path}.scales", np.array([1, 1, factor, factor], np.float32))
    return graph.add(
        "Resize",
        [*inputs, "", scales],
        path,
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )


def _channel_group(graph: GraphBuilder, path: str, part: Any, inputs: list[str]) -> str:
    bounds = [
        graph.constant(f"{path}.{name}", np.array([value], np.int64))
        for name, value in (("start", part.start), ("stop", part.stop), ("axis", 1))
    ]
    return graph.add("Slice", [*inputs, *bounds], path)


def _reorg(graph: GraphBuilder, path: str, reorg: Any, inputs: list[str]) -> str:
    """As `Reorg.forward`: reshape, transpose, reshape."""
    n, c, h, w = graph.shapes[inputs[0]]
    s = reorg.stride
    split = graph.constant(f"{path}.split", np.array([n, c * h // (s * s), s, w, s], np.int64))
    joined = graph.constant(f"{path}.joined", np.array([n, c * s * s, h // s, w // s], np.int64))
    current = graph.add("Reshape", [inputs[0], split], f"{path}.0")
    current = graph.add("Transpose", [current], f"{path}.1", perm=[0, 2, 4, 1, 3])
    return graph.add("Reshape", [current, joined], path)


def _squared_sizes(graph: GraphBuilder, path: str, sizes: Any, inputs: list[str]) -> str:
    """As `SquaredSizes.forward`, in floating point alone: a select has no INT8 or FP16 form."""
    is_size = _numpy(sizes.is_size).astype(np.float32)
    parts = {"minus": np.float32(-1), "of_size": -2 * is_size, "others": 1 - is_size}
    parts["ln_4"] = np.log(4).astype(np.float32) * is_size
    names = {key: graph.constant(f"{path}.{key}", value) for key, value in parts.items()}
    turned = graph.add("Mul", [inputs[0], names["minus"]], f"{path}.0")
    soft = graph.add("Softplus", [turned], f"{path}.1")
    size = graph.add("Mul", [soft, names["of_size"]], f"{path}.2")
    size = graph.add("Add", [size, names["ln_4"]], f"{path}.3")
    other = graph.add("Mul", [inputs[0], names["others"]], f"{path}.4")
    return graph.add("Add", [size, other], path)


def _plain(op: str, **attributes: Any) -> Callable[..., str]:
    def emit(graph: GraphBuilder, path: str, _: Any, inputs: list[str]) -> str:
        return graph.add(op, inputs, path, **attributes)

    return emit


def module_emitters() -> dict[type, Callable[..., str]]:
    """Return, by type of module, what adds its nodes: (graph, path, module, inputs) to output."""
    nn = require("torch.nn")
    blocks = require("edge.models.blocks")
    return {
        nn.BatchNorm2d: _norm,
        nn.LeakyReLU: lambda g, p, m, i: g.add("LeakyRelu", i, p, alpha=m.negative_slope),
        nn.ReLU: _plain("Relu"),
        nn.ReLU6: _relu6,
        nn.Sigmoid: _plain("Sigmoid"),
        nn.SiLU: _swish,
        nn.Mish: _mish,
        nn.Tanh: _plain("Tanh"),
        nn.MaxPool2d: _max_pool,
        nn.Upsample: _upsample,
        blocks.DarknetMaxPool: _darknet_max_pool,
        blocks.Avgpool: _plain("GlobalAveragePool"),
        blocks.Concat: _plain("Concat", axis=1),
        blocks.Add: _plain("Add"),
        blocks.Multiply: _plain("Mul"),
        blocks.ChannelGroup: _channel_group,
        blocks.Reorg: _reorg,
        blocks.SquaredSizes: _squared_sizes,
    }
