"""Decoding inside the graph: the best 300 candidates as rows of box, score and label.

Plain operators of ONNX (TopK, GatherElements): onnxruntime, TensorRT and TensorRT-RTX run it
without a plugin. On a small board what leaves the engine counts more than its precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import read_manifest
from edge.errors import ArtifactError
from edge.files import sha256_of, write_file
from edge.optional import require
from edge.runtime.heads import candidate_table, parts_of
from edge.spec import (
    BoxCoding,
    Columns,
    HeadSpec,
    Layout,
    Manifest,
    ModelSpec,
    ScoreCoding,
    TensorSpec,
)
from export.graph.writer import attach_manifest

__all__ = ["ROWS", "rows_graph", "write_rows", "write_rows_beside"]

ROWS = "rows"
MOST = 300
_OLDEST = 18
_MOST_LOG_SIZE = 20.0


def write_rows(source: str | Path, target: str | Path) -> Manifest:
    """Write a graph of any precision with its decoding inside, its one output (1, 300, 6).

    Raises:
        ArtifactError: `source` is no ONNX file of edge, or of an opset below 18.
    """
    onnx, source = require("onnx"), Path(source)
    manifest = read_manifest(source)
    model, spec = rows_graph(onnx.load(str(source)), manifest.spec, str(source))
    shape = (1, spec.heads[0].layout.rows, 6)
    made = replace(
        manifest,
        spec=spec,
        outputs=(TensorSpec(ROWS, shape),),
        parent_sha256=sha256_of(source),
        arguments=(*manifest.arguments, ("output_form", '"rows"')),
    )
    attach_manifest(model, made)
    write_file(target, model.SerializeToString())
    return made


def write_rows_beside(source: Path, folder: Path) -> Path:
    """Write `NAME.rows.PRECISION.onnx` of `NAME.PRECISION.onnx` into `folder`.

    Raises:
        ArtifactError: as `write_rows`.
    """
    name = source.name.removesuffix(".onnx")
    stem, dot, precision = name.rpartition(".")
    target = folder / (f"{stem}.{ROWS}.{precision}.onnx" if dot else f"{name}.{ROWS}.onnx")
    if ROWS in {tensor.name for tensor in read_manifest(source).outputs}:
        raise ArtifactError(f"{source}: gives rows already; leave --output-form out")
    write_rows(source, target)
    return target


def rows_graph(model: Any, spec: ModelSpec, source: str) -> tuple[Any, ModelSpec]:
    """`model` with `spec`'s decoding behind its outputs, and the spec of what then comes out.

    Raises:
        ArtifactError: an opset below 18, whose operators are others.
    """
    onnx = require("onnx")
    opset = max((one.version for one in model.opset_import if not one.domain), default=0)
    if opset < _OLDEST:
        raise ArtifactError(f"{source}: opset {opset}; rows take {_OLDEST} or newer")
    work = onnx.ModelProto()
    work.CopyFrom(model)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in work.graph.output
    }
    tail = _Tail(work.graph)
    count = _decode(tail, spec, shapes)
    del work.graph.output[:]
    kind = onnx.TensorProto.FLOAT
    work.graph.output.append(onnx.helper.make_tensor_value_info(ROWS, kind, [1, count, 6]))
    onnx.checker.check_model(work)
    first = spec.heads[0]
    layout = Layout(
        (Columns(ROWS, ("box", "classes", "label")),),
        "first",
        "outer",
        rows=count,
        suppressed=first.layout.suppressed,
    )
    score = ScoreCoding("none", exclusive=first.score.exclusive)
    head = HeadSpec(layout, BoxCoding("corners"), score)
    return work, replace(spec, heads=(head,))


class _Tail:
    """Nodes and constants appended to a graph."""

    def __init__(self, graph: Any) -> None:
        self._graph, self._helper = graph, require("onnx.helper")
        self._array = require("onnx").numpy_helper.from_array
        self._number = 0

    def node(self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **more: Any) -> Any:
        """The name of a node's output; several as a list."""
        self._number += 1
        base = name or f"{ROWS}/{kind}_{self._number}"
        made = [base if outputs == 1 else f"{base}_{i}" for i in range(outputs)]
        node = self._helper.make_node(kind, list(inputs), made, name=f"{base}_node", **more)
        self._graph.node.append(node)
        return made[0] if outputs == 1 else made

    def constant(self, values: Any, kind: Any = np.float32) -> str:
        """The name of an array among the graph's constants."""
        self._number += 1
        name = f"{ROWS}/constant_{self._number}"
        self._graph.initializer.append(self._array(np.asarray(values, kind), name))
        return name

    def slice(self, tensor: str, start: int, end: int) -> str:
        """Columns from `start` to `end` of a table (1, N, columns)."""
        places = [self.constant([value], np.int64) for value in (start, end, 2)]
        return str(self.node("Slice", tensor, *places))

    def join(self, tensors: Sequence[str], axis: int) -> str:
        """Several tables in one."""
        return tensors[0] if len(tensors) == 1 else str(self.node("Concat", *tensors, axis=axis))


def _decode(tail: _Tail, spec: ModelSpec, shapes: dict[str, tuple[int, ...]]) -> int:
    """Append all of it; how many rows come out."""
    first, tensors = spec.heads[0], 0
    kinds: dict[str, list[str]] = {}
    for head in spec.heads:
        for kind, table in _tables(tail, head, tensors, spec, shapes).items():
            kinds.setdefault(kind, []).append(table)
        tensors += len(head.tensors)
    columns = {kind: tail.join(parts, 1) for kind, parts in kinds.items()}
    geometry = None
    if first.box.levels:
        levels = [candidate_table(head, spec.contract) for head in spec.heads]
        geometry = np.concatenate(levels, axis=2)
    corners = _corners(tail, first.box, columns["box"], geometry, spec.contract.hw)
    score, label = _scores(tail, first, columns, len(spec.classes))
    total = sum(head.candidates for head in spec.heads)
    count = min(MOST, total)
    flat = tail.node("Reshape", score, tail.constant([1, total], np.int64))
    best, index = tail.node("TopK", flat, tail.constant([count], np.int64), outputs=2, axis=1)
    last = tail.constant([2], np.int64)
    rows = tail.node("Unsqueeze", index, last)
    four = tail.node("Expand", rows, tail.constant([1, count, 4], np.int64))
    parts = [
        tail.node("GatherElements", corners, four, axis=1),
        tail.node("Unsqueeze", best, last),
        tail.node("GatherElements", label, rows, axis=1),
    ]
    tail.node("Concat", *parts, axis=2, name=ROWS)
    return count


def _tables(
    tail: _Tail,
    head: HeadSpec,
    tensors: int,
    spec: ModelSpec,
    shapes: dict[str, tuple[int, ...]],
) -> dict[str, str]:
    """Each kind of a head's columns as a table (1, candidates, width)."""
    rows = head.candidates // head.side_by_side
    whole = {}
    for number, name in enumerate(head.tensors, tensors):
        total = int(np.prod(shapes[name])) // rows
        if head.layout.axis == "last":
            flat = tail.node("Reshape", name, tail.constant([1, total, rows], np.int64))
            whole[number] = tail.node("Transpose", flat, perm=[0, 2, 1])
        else:
            whole[number] = tail.node("Reshape", name, tail.constant([1, rows, total], np.int64))
    found = {}
    for kind, part in parts_of(head, tensors, len(spec.classes)).items():
        starts = [part.column + anchor * part.step for anchor in range(head.side_by_side)]
        each = [tail.slice(whole[part.source], at, at + part.width) for at in starts]
        found[kind] = tail.join(each, 1)
    return found


def _activated(tail: _Tail, tensor: str, how: str) -> str:
    if how == "none":
        return tensor
    if how == "exp":
        tensor = tail.node("Min", tensor, tail.constant(_MOST_LOG_SIZE))
        return str(tail.node("Exp", tensor))
    if how == "softmax":
        return str(tail.node("Softmax", tensor, axis=2))
    return str(tail.node({"sigmoid": "Sigmoid", "tanh": "Tanh"}[how], tensor))


def _scores(tail: _Tail, head: HeadSpec, columns: dict[str, str], classes: int) -> tuple[str, str]:
    """Score and label of each candidate, (1, N, 1)."""
    coding, factors, label = head.score, [], ""
    if "objectness" in columns:
        own = _activated(tail, columns["objectness"], coding.objectness)
        factors.append(_raised(tail, own, coding.powers[0]))
    if "label" in columns:
        factors.append(_activated(tail, columns["classes"], coding.classes))
        label = columns["label"]
        if coding.first_label:
            label = tail.node("Sub", label, tail.constant(float(coding.first_label)))
    elif "classes" in columns:
        all_ = _activated(tail, columns["classes"], coding.classes)
        if coding.background is not None:
            start = int(coding.background == "first")
            all_ = tail.slice(all_, start, start + classes)
        axes = tail.constant([2], np.int64)
        factors.append(_raised(tail, tail.node("ReduceMax", all_, axes), coding.powers[1]))
        which = tail.node("ArgMax", all_, axis=2)
        label = tail.node("Cast", which, to=require("onnx").TensorProto.FLOAT)
    score = factors[0] if len(factors) == 1 else tail.node("Mul", *factors)
    if not label:
        label = tail.node("Mul", score, tail.constant(0.0))
    return score, label


def _raised(tail: _Tail, tensor: str, power: float) -> str:
    return tensor if power == 1 else str(tail.node("Pow", tensor, tail.constant(power)))


def _corners(
    tail: _Tail,
    box: BoxCoding,
    raw: str,
    table: NDArray[np.float32] | None,
    hw: tuple[int, int],
) -> str:
    """Corners (1, N, 4) in pixels of the input."""
    if box.bins:
        four = tail.node("Reshape", raw, tail.constant([1, -1, 4, box.bins], np.int64))
        weights = tail.node("Softmax", four, axis=3)
        mean = tail.node("MatMul", weights, tail.constant(np.arange(box.bins)[:, None]))
        raw = tail.node("Reshape", mean, tail.constant([1, -1, 4], np.int64))
    if box.order == "yx":
        raw = tail.node("Gather", raw, tail.constant([1, 0, 3, 2], np.int64), axis=2)
    first, second = tail.slice(raw, 0, 2), tail.slice(raw, 2, 4)
    if box.form in ("corners", "centre"):
        if box.unit == "input":
            unit = tail.constant((hw[1], hw[0]))
            first, second = tail.node("Mul", first, unit), tail.node("Mul", second, unit)
        if box.form == "centre":
            half = tail.node("Mul", second, tail.constant(0.5))
            first, second = tail.node("Sub", first, half), tail.node("Add", first, half)
    else:
        assert table is not None
        origin, step, half_anchor = (tail.constant(part.T[None]) for part in table)
        if box.form == "distances":
            first = tail.node("Sub", origin, tail.node("Mul", step, first))
            second = tail.node("Add", origin, tail.node("Mul", step, second))
        else:
            first, half = _centred(tail, box, first, second, half_anchor)
            centre = tail.node("Add", origin, tail.node("Mul", step, first))
            first, second = tail.node("Sub", centre, half), tail.node("Add", centre, half)
    if box.clip_boxes:
        low, high = tail.constant(0.0), tail.constant((hw[1], hw[0]))
        first, second = (
            tail.node("Min", tail.node("Max", each, low), high) for each in (first, second)
        )
    return str(tail.node("Concat", first, second, axis=2))


def _centred(
    tail: _Tail, box: BoxCoding, first: str, second: str, half_anchor: str
) -> tuple[str, str]:
    """Offset of the centre in steps, and half the size, of a grid or of priors."""
    if box.form == "priors":
        scaled = tail.node("Mul", second, tail.constant(box.variances[1]))
        return first, str(tail.node("Mul", half_anchor, _activated(tail, scaled, "exp")))
    factor = _activated(tail, second, box.size)
    if box.squared:
        doubled = tail.node("Mul", factor, tail.constant(2.0))
        factor = tail.node("Mul", doubled, doubled)
    half = tail.node("Mul", half_anchor, factor)
    return _activated(tail, first, box.activation), str(half)
