"""What the numbers say: a reading of the outputs is refused where real pictures contradict it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.runtime.ops_cpu import Decoder, Preprocessor, tables
from edge.spec import InputContract, ModelSpec
from export.foreign.forms import Hypothesis

__all__ = ["Runner", "agreement", "draft", "objections"]

Array = NDArray[np.float32]
Raw = dict[str, NDArray[Any]]
# Of the confident boxes so many must lie in the picture and have an area.
_MOST = 0.9
_CONFIDENT, _ANY = 0.1, 0.005


def draft(found: Hypothesis, name: str = "draft") -> ModelSpec:
    """The hypothesis as a model with numbered classes."""
    classes = tuple(map(str, range(found.classes)))
    return ModelSpec(name, found.kind, classes, found.contract, found.heads)


class Runner:
    """Runs a foreign graph over a few pictures, once for each input contract."""

    def __init__(self, session: Any, frames: Sequence[NDArray[np.uint8]]) -> None:
        self._session, self.frames = session, list(frames)
        (self._input,) = [each.name for each in session.get_inputs()]
        self._outputs = [each.name for each in session.get_outputs()]
        self._known: dict[str, list[Raw]] = {}

    def __call__(self, contract: InputContract) -> list[Raw]:
        """Outputs by name for every picture."""
        if contract.digest not in self._known:
            preprocess = Preprocessor(contract)
            found = []
            for frame in self.frames:
                values = self._session.run(self._outputs, {self._input: preprocess(frame)[0]})
                found.append(dict(zip(self._outputs, values, strict=True)))
            self._known[contract.digest] = found
        return self._known[contract.digest]


def objections(found: Hypothesis, runs: Sequence[Raw]) -> list[str]:
    """What speaks against a reading; the first that fails, in words."""
    spec = draft(found)
    try:
        each = [tables(spec, [run[name] for name in spec.tensors]) for run in runs]
    except ValueError as error:
        return [str(error)]
    kinds = {kind for tables_ in each for table in tables_ for kind in table}
    columns: dict[str, Any] = {
        kind: np.concatenate([np.concatenate([t[kind] for t in tables_]) for tables_ in each])
        for kind in kinds
    }
    if not all(np.isfinite(values).all() for values in columns.values()):
        columns = {kind: np.nan_to_num(values) for kind, values in columns.items()}
    for check in _CHECKS:
        said = check(found, columns, len(runs))
        if said:
            return [said]
    said = _boxes(found, spec, runs)
    return [said] if said else []


Columns = dict[str, Any]


def _range(values: Array) -> str:
    return f"{float(values.min()):.3g} to {float(values.max()):.3g}"


def _scores(found: Hypothesis, columns: Columns, pictures: int) -> str:
    score = found.heads[0].score
    for kind, activation in (("objectness", score.objectness), ("classes", score.classes)):
        if kind not in columns:
            continue
        values = columns[kind]
        inside = values.min() >= -1e-3 and values.max() <= 1 + 1e-3
        if activation == "none" and not inside:
            return f"its {kind} go from {_range(values)}, which are no probabilities"
        if activation != "none" and inside:
            return f"its {kind} lie in 0..1, so the graph has taken their {activation} already"
    return ""


def _background(found: Hypothesis, columns: Columns, pictures: int) -> str:
    score = found.heads[0].score
    if "classes" not in columns or "objectness" in columns or "label" in columns:
        return ""
    values = np.asarray(columns["classes"], np.float64)
    if score.classes == "softmax":
        away = np.exp(values - values.max(axis=1, keepdims=True))
        values = away / away.sum(axis=1, keepdims=True)
    elif score.classes == "sigmoid":
        values = 1 / (1 + np.exp(-np.clip(values, -50, 50)))
    mean = values.mean(axis=0)
    own = {"first": 0, "last": len(mean) - 1}.get(score.background or "")
    classes = mean.copy()
    if own is not None:
        classes[own] = 0
    everywhere = int(classes.argmax())
    if classes[everywhere] > 0.5:
        return f"its column {everywhere} is {classes[everywhere]:.2f} on average: a background"
    # TensorFlow's sigmoids have a first column that means nothing; a softmax's takes what is left.
    whole = float(np.median(np.abs(values.sum(axis=1) - 1))) < 1e-2
    if own is None or (not whole and own == 0):
        return ""
    if mean[own] < 0.5:
        return (
            f"its {score.background} column is {mean[own]:.2f} on average, which is no background"
        )
    return ""


def _labels(found: Hypothesis, columns: Columns, pictures: int) -> str:
    if "label" not in columns:
        return ""
    score = columns["classes"][:, 0]
    labels = columns["label"][:, 0][score > _CONFIDENT]
    if not len(labels):
        labels = columns["label"][:, 0][score > 0]
    if len(labels) and np.abs(labels - np.rint(labels)).max() > 1e-3:
        return "its labels are no whole numbers"
    first = found.heads[0].score.first_label
    if len(labels) and labels.min() < first:
        return f"its labels begin at {labels.min():g}"
    if len(labels) and labels.max() >= found.classes + first:
        return f"its labels reach {labels.max():g}, beyond {found.classes} classes"
    return ""


def _numbers(found: Hypothesis, columns: Columns, pictures: int) -> str:
    """The range of a box's raw numbers."""
    box, raw = found.heads[0].box, np.asarray(columns["box"], np.float32)
    low, high = float(raw.min()), float(raw.max())
    inside = low >= 0 and high <= 1
    if box.form == "grid":
        if box.activation == "none" and box.size == "none" and not inside:
            return f"its boxes' numbers go from {_range(raw)}, beyond what a sigmoid gives"
        if box.activation == "sigmoid" and inside:
            return "its boxes' numbers lie in 0..1: the graph has taken their sigmoid already"
        if max(-low, high) > 60:
            return f"its boxes' numbers go from {_range(raw)}, too far for numbers of a grid"
    if box.form == "priors":
        if max(-low, high) > 60:
            return f"its boxes' numbers go from {_range(raw)}, too far for offsets from priors"
        if low > -0.5 and high < 1.5 and _ordered(raw) > 0.999:
            return "its boxes' numbers are corners in 0..1, not offsets from priors"
    plain = box.form == "distances" and not box.bins
    if plain and (float((raw > -0.5).mean()) < 0.95 or high > 300):
        return f"its boxes' numbers go from {_range(raw)}, which are no distances in cells"
    return ""


def _ordered(raw: Array) -> float:
    """How many have their second corner right of and below the first."""
    return float(((raw[:, 2] >= raw[:, 0]) & (raw[:, 3] >= raw[:, 1])).mean())


def _decoded(found: Hypothesis, columns: Columns, pictures: int) -> str:
    """Boxes that the graph has decoded: do they lie where their cells are?"""
    head = found.heads[0]
    box, raw = head.box, np.asarray(columns["box"], np.float32)
    if box.form not in ("corners", "centre"):
        return ""
    if "classes" in columns and "label" in columns:
        raw = raw[columns["classes"][:, 0] > _ANY] if (columns["classes"] > _ANY).any() else raw
    high = float(np.abs(raw).max())
    if box.unit == "pixels" and high <= 2:
        return f"its boxes' numbers go from {_range(raw)}, which are no pixels"
    if box.unit == "input" and high > 4:
        return f"its boxes' numbers go from {_range(raw)}, beyond 0..1 of the input"
    ordered = _ordered(raw)
    if box.form == "corners" and ordered < _MOST:
        return f"only {ordered:.0%} of its boxes have their second corner beyond the first"
    if box.form == "centre" and ordered > 0.999:
        return "its last two numbers always exceed the first two: they are corners"
    if box.form == "centre" and float((raw[:, 2:] >= -1e-3).mean()) < 0.99:
        return "its sizes are negative"
    return _tracks(found, raw, pictures) if found.grid and "label" not in columns else ""


def _tracks(found: Hypothesis, raw: Array, pictures: int) -> str:
    """Decoded rows must lie near the cells that they come from."""
    head, (height, width) = found.heads[0], found.contract.hw
    box = head.box
    centres, strides = [], []
    for level in found.grid:
        rows, cols = level.grid_hw
        stride = np.array((width / cols, height / rows))
        at = np.stack(np.meshgrid(np.arange(cols), np.arange(rows)), axis=2).reshape(-1, 2)
        place = (at + 0.5) * stride
        count = len(level.anchors)
        repeat = np.repeat if found.order == "inner" else _tile
        centres.append(repeat(place, count, axis=0))
        strides.append(np.broadcast_to(stride, centres[-1].shape))
    grid, step = np.concatenate(centres), np.concatenate(strides)
    if len(grid) * pictures != len(raw):
        return ""
    grid, step = np.tile(grid, (pictures, 1)), np.tile(step, (pictures, 1))
    unit = np.array((width, height)) if box.unit == "input" else np.ones(2)
    first, second = raw[:, :2], raw[:, 2:]
    if box.order == "yx":
        first, second = first[:, ::-1], second[:, ::-1]
    middle = (first if box.form == "centre" else (first + second) / 2) * unit
    away = float(np.median(np.abs(middle - grid) / step))
    if away > 2.5:
        return f"its boxes lie {away:.1f} cells away from the cells of their rows"
    return ""


def _tile(values: Array, count: int, axis: int) -> Array:
    return np.concatenate([values] * count, axis=axis)


_CHECKS: tuple[Callable[[Hypothesis, Columns, int], str], ...] = (
    _scores,
    _background,
    _labels,
    _numbers,
    _decoded,
)


def _boxes(found: Hypothesis, spec: ModelSpec, runs: Sequence[Raw]) -> str:
    """The confident boxes: in the picture, and of a size that one can see."""
    decode = Decoder(spec)
    height, width = spec.contract.hw
    boxes = []
    for run in runs:
        raw = [run[name] for name in spec.tensors]
        seen = decode(raw, _CONFIDENT)
        seen = seen if len(seen) else decode(raw, _ANY)
        boxes.append(seen.xyxy[np.argsort(-seen.score)[:100]])
    corners = np.concatenate(boxes)
    if not len(corners):
        return ""
    middle = (corners[:, :2] + corners[:, 2:]) / 2 / (width, height)
    inside = float(((middle > -0.1) & (middle < 1.1)).all(axis=1).mean())
    if inside < _MOST:
        return f"only {inside:.0%} of its confident boxes lie in the picture"
    size = (corners[:, 2:] - corners[:, :2]) / (width, height)
    if float((size < 2).all(axis=1).mean()) < _MOST:
        return "its confident boxes are larger than the picture"
    if float(np.median(size)) * min(height, width) < 2:
        return "its confident boxes are smaller than two pixels"
    return ""


def agreement(found: Hypothesis, runs: Sequence[Raw]) -> float:
    """How well a network's neighbouring candidates agree on an object, 0..1; nan without objects.

    Candidates that see one object come from several cells, anchors and levels. Read rightly they
    give one box; read with wrong anchors or another coding they do not.
    """
    decode = Decoder(replace(draft(found)))
    overlaps = []
    for run in runs:
        seen = decode([run[name] for name in decode_names(found)], 0.2)
        order = np.argsort(-seen.score)[:60]
        seen = seen[order]
        for i in range(min(len(seen), 8)):
            alike = (seen.class_id == seen.class_id[i]) & (np.arange(len(seen)) != i)
            others = seen.xyxy[alike]
            if not len(others):
                continue
            middle = (others[:, :2] + others[:, 2:]) / 2
            box = seen.xyxy[i]
            near = ((middle > box[:2]) & (middle < box[2:])).all(axis=1)
            if near.any():
                overlaps.append(float(_iou(box, others[near]).mean()))
    return float(np.mean(overlaps)) if overlaps else float("nan")


def decode_names(found: Hypothesis) -> tuple[str, ...]:
    """Names of the outputs that a hypothesis reads."""
    return tuple(name for head in found.heads for name in head.tensors)


def _iou(box: Array, others: Array) -> Array:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    area = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    overlap: Array = both / (area - both)
    return overlap
