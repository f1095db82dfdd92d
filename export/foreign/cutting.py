"""The last nodes of an imported graph: what the decoder reads, each in a tensor of its own.

Boxes in pixels and scores in 0..1 that share a tensor would share an INT8 scale, so where the last
node joins them, its inputs become the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.optional import require
from edge.runtime.ops_cpu import Decoder, Preprocessor
from edge.runtime.session import open_session
from edge.spec import (
    BoxCoding,
    Columns,
    HeadSpec,
    Holds,
    InputContract,
    Layout,
    ModelSpec,
    ScoreCoding,
)
from export.foreign.forms import Hypothesis
from export.foreign.graph import IMAGES, CleanGraph, Output, keep_outputs

__all__ = [
    "before_suppression",
    "differs",
    "finish_outputs",
    "maps_before_decoding",
    "rows_vary",
]

_BINS = 16


def rows_vary(graph: CleanGraph, frames: Sequence[NDArray[np.uint8]]) -> bool:
    """Whether an output has another size for another picture, or none."""
    session, names = graph.session(), [out.name for out in graph.outputs]
    seen = set()
    for scale in (1.0, 1 / 255):  # what the network takes is not known yet
        preprocess = Preprocessor(InputContract(graph.hw, scale=(scale,) * 3))
        for frame in frames:
            arrays = session.run(names, {IMAGES: preprocess(frame)[0]})
            seen.add(tuple(array.shape for array in arrays))
    return len(seen) > 1 or any(0 in shape for shapes in seen for shape in shapes)


def before_suppression(graph: CleanGraph) -> CleanGraph:
    """The graph cut in front of its NonMaxSuppression, where the number of rows depends on it.

    An engine has outputs of one size. What the suppression reads, boxes and scores, has that.
    """
    nodes = [node for node in graph.model.graph.node if node.op_type == "NonMaxSuppression"]
    if len(nodes) != 1:
        return graph
    makers = {output: node for node in graph.model.graph.node for output in node.output}
    boxes, scores = nodes[0].input[:2]
    maker = makers.get(scores)
    if maker is not None and maker.op_type == "Transpose":
        scores = maker.input[0]
    model = keep_outputs(graph.model, [boxes, scores])
    session = open_session(model.SerializeToString(), graph.source)
    arrays = session.run([boxes, scores], {IMAGES: np.zeros((1, 3, *graph.hw), np.float32)})
    outputs = tuple(
        Output(name, tuple(array.shape[1:]), array.dtype.kind in "iu")
        for name, array in zip((boxes, scores), arrays, strict=True)
    )
    note = (
        f"the number of rows of {', '.join(out.name for out in graph.outputs)} depends on the "
        f"picture: it is cut in front of its NonMaxSuppression, at {boxes} and {scores}"
    )
    return replace(graph, model=model, outputs=outputs, notes=[*graph.notes, note])


def maps_before_decoding(model: Any, found: Hypothesis) -> Hypothesis | None:
    """The reading of an ultralytics v8 head by its raw maps, where the graph has them.

    Each level has a convolution of 4 * 16 bins and one of the classes, and nothing else reads them
    but what decodes. Whether these are them says `differs`.
    """
    head, strides = found.heads[0], [int(level.stride or 0) for level in found.grid]
    if found.kind != "yolov8" or len(found.heads) > 1 or not strides or head.layout.rows == 0:
        return None
    onnx = require("onnx")
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    }
    made = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    heads = []
    for level in found.grid:
        pair: list[Columns] = []
        kinds: tuple[tuple[int, Holds], ...] = (
            (4 * _BINS, "box"),
            (head.width("classes", found.classes), "classes"),
        )
        for width, kind in kinds:
            fits = [name for name in made if shapes.get(name) == (1, width, *level.grid_hw)]
            # The last ones of a level are those of its head.
            ends = [name for name in fits if not _feeds_activation(model, name)]
            if len(ends) != 1 or (pair and ends[0] == pair[0].tensor):
                return None
            pair.append(Columns(ends[0], (kind,)))
        box = BoxCoding("distances", (level,), shift=0.5, bins=_BINS, unit="cells")
        heads.append(HeadSpec(Layout(tuple(pair)), box, ScoreCoding("sigmoid")))
    return replace(found, heads=tuple(heads))


def _feeds_activation(model: Any, name: str) -> bool:
    """Whether a convolution's output goes through Sigmoid and Mul or Relu: an inner one."""
    kinds = {node.op_type for node in model.graph.node if name in node.input}
    return bool(kinds & {"Relu", "LeakyRelu", "Mul", "HardSwish", "Clip", "Add"})


def differs(graph: CleanGraph, found: Hypothesis, cut: Hypothesis, feed: Any) -> str:
    """What two readings of one graph decode differently of one input; empty where they agree."""
    names = [name for each in (found, cut) for head in each.heads for name in head.tensors]
    session = open_session(keep_outputs(graph.model, names).SerializeToString(), graph.source)
    raw = dict(zip(names, session.run(names, {IMAGES: feed}), strict=True))
    seen = []
    for each in (found, cut):
        spec = ModelSpec(
            "cut", each.kind, tuple(map(str, range(each.classes))), each.contract, each.heads
        )
        boxes = Decoder(spec)([raw[name] for name in spec.tensors], 0.02)
        order = np.lexsort((boxes.xyxy[:, 0], boxes.class_id, -np.round(boxes.score, 4)))
        seen.append(boxes[order])
    first, second = seen
    if not len(first) or len(first) != len(second):
        return f"{len(first)} boxes after it and {len(second)} before it"
    box = float(np.abs(first.xyxy - second.xyxy).max())
    score = float(np.abs(first.score - second.score).max())
    return "" if box < 0.5 and score < 1e-3 else f"boxes differ by {box:.2g} pixels"


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
