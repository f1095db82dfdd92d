"""The last nodes of an imported graph: what the decoder reads, each in a tensor of its own.

Boxes in pixels and scores in 0..1 that share a tensor would share an INT8 scale, so where the last
node joins them, its inputs become the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from edge.optional import require
from edge.spec import Columns, HeadSpec, Holds

__all__ = ["finish_outputs"]


def finish_outputs(
    model: Any, heads: Sequence[HeadSpec], classes: int
) -> tuple[Any, tuple[HeadSpec, ...], list[str]]:
    """A graph whose outputs are float32 tables of one kind where they can be, and its heads.

    Args:
        model: onnx `ModelProto` whose outputs are those that `heads` read, in their order.
    """
    onnx = require("onnx")
    notes: list[str] = []
    known = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*known.graph.value_info, *known.graph.output)
    }
    done = []
    for head in heads:
        tensors: list[Columns] = []
        for tensor in head.layout.tensors:
            parts = _split(model, head, tensor, classes, shapes)
            if len(parts) > 1:
                notes.append(
                    f"{tensor.tensor} joined boxes and scores: it is cut in front of that, into "
                    f"{', '.join(part.tensor for part in parts)}"
                )
            tensors += parts
        done.append(replace(head, layout=replace(head.layout, tensors=tuple(tensors))))
    names = [tensor.tensor for head in done for tensor in head.layout.tensors]
    if notes:
        from export.foreign.graph import keep_outputs

        model = keep_outputs(model, names)
    notes += _to_float(model)
    return model, tuple(done), notes


def _split(
    model: Any,
    head: HeadSpec,
    tensor: Columns,
    classes: int,
    shapes: dict[str, list[int]],
) -> list[Columns]:
    """The tensors to read in place of one that holds boxes and more."""
    if (
        head.layout.suppressed
        or head.side_by_side > 1
        or len(tensor.holds) < 2
        or tensor.holds[0] != "box"
    ):
        return [tensor]
    makers = {output: node for node in model.graph.node for output in node.output}
    join = makers.get(tensor.tensor)
    if join is None or join.op_type != "Concat":
        return [tensor]
    axis = next(attribute.i for attribute in join.attribute if attribute.name == "axis")
    dims = shapes.get(tensor.tensor, [])
    axis = axis + len(dims) if axis < 0 else axis
    if axis != (len(dims) - 1 if head.layout.axis == "first" else 1) or len(dims) != 3:
        return [tensor]
    widths = [shapes.get(name, [0] * 3)[axis] for name in join.input]
    edges = list(accumulate(widths))
    box = head.width("box", classes)
    if 0 in widths or box not in edges[:-1]:
        return [tensor]
    cut = edges.index(box) + 1
    rest: tuple[Holds, ...] = tensor.holds[1:]
    groups = (("boxes", join.input[:cut], ("box",)), ("scores", join.input[cut:], rest))
    return [
        Columns(_joined(model, join, what, list(names), axis), holds)  # type: ignore[arg-type]
        for what, names, holds in groups
    ]


def _joined(model: Any, join: Any, what: str, names: list[str], axis: int) -> str:
    """The name of these parts in one tensor; several are joined anew."""
    if len(names) == 1:
        return names[0]
    onnx = require("onnx")
    target = f"{join.output[0]}_{what}"
    node = onnx.helper.make_node("Concat", names, [target], name=f"{join.name}_{what}", axis=axis)
    model.graph.node.append(node)
    return target


def _to_float(model: Any) -> list[str]:
    """Give integer outputs, which are labels, as float32 under their own names."""
    onnx = require("onnx")
    kind, changed = onnx.TensorProto.FLOAT, []
    for value in model.graph.output:
        own = value.type.tensor_type.elem_type
        if own == kind:
            continue
        name, inner = value.name, f"{value.name}_integer"
        for node in model.graph.node:
            for names in (node.input, node.output):
                for number, each in enumerate(names):
                    if each == name:
                        names[number] = inner
        cast = onnx.helper.make_node("Cast", [inner], [name], name=f"{name}_float", to=kind)
        model.graph.node.append(cast)
        value.type.tensor_type.elem_type = kind
        changed.append(name)
    return [f"{', '.join(changed)} became float32"] if changed else []
