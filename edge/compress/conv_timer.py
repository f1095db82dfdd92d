"""How long one convolution takes in onnxruntime on this host."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from edge.compress.cost import ConvShape
from edge.optional import require

__all__ = ["time_convolution"]

_WARM, _RUNS, _LEAST_S = 2, 9, 0.01

_ACTIVATIONS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "": (),
    "LeakyReLU": (("LeakyRelu", ("c",)),),
    "ReLU": (("Relu", ("c",)),),
    "ReLU6": (("Relu", ("c",)),),
    "Sigmoid": (("Sigmoid", ("c",)),),
    "SiLU": (("Sigmoid", ("c",)), ("Mul", ("c", "0"))),
    "Tanh": (("Tanh", ("c",)),),
    "Mish": (("Softplus", ("c",)), ("Tanh", ("0",)), ("Mul", ("c", "1"))),
}


def time_convolution(shape: ConvShape, threads: int = 1) -> float:
    """Median milliseconds of one convolution with its activation in onnxruntime on this host."""
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = ort.InferenceSession(_model(shape), options, providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(0).random((1, shape.channels, *shape.input_hw), np.float32)
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < _WARM + _RUNS or time.perf_counter() - began < _LEAST_S:
        start = time.perf_counter()
        session.run(None, {"x": picture})
        taken.append((time.perf_counter() - start) * 1e3)
    return float(np.median(taken[_WARM:]))


def _model(shape: ConvShape) -> bytes:
    """A graph of that convolution and its activation, random weights, opset 19."""
    helper = require("onnx.helper")
    nodes = _nodes(shape)
    entering = [1, shape.channels, *shape.input_hw]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", 1, entering)],
        [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)],
        _weights(shape),
    )
    opsets = [helper.make_opsetid("", 19)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return model


def _weights(shape: ConvShape) -> list[Any]:
    from_array = require("onnx.numpy_helper").from_array
    size = (shape.filters, shape.channels // shape.groups, *shape.size_hw)
    kernel = np.random.default_rng(0).normal(0, 0.05, size).astype(np.float32)
    return [from_array(kernel, "w"), from_array(np.zeros(shape.filters, np.float32), "b")]


def _nodes(shape: ConvShape) -> list[Any]:
    make_node = require("onnx.helper").make_node
    conv = make_node(
        "Conv",
        ["x", "w", "b"],
        ["c"],
        kernel_shape=shape.size_hw,
        strides=shape.stride_hw,
        pads=shape.pads,
        group=shape.groups,
    )
    after = enumerate(_ACTIVATIONS[shape.activation])
    return [conv, *(make_node(op, list(inputs), [str(at)]) for at, (op, inputs) in after)]
