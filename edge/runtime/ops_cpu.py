"""Pre- and post-processing on the CPU: the reference that the GPU kernels must equal.

Nothing here allocates per frame where the size is known beforehand: `Preprocessor` owns its
buffers, `Decoder` its grids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.letterbox import Letterbox
from edge.runtime.heads import ORDER, Part, candidate_table, parts_of
from edge.runtime.ort_nms import kept_by_class
from edge.spec import BoxCoding, HeadSpec, InputContract, ModelSpec

__all__ = ["MAX_CANDIDATES", "Decoder", "Preprocessor", "nms", "preprocess", "tables"]

Array = NDArray[np.float32]
# exp(20) cells is wider than any image; beyond it float32 overflows to inf.
_MAX_LOG_SIZE = 20.0
# Two factors of exp(40) fit float32; a logit beyond it has probability 0 anyhow.
_MAX_LOGIT = 40.0
# Greedy suppression is quadratic; scores beyond this rank never reach a report.
MAX_CANDIDATES = 3000


class Preprocessor:
    """Frames (H, W, 3) BGR uint8 to one (1, 3, *hw) float32 tensor, buffers allocated once.

    The tensor that `__call__` returns is overwritten by the next call.
    """

    def __init__(self, contract: InputContract) -> None:
        self.contract = contract
        self.tensor: Array = np.empty((1, 3, *contract.hw), np.float32)
        # A byte has 256 values: one table lookup does mean, scale and cast exactly.
        levels = np.arange(256, dtype=np.float64)
        self._tables = [
            ((levels - mean) * scale).astype(np.float32)
            for mean, scale in zip(contract.mean, contract.scale, strict=True)
        ]
        self._divisor = _divisor(contract, np.stack(self._tables))
        self._fit: Letterbox | None = None
        self._resized: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)
        self._planes: NDArray[np.uint8] = np.empty((3, 0, 0), np.uint8)
        self._split: list[NDArray[np.uint8]] = []
        self._inside: Array = np.empty((3, 0, 0), np.float32)

    def _place(self, source_hw: tuple[int, int]) -> Letterbox:
        fit = Letterbox.fit(source_hw, self.contract)
        height, width = fit.resized_hw
        left, top = fit.pad_xy
        self._resized = np.empty((height, width, 3), np.uint8)
        self._planes = np.empty((3, height, width), np.uint8)
        # OpenCV's channels are blue, green, red; the planes are in the tensor's order.
        ordered = self._planes[::-1] if self.contract.channel_order == "RGB" else self._planes
        self._split = list(ordered)
        for plane, table in zip(self.tensor[0], self._tables, strict=True):
            plane[...] = table[self.contract.pad_value]
        self._inside = self.tensor[0, :, top : top + height, left : left + width]
        self._fit = fit
        return fit

    def __call__(self, frame: NDArray[np.uint8]) -> tuple[Array, Letterbox]:
        """The tensor (1, 3, *hw) and where the frame lies in it.

        Raises:
            ValueError: `frame` is not (H, W, 3) uint8.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame is (H, W, 3) uint8 BGR, not {frame.shape} {frame.dtype}")
        fit = self._fit
        if fit is None or fit.source_hw != frame.shape[:2]:
            fit = self._place((frame.shape[0], frame.shape[1]))
        height, width = fit.resized_hw
        cv2.resize(frame, (width, height), dst=self._resized, interpolation=cv2.INTER_LINEAR)
        cv2.split(self._resized, self._split)
        if self._divisor is not None:
            np.divide(self._planes, self._divisor, out=self._inside, dtype=np.float32)
        else:
            for inside, table, plane in zip(self._inside, self._tables, self._planes, strict=True):
                cv2.LUT(plane, table, dst=inside)
        return self.tensor, fit


def _divisor(contract: InputContract, tables: Array) -> Array | None:
    """(3, 1, 1): what bytes divided by give the very numbers of `tables` (3, 256), if it does.

    A division of whole planes runs on vectors, table lookups do not.
    """
    if 0 in contract.scale:
        return None
    divisor = (1 / np.array(contract.scale)).astype(np.float32)[:, None]
    quotients = np.divide(np.arange(256, dtype=np.uint8), divisor, dtype=np.float32)
    return divisor[:, None] if np.array_equal(quotients, tables) else None


def preprocess(frame: NDArray[np.uint8], contract: InputContract) -> tuple[Array, Letterbox]:
    """One frame through a fresh `Preprocessor`; for paths where a frame's time does not count."""
    return Preprocessor(contract)(frame)


# What a candidate's numbers are raised to: x, y, width, height, objectness, best class.
_SIGNS = np.array((-1, -1, 1, 1, -1, -1), np.float32)[:, None]
_LIMITS = np.where(np.arange(6) // 2 == 1, _MAX_LOG_SIZE, _MAX_LOGIT).astype(np.float32)[:, None]


def _exponentials(picked: Array, top: Array) -> Array:
    """(6, M) of raw numbers (M, 5 + C) and best class logits (M,): exp of width and height.

    The other four are 1 / sigmoid: a product of several costs one division in the end. All of them
    together, because on so few numbers each call costs more than what it computes.
    """
    rows: Array = np.empty((6, len(picked)), np.float32)
    rows[:5], rows[5] = picked[:, :5].T, top
    rows *= _SIGNS
    np.minimum(rows, _LIMITS, out=rows)
    np.exp(rows, out=rows)
    rows[:2] += 1
    rows[4:] += 1
    return rows


class _Head:
    """One head's constants and how its candidates are picked.

    `table` (3, 2, candidates) holds for each candidate what its box is made of, in pixels of the
    network's input: origin and step of its centre, and half its anchor, across and down. A head
    without levels has none.

    Args:
        first: number of its first tensor among all heads' tensors.
    """

    def __init__(self, head: HeadSpec, first: int, classes: int, contract: InputContract) -> None:
        self.count = head.side_by_side
        self.rows = head.candidates // self.count
        self._last = head.layout.axis == "last"
        self._exact = self.count > 1 or head.kind != "foreign"
        each = [(head.columns(tensor, classes), tensor.tensor) for tensor in head.layout.tensors]
        self._needed = [
            (number, needed * self.rows, tensor, needed)
            for number, (needed, tensor) in enumerate(each, first)
        ]
        self._parts = parts_of(head, first, classes)
        order = [kind for kind in ORDER if kind in self._parts]
        # Columns that lie side by side already are taken in one go.
        chosen = [self._parts[kind] for kind in order]
        width = sum(part.width for part in chosen)
        self._together = all(
            left.source == right.source
            and left.column + left.width == right.column
            and left.step == right.step
            for left, right in pairwise(chosen)
        )
        self._picks = [chosen[0]._replace(width=width)] if self._together else chosen
        self._objectness = self._parts.get("objectness")
        self._objectness_at = chosen[0].width if self._together else 0
        self._softmax = head.score.classes == "softmax"
        background = head.score.background
        self._real = slice(background == "first", -1 if background == "last" else None)
        self.table = candidate_table(head, contract) if head.box.levels else None
        nowhere = None if self.table is None else self.table[:, :, :0]
        self._nothing = np.empty((0, width), np.float32), nowhere
        self._passed = np.empty((self.count, self.rows), np.bool_)
        self._passed_flat = self._passed.reshape(-1)

    def _view(self, raw: Sequence[NDArray[Any]], part: Part) -> NDArray[Any]:
        """(anchors, width, rows) of one kind, without a copy."""
        array = np.ascontiguousarray(raw[part.source])
        item = array.itemsize
        across, down = (self.rows, 1) if self._last else (1, array.size // self.rows)
        view: NDArray[Any] = np.ndarray(
            (self.count, part.width, self.rows),
            array.dtype,
            array,
            part.column * across * item,
            (part.step * across * item, across * item, down * item),
        )
        return view

    def pick(
        self, raw: Sequence[NDArray[Any]], gates: tuple[float, float]
    ) -> tuple[Array, Array | None]:
        """Raw numbers (M, columns) of what can pass, by `ORDER`, and its table (3, 2, M).

        A score is a product, so objectness alone can rule a box out before its classes are looked
        at: `gates` are the least raw objectness and the least raw class.

        Raises:
            ValueError: a tensor's size is not the spec's.
        """
        self._check(raw)
        views = [self._view(raw, part) for part in self._picks]
        whole = views[0]
        if self._objectness is not None:
            own = whole if self._together else self._view(raw, self._objectness)
            np.greater(own[:, self._objectness_at], gates[0], out=self._passed)
        else:
            own = self._view(raw, self._parts["classes"])
            np.greater(self._top(own), gates[1], out=self._passed)
        index = self._passed_flat.nonzero()[0]
        if not len(index):
            return self._nothing
        anchor, row = np.divmod(index, self.rows)
        table = None if self.table is None else self.table.take(index, axis=2)
        if self._together:
            return whole[anchor, :, row], table
        return np.concatenate([view[anchor, :, row] for view in views], axis=1), table

    def columns(self, raw: Sequence[NDArray[Any]]) -> dict[str, Array]:
        """Raw numbers of every candidate by kind, (anchors * rows, columns)."""
        self._check(raw)
        return {
            kind: self._view(raw, part).transpose(0, 2, 1).reshape(-1, part.width)
            for kind, part in self._parts.items()
        }

    def _check(self, raw: Sequence[NDArray[Any]]) -> None:
        for number, size, tensor, needed in self._needed:
            given = raw[number].size
            if given == size:
                continue
            # Maps have no columns that are not counted for; rows may have, such as landmarks.
            if self._exact or given % self.rows or given < size:
                raise ValueError(
                    f"{tensor} of shape {raw[number].shape} has not {self.rows} candidates of "
                    f"{needed} columns"
                )

    def _top(self, classes: NDArray[Any]) -> NDArray[Any]:
        """(anchors, rows): the best class's raw number, of softmax its log probability."""
        top: NDArray[Any] = classes[:, self._real].max(axis=1)
        if self._softmax:
            most = classes.max(axis=1)
            top = top - most - np.log(np.exp(classes - most[:, None]).sum(axis=1))
        return top


def tables(spec: ModelSpec, raw: Sequence[NDArray[Any]]) -> list[dict[str, Array]]:
    """The raw numbers of every head by kind, (candidates, columns), in the candidates' order.

    Raises:
        ValueError: an output's size is not the spec's.
    """
    found, first = [], 0
    for head in spec.heads:
        own = _Head(head, first, len(spec.classes), spec.contract)
        found.append(own.columns(raw))
        first += len(head.tensors)
    return found


def _every_class(logits: Array, objectness: Array, score: float) -> tuple[Any, Any, Array]:
    """Row (K,), class (K,) and score (K,) of every logistic class that passes `score`."""
    factors: Array = np.exp(np.minimum(-logits, _MAX_LOGIT))
    factors += 1
    factors *= objectness[:, None]
    scores = np.reciprocal(factors, out=factors)
    row, label = np.nonzero(scores > score)
    return row, label, scores[row, label]


def _best_score(logits: Array, top: Array, rows: Array, activation: str) -> Array:
    """Score (M,) of the best class: `rows` of `_exponentials`, `top` the class's logit."""
    scores: Array = rows[4] * rows[5]
    if activation == "none":
        np.divide(top, rows[4], out=scores)
    elif activation == "softmax":
        away = np.exp(np.maximum(logits - top[:, None], -_MAX_LOGIT))
        np.reciprocal(rows[4] * away.sum(axis=1), out=scores)
    else:
        np.reciprocal(scores, out=scores)
    return scores


def _boxes(rows: Array, table: Array, logistic: bool) -> Array:
    """Corners (4, K) xyxy in pixels of the network's input; overwrites `rows` (6, K).

    By rows of coordinates: numpy's inner loops run over the boxes, not over two columns.
    """
    origin, step, anchor = table
    half = rows[2:4] * anchor
    centre = step / rows[:2] if logistic else step * rows[:2]
    centre += origin
    np.subtract(centre, half, out=rows[:2])
    np.add(centre, half, out=rows[2:4])
    return rows[:4]


def _sigmoid(values: Array) -> Array:
    limited: Array = np.exp(np.minimum(-values, _MAX_LOGIT))
    limited += 1
    return np.reciprocal(limited, out=limited)


def _softmax(values: Array, axis: int) -> Array:
    away: Array = np.exp(values - values.max(axis=axis, keepdims=True))
    away /= away.sum(axis=axis, keepdims=True)
    return away


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": _sigmoid,
    "softmax": partial(_softmax, axis=1),
    "tanh": np.tanh,
    "exp": lambda values: np.exp(np.minimum(values, _MAX_LOG_SIZE)),
    "none": lambda values: values,
}


def _corners(box: BoxCoding, raw: Array, table: Array | None, whole: Array) -> Array:
    """`_unclipped`, or with its corners in the input."""
    corners = _unclipped(box, raw, table, whole)
    if not box.clip_boxes:
        return corners
    return np.clip(corners, 0, np.concatenate((whole, whole)))


def _unclipped(box: BoxCoding, raw: Array, table: Array | None, whole: Array) -> Array:
    """Corners (4, M) xyxy in pixels of the network's input, of raw numbers (M, 4 or 4 * bins).

    Args:
        table: (3, 2, M), see `_Head`; None for a head without levels.
        whole: (2, 1), width and height of the input.
    """
    if box.bins:
        weights = _softmax(raw.reshape(len(raw), 4, box.bins), axis=2)
        raw = (weights @ np.arange(box.bins, dtype=np.float32)).astype(np.float32)
    sides: Any = np.asarray(raw.T, np.float32)
    if box.order == "yx":
        sides = sides[[1, 0, 3, 2]]
    first, second = sides[:2], sides[2:]
    if table is None or box.form in ("corners", "centre"):
        unit: Any = whole if box.unit == "input" else np.float32(1)
        first, second = first * unit, second * unit
        if box.form == "centre":
            first, second = first - second / 2, first + second / 2
        return np.concatenate((first, second))
    origin, step, half = table
    if box.form == "distances":
        return np.concatenate((origin - step * first, origin + step * second))
    if box.form == "priors":
        half = half * _ACTIVATIONS["exp"](second * np.float32(box.variances[1]))
    else:
        first, factor = _ACTIVATIONS[box.activation](first), _ACTIVATIONS[box.size](second)
        half = half * (np.square(2 * factor) if box.squared else factor)
    centre = origin + step * first
    return np.concatenate((centre - half, centre + half))


class Decoder:
    """Raw heads to `Detections` in input pixels, before suppression; what they mean says the spec.

    Args:
        spec: the detector.
        multi_label: logistic classes do not exclude each other: let each of a candidate's classes
            be a detection, as Darknet's own evaluation does, not only its best. No effect on
            softmax heads and on rows with a label.
    """

    def __init__(self, spec: ModelSpec, *, multi_label: bool = False) -> None:
        classes, contract, first = len(spec.classes), spec.contract, 0
        self._heads: list[_Head] = []
        for head in spec.heads:
            self._heads.append(_Head(head, first, classes, contract))
            first += len(head.tensors)
        self._tensors, self._classes = first, classes
        self._box, self._score = spec.heads[0].box, spec.heads[0].score
        self._held = spec.heads[0].layout.held
        self.suppressed = spec.heads[0].layout.suppressed
        self._whole: Array = np.array(contract.hw[::-1], np.float32)[:, None]
        for head in spec.heads[1:]:
            # Each level brings its own stretch in its table, as YOLOv4's heads have different ones.
            box = replace(head.box, levels=self._box.levels, stretch=self._box.stretch)
            alike = box == self._box
            if not alike or head.score != self._score or head.layout.held != self._held:
                raise ValueError(
                    f"{spec.name}: heads of different codings: {head.box}, {head.score} and "
                    f"{self._box}, {self._score}"
                )
        background = self._score.background
        self._real = slice(background == "first", -1 if background == "last" else None)
        own = {head.kind for head in spec.heads}
        logistic = {"sigmoid", "none"} if "foreign" in own else {"sigmoid"}
        self._multi_label = (
            multi_label and self._score.classes in logistic and "label" not in self._held
        )
        # Our own heads have all their exponentials in one call.
        self._fused = "foreign" not in own
        self._logistic = own != {"convdet"}

    def __call__(self, raw: Sequence[NDArray[Any]], score: float) -> Detections:
        """What scores above `score`; raw output i is that of `spec.tensors[i]`.

        Raises:
            ValueError: the number of outputs or an output's size is not the spec's.
        """
        if len(raw) != self._tensors:
            raise ValueError(f"{len(raw)} raw outputs for heads that read {self._tensors}")
        gates = self._gates(score)
        parts = [part for head in self._heads if len((part := head.pick(raw, gates))[0])]
        if not parts:
            return Detections.empty()
        picked = parts[0][0] if len(parts) == 1 else np.concatenate([part[0] for part in parts])
        tables = [part[1] for part in parts if part[1] is not None]
        table = np.concatenate(tables, axis=2) if tables else None
        if self._fused and table is not None:
            corners, scores, label = self._decode_fused(picked, table, score)
        else:
            corners, scores, label = self._decode(picked, table, score)
        found = Detections(corners.T, scores, label)
        # A NaN fails every comparison, so it leaves here or above, in a side or in a score.
        sided = corners[2:] > corners[:2]
        return found if sided.all() else found[sided.all(axis=0)]

    def _gates(self, score: float) -> tuple[float, float]:
        """The least raw objectness and the least raw class that `score` takes."""
        gates = []
        activations = (self._score.objectness, self._score.classes)
        for activation, power in zip(activations, self._score.powers, strict=True):
            # Room for the rounding of a root.
            least = score if power == 1 else score ** (1 / power) * 0.99999 if score > 0 else score
            if activation == "sigmoid":
                gates.append(float(np.log(least / (1 - least))) if 0 < least < 1 else -np.inf)
            elif activation == "softmax":
                gates.append(float(np.log(least)) - 1e-5 if least > 0 else -np.inf)
            else:
                gates.append(least)
        return gates[0], gates[1]

    def _decode_fused(
        self, picked: Array, table: Array, score: float
    ) -> tuple[Array, Array, NDArray[Any]]:
        """Corners (4, K), scores and classes of what passes; for our own heads."""
        logits = picked[:, 5:]
        label: Any = logits.argmax(axis=1)
        top = logits[np.arange(len(label)), label]
        rows = _exponentials(picked, top)
        if not self._logistic:
            rows[:2] = picked[:, :2].T
        if self._multi_label:
            passed, label, scores = _every_class(logits, rows[4], score)
        else:
            scores = _best_score(logits, top, rows, self._score.classes)
            passed = (scores > score).nonzero()[0]
            label, scores = label.take(passed), scores.take(passed)
        rows, table = rows.take(passed, axis=1), table.take(passed, axis=2)
        return _boxes(rows, table, self._logistic), scores, label

    def _decode(
        self, picked: Array, table: Array | None, score: float
    ) -> tuple[Array, Array, NDArray[Any]]:
        """Corners (4, K), scores and classes of what passes; for any head."""
        picked = np.asarray(picked, np.float32)
        coding, held = self._score, self._held
        width = 4 * max(1, self._box.bins)
        rest = picked[:, width:]
        scores: Any = np.ones(len(picked), np.float32)
        label: Any = np.zeros(len(picked), np.int64)
        if "objectness" in held:
            scores = _ACTIVATIONS[coding.objectness](rest[:, 0]) ** np.float32(coding.powers[0])
            rest = rest[:, 1:]
        passed: Any = None
        if "label" in held:
            scores = scores * _ACTIVATIONS[coding.classes](rest[:, :1])[:, 0]
            # A number that is no class, a NaN too, becomes one that no model has.
            named = np.nan_to_num(rest[:, -1], nan=-1e9, posinf=-1e9, neginf=-1e9)
            label = np.rint(named).astype(np.int64) - coding.first_label
            scores[(label < 0) | (label >= self._classes)] = 0
        elif "classes" in held:
            of = _ACTIVATIONS[coding.classes](rest)[:, self._real] ** np.float32(coding.powers[1])
            each = of * scores[:, None]
            if self._multi_label:
                passed, label = np.nonzero(each > score)
                scores = each[passed, label]
            else:
                label = each.argmax(axis=1)
                scores = each[np.arange(len(label)), label]
        if passed is None:
            passed = (scores > score).nonzero()[0]
            label, scores = label.take(passed), scores.take(passed)
        table = None if table is None else table.take(passed, axis=2)
        boxes = picked[:, :width].take(passed, axis=0)
        return _corners(self._box, boxes, table, self._whole), scores, label

    def suppress(self, found: Detections, iou: float, limit: int) -> Detections:
        """`nms`; what the graph has suppressed itself is only put in order, the best first."""
        if not self.suppressed:
            if not self._score.exclusive or self._multi_label:
                return nms(found, iou, limit)
            return found[_kept(replace(found, class_id=np.zeros_like(found.class_id)), iou, limit)]
        return found[(-found.score).argsort(kind="stable")[:limit]]


def nms(found: Detections, iou: float = 0.45, limit: int = 300) -> Detections:
    """Greedy non-maximum suppression within each class, highest score first.

    A box goes when its IoU with a kept box of its class is above `iou`. At most `limit` stay.
    Boxes of no area are not expected here; `Decoder` leaves them out. Beyond `MAX_CANDIDATES` the
    lowest scores are not looked at.
    """
    return found[_kept(found, iou, limit)]


def _kept(found: Detections, iou: float, limit: int) -> NDArray[np.int64]:
    """Which boxes stay, the best first."""
    chosen: NDArray[np.int64] | None = None
    if len(found) > MAX_CANDIDATES:
        chosen = np.argsort(-found.score, kind="stable")[:MAX_CANDIDATES]
        found = found[chosen]
    count = len(found)
    if not count:
        return np.zeros(0, np.int64)
    scores = np.zeros((int(found.class_id.max()) + 1, count), np.float32)
    scores[found.class_id, np.arange(count)] = found.score
    kept = kept_by_class(found.xyxy, scores, iou, limit)
    # Equal scores stay in the order of their boxes, whatever their classes.
    kept.sort()
    best = (-found.score[kept]).argsort(kind="stable")[:limit]
    kept = kept[best]
    return kept if chosen is None else chosen[kept]
