"""Read an ONNX graph as operators with the shapes of all tensors; weights are not needed.

Shapes come from onnx, node by node. What depends on shapes alone (`Shape`, `Gather`, arithmetic on
sizes) is computed, because exporters write splits of channels in this way and onnx's own pass over
a whole graph gives up at a division.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import ArtifactError
from edge.optional import require

__all__ = ["Operator", "Shape", "read_operators"]

Shape = tuple[int, ...]
# Above this many values a constant is data, and no shape depends on it.
_SMALL = 4096
# Of these, whose outputs may be far larger than their inputs.
_GROW = frozenset(("ConstantOfShape", "Expand", "Range", "Tile"))
_OF_SHAPES = frozenset(
    [
        "Shape",
        "Size",
        "Gather",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Concat",
        "Unsqueeze",
        "Squeeze",
        "Cast",
        "Slice",
        "Floor",
        "Ceil",
        "Range",
        "Reshape",
        "ConstantOfShape",
        "Expand",
        "Where",
        "Equal",
        "Neg",
        "Split",
        "Min",
        "Max",
    ]
)


@dataclass(frozen=True)
class Operator:
    """A node whose shapes are known.

    Attributes:
        kind: the operator's name in ONNX.
        name: of the node, or of its first output where it has none.
        inputs: names of the tensors that are computed; weights and constants are not among them.
        outputs: names.
        shapes: of `outputs`.
        entering: shapes of `inputs`.
        weights: shapes of its constant inputs, in order.
        attributes: integers, lists of integers and texts.
        integer: whether its data is quantized to 8 bits, by a DequantizeLinear before it.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    entering: tuple[Shape, ...]
    shapes: tuple[Shape, ...]
    weights: tuple[Shape, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    integer: bool = False

    @property
    def elements(self) -> int:
        """Elements of all outputs."""
        return sum(prod(shape) for shape in self.shapes)


def read_operators(path: str | Path, hw: tuple[int, int] | None = None) -> list[Operator]:
    """Return the operators of an ONNX file in their order, batch 1.

    Args:
        path: an ONNX file; the values of its weights may be missing.
        hw: height and width for an input that leaves them open.

    Raises:
        ArtifactError: not an ONNX graph, or a shape cannot be derived; the text names the node.
        MissingDependency: onnx is not installed.
    """
    onnx = require("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ArtifactError(f"{path}: not an ONNX graph: {error}") from error
    if not model.graph.node:
        raise ArtifactError(f"{path}: an ONNX file without nodes; give a detector's graph")
    return _Reader(onnx, model, str(path), hw).read()


class _Reader:
    """One pass over a graph."""

    def __init__(self, onnx: Any, model: Any, path: str, hw: tuple[int, int] | None) -> None:
        self.onnx, self.model, self.path = onnx, model, path
        self.opset = {one.domain: one.version for one in model.opset_import}
        self.types: dict[str, Any] = {}
        stated = (*model.graph.value_info, *model.graph.output)
        self.stated = {one.name: one.type for one in stated}
        self.constants: set[str] = set()
        self.values: dict[str, np.ndarray[Any, Any]] = {}
        for one in model.graph.initializer:
            self.types[one.name] = onnx.helper.make_tensor_type_proto(one.data_type, one.dims)
            self.constants.add(one.name)
            self._keep(one.name, one)
        for one in model.graph.input:
            if one.name not in self.constants:
                self.types[one.name] = self._fixed(one, hw)

    def _fixed(self, value: Any, hw: tuple[int, int] | None) -> Any:
        """The type of an input, with a batch of 1 and the size asked for where they are open."""
        found = self.onnx.TypeProto()
        found.CopyFrom(value.type)
        dims = found.tensor_type.shape.dim
        if not found.tensor_type.HasField("shape"):
            raise ArtifactError(f"{self.path}: input {value.name} has no shape; export with one")
        for at, dim in enumerate(dims):
            if not dim.dim_value:
                size = 1 if at == 0 else hw[at - 2] if hw and len(dims) == 4 and at > 1 else 0
                if not size:
                    raise ArtifactError(
                        f"{self.path}: input {value.name} leaves dimension {at} open; "
                        "give --size HxW"
                    )
                dim.dim_value = size
        return found

    def _keep(self, name: str, tensor: Any) -> None:
        """Keep the value of a small constant, where it is in the file."""
        count = prod(tensor.dims)
        external = tensor.data_location == self.onnx.TensorProto.EXTERNAL
        if count > _SMALL or external:
            return
        try:
            value = self.onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError):
            return
        if value.size == count:
            self.values[name] = value

    def _shape(self, name: str) -> Shape | None:
        type_ = self.types.get(name)
        if type_ is None or not type_.tensor_type.HasField("shape"):
            return None
        dims = type_.tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            return None
        return tuple(dim.dim_value for dim in dims)

    def read(self) -> list[Operator]:
        found: list[Operator] = []
        integer: set[str] = set()
        for node in self.model.graph.node:
            if node.op_type == "Constant" and not node.domain:
                self._constant(node)
                continue
            self._infer(node)
            if self._compute(node):
                continue
            data = [name for name in node.input if name and name not in self.constants]
            if not data:
                self.constants.update(node.output)
                continue
            if node.op_type == "DequantizeLinear":
                integer.update(node.output)
            found.append(self._operator(node, data, bool(integer.intersection(data))))
        return found

    def _constant(self, node: Any) -> None:
        (name,) = node.output
        self.constants.add(name)
        for attribute in node.attribute:
            value = self.onnx.helper.get_attribute_value(attribute)
            if attribute.name == "value":
                self.types[name] = self.onnx.helper.make_tensor_type_proto(
                    value.data_type, value.dims
                )
                self._keep(name, value)
            else:
                array = np.asarray(value, np.int64 if "int" in attribute.name else np.float32)
                self.values[name] = array
                kind = self.onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                self.types[name] = self.onnx.helper.make_tensor_type_proto(kind, array.shape)

    def _infer(self, node: Any) -> None:
        known = node.domain in ("", "ai.onnx") and self.onnx.defs.has(node.op_type)
        if not known:
            # A plugin's shapes are those that the file states.
            self.types.update({n: self.stated[n] for n in node.output if n in self.stated})
            return
        to_tensor = self.onnx.numpy_helper.from_array
        try:
            schema = self.onnx.defs.get_schema(node.op_type, self.opset.get("", 17), "")
            types = self.onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self.types[name] for name in node.input if name in self.types},
                {n: to_tensor(self.values[n]) for n in node.input if n in self.values},
                opset_imports=list(self.model.opset_import),
                ir_version=self.model.ir_version,
            )
        except Exception as error:
            raise ArtifactError(
                f"{self.path}: the shape of node {_called(node)} cannot be derived: {error}"
            ) from error
        self.types.update(types)

    def _compute(self, node: Any) -> bool:
        """Compute the node where it depends on shapes alone; whether it does."""
        if node.op_type == "Shape" and (shape := self._shape(node.input[0])) is not None:
            ends = {one.name: one.i for one in node.attribute}
            value = np.array(shape[ends.get("start", 0) : ends.get("end")], np.int64)
            self.values[node.output[0]] = value
            self.constants.add(node.output[0])
            return True
        inputs = [name for name in node.input if name]
        if not inputs or any(name not in self.constants for name in inputs):
            return False
        self.constants.update(node.output)
        small = all(
            (shape := self._shape(name)) is not None and prod(shape) <= _SMALL
            for name in node.output
        )
        if (
            node.op_type in _OF_SHAPES
            and all(name in self.values for name in inputs)
            and (small or node.op_type not in _GROW)
        ):
            results = self._evaluate(node, inputs)
            for name, value in zip(node.output, results, strict=True):
                if value.size <= _SMALL:
                    self.values[name] = value
                kind = self.onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
                self.types[name] = self.onnx.helper.make_tensor_type_proto(kind, value.shape)
        return True

    def _evaluate(self, node: Any, inputs: list[str]) -> list[np.ndarray[Any, Any]]:
        """The outputs of a node, by onnx's own reference."""
        values = [
            self.onnx.helper.make_value_info(name, self.types[name])
            for name in (*dict.fromkeys(inputs), *node.output)
        ]
        into, out = values[: -len(node.output)], values[-len(node.output) :]
        graph = self.onnx.helper.make_graph([node], "g", into, out)
        reference = require("onnx.reference")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found: list[np.ndarray[Any, Any]] = reference.ReferenceEvaluator(
                    graph, opsets=self.opset
                ).run(None, {name: self.values[name] for name in inputs})
        except Exception as error:
            raise ArtifactError(
                f"{self.path}: node {_called(node)} cannot be computed: {error}"
            ) from error
        return found

    def _operator(self, node: Any, data: list[str], integer: bool) -> Operator:
        shapes: list[Shape] = []
        entering: list[Shape] = []
        names = [name for name in node.output if name]
        for into, wanted in ((shapes, names), (entering, data)):
            for name in wanted:
                shape = self._shape(name)
                if shape is None:
                    raise ArtifactError(
                        f"{self.path}: the shape of {name}, at node {_called(node)}, is not known; "
                        "export with fixed sizes, plain ONNX operators and no suppression"
                    )
                into.append(shape)
        weights = [self._shape(n) or () for n in node.input if n in self.constants]
        return Operator(
            node.op_type,
            _called(node),
            tuple(data),
            tuple(names),
            tuple(entering),
            tuple(shapes),
            tuple(weights),
            {one.name: self._attribute(one) for one in node.attribute},
            integer,
        )

    def _attribute(self, attribute: Any) -> Any:
        value = self.onnx.helper.get_attribute_value(attribute)
        return value.decode() if isinstance(value, bytes) else value


def _called(node: Any) -> str:
    return str(node.name or (node.output[0] if node.output else node.op_type))
