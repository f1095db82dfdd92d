"""Finds weights of which two in four are zero, which sparse tensor cores compute in half the steps.

The pattern: of every four input channels at least two weights are zero, for each output channel
and each place in the kernel (arXiv:2104.08378; TensorRT's documentation, "Sparsity").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ArtifactError
from edge.onnx_file import OnnxFile
from edge.runtime.onnx_proto import model_class

__all__ = ["check_sparse", "sparse_convolutions"]

# TensorProto.DataType of onnx.proto3.
_TYPES: dict[int, str] = {1: "<f4", 3: "<i1", 10: "<f2"}


def sparse_convolutions(onnx: OnnxFile | str | Path) -> tuple[str, ...]:
    """Return the names of the convolutions whose weights, plain or quantized, have the pattern.

    Raises:
        ArtifactError: it is not an ONNX file.
    """
    graph = _graph(onnx)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    # A quantized weight comes through a dequantizer.
    origin = {node.output[0]: node.input[0] for node in graph.node if node.input and node.output}
    found = []
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) > 1:
            name = origin.get(node.input[1], node.input[1])
            if name in constants and _two_in_four(_array(constants[name])):
                found.append(node.name)
    return tuple(found)


def check_sparse(onnx: OnnxFile | str | Path) -> tuple[str, ...]:
    """Return `sparse_convolutions`, and refuse a file that has none.

    Raises:
        ArtifactError: there are none, or it is not an ONNX file.
    """
    found = sparse_convolutions(onnx)
    if not found:
        raise ArtifactError(
            f"{onnx}: no convolution has two zero weights in every four input channels, which "
            "--sparse is for; prune it with edge compress --two-four, or leave --sparse out"
        )
    return found


def _graph(onnx: OnnxFile | str | Path) -> Any:
    file = onnx if isinstance(onnx, OnnxFile) else OnnxFile(onnx)
    try:
        return model_class().FromString(file.data).graph
    except Exception as error:  # protobuf's exceptions share no other base
        raise ArtifactError(f"{onnx}: not an ONNX file: {error}") from error


def _array(tensor: Any) -> NDArray[Any] | None:
    dtype = _TYPES.get(tensor.data_type)
    if dtype is None or not tensor.raw_data:
        return None
    return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))


def _two_in_four(weight: NDArray[Any] | None) -> bool:
    if weight is None or weight.ndim < 2 or weight.shape[1] % 4:
        return False
    fours = weight.reshape(weight.shape[0], weight.shape[1] // 4, 4, -1)
    return bool((np.count_nonzero(fours, axis=2) <= 2).all())
