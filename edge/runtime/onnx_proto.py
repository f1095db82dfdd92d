"""ONNX graphs without the onnx package: the few fields that the runtime rearranges.

protobuf comes with onnxruntime and carries every field that is not declared here along untouched.
Field numbers: onnx/onnx.proto3.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from edge.optional import require

__all__ = ["model_class"]

_FLOAT, _INT64, _INT32, _STRING, _MESSAGE, _BYTES = 2, 3, 5, 9, 11, 12
_OPTIONAL, _REPEATED = 1, 3
# message: field: (number, type, label, message type)
_SCHEMA: dict[str, dict[str, tuple[int, int, int, str]]] = {
    "Attribute": {
        "name": (1, _STRING, _OPTIONAL, ""),
        "f": (2, _FLOAT, _OPTIONAL, ""),
        "i": (3, _INT64, _OPTIONAL, ""),
        "type": (20, _INT32, _OPTIONAL, ""),
    },
    "Node": {
        "input": (1, _STRING, _REPEATED, ""),
        "output": (2, _STRING, _REPEATED, ""),
        "name": (3, _STRING, _OPTIONAL, ""),
        "op_type": (4, _STRING, _OPTIONAL, ""),
        "attribute": (5, _MESSAGE, _REPEATED, "Attribute"),
    },
    "Tensor": {
        "dims": (1, _INT64, _REPEATED, ""),
        "data_type": (2, _INT32, _OPTIONAL, ""),
        "name": (8, _STRING, _OPTIONAL, ""),
        "raw_data": (9, _BYTES, _OPTIONAL, ""),
    },
    "TensorType": {"elem_type": (1, _INT32, _OPTIONAL, "")},
    "Type": {"tensor_type": (1, _MESSAGE, _OPTIONAL, "TensorType")},
    "Value": {"name": (1, _STRING, _OPTIONAL, ""), "type": (2, _MESSAGE, _OPTIONAL, "Type")},
    "Graph": {
        "node": (1, _MESSAGE, _REPEATED, "Node"),
        "initializer": (5, _MESSAGE, _REPEATED, "Tensor"),
        "input": (11, _MESSAGE, _REPEATED, "Value"),
        "output": (12, _MESSAGE, _REPEATED, "Value"),
        "value_info": (13, _MESSAGE, _REPEATED, "Value"),
    },
    "Opset": {"domain": (1, _STRING, _OPTIONAL, ""), "version": (2, _INT64, _OPTIONAL, "")},
    "Model": {
        "ir_version": (1, _INT64, _OPTIONAL, ""),
        "graph": (7, _MESSAGE, _OPTIONAL, "Graph"),
        "opset_import": (8, _MESSAGE, _REPEATED, "Opset"),
    },
}


@lru_cache(maxsize=1)
def model_class() -> Any:
    """A message class for ONNX models that declares the fields of `_SCHEMA`."""
    descriptor = require("google.protobuf.descriptor_pb2")
    file = descriptor.FileDescriptorProto(name="edge.proto", package="edge", syntax="proto2")
    for message, members in _SCHEMA.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind, label, of) in members.items():
            field = declared.field.add(name=name, number=number, label=label, type=kind)
            if of:
                field.type_name = f".edge.{of}"
    pool = require("google.protobuf.descriptor_pool").DescriptorPool()
    pool.Add(file)
    return require("google.protobuf.message_factory").GetMessageClass(
        pool.FindMessageTypeByName("edge.Model")
    )
