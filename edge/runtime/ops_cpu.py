"""Pre- and post-processing on the CPU: the reference that the GPU kernels must equal.

Nothing here allocates per frame where the size is known beforehand: `Preprocessor` owns its
buffers, `Decoder` its grids.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.letterbox import Letterbox
from edge.runtime.ort_nms import kept_by_class
from edge.spec import HeadSpec, InputContract, ModelSpec

__all__ = ["MAX_CANDIDATES", "Decoder", "Preprocessor", "nms", "preprocess"]

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

    `table` (3, 2, anchors * cells) holds for each candidate what its box is made of, in pixels of
    the network's input: origin and step of its centre, and half its anchor, across and down.
    """

    def __init__(self, head: HeadSpec, classes: int, contract: InputContract) -> None:
        self.kind, self.classes = head.kind, classes
        self.count, (rows, columns) = len(head.anchors), head.grid_hw
        self.cells = rows * columns
        self.shape = (self.count, 5 + classes, self.cells)
        height, width = contract.hw
        at = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=2).reshape(-1, 2)
        anchors = np.asarray(head.anchors, np.float64)[:, None]
        if head.kind == "convdet":
            # Upstream SqueezeDet spreads the anchors' centres over W/(columns + 1) steps.
            origin, step = (at + 1) * (width / (columns + 1), height / (rows + 1)), anchors
        else:
            stride = np.array((width / columns, height / rows))
            origin = (at - (head.scale_xy - 1) / 2) * stride
            step = (head.scale_xy * stride)[None, None]
        parts = [np.broadcast_to(part, (self.count, self.cells, 2)) for part in (origin, step)]
        parts.append(np.broadcast_to(anchors / 2, parts[0].shape))
        table = np.concatenate(parts, axis=2).reshape(-1, 3, 2).transpose(1, 2, 0)
        self.table = np.ascontiguousarray(table, np.float32)
        self._nothing = np.empty((0, 5 + classes), np.float32), self.table[:, :, :0]
        self._passed = np.empty((self.count, self.cells), np.bool_)
        self._passed_flat = self._passed.reshape(-1)

    def pick(self, raw: NDArray[Any], gate: float) -> tuple[Array, Array]:
        """Raw numbers (M, 4 + 1 + C) of what can pass `gate` (a logit), and its table (3, 2, M).

        A score is objectness times class probability, so objectness alone can rule a box out,
        before its classes are looked at.
        """
        if self.kind == "convdet":
            return self._pick_convdet(raw, gate)
        grid = raw.reshape(self.shape)
        np.greater(grid[:, 4], gate, out=self._passed)
        index = self._passed_flat.nonzero()[0]
        if not len(index):
            return self._nothing
        anchor, cell = np.divmod(index, self.cells)
        return grid[anchor, :, cell], self.table.take(index, axis=2)

    def _pick_convdet(self, raw: NDArray[Any], gate: float) -> tuple[Array, Array]:
        """Upstream's layout: all class logits, all confidences, all deltas; each by anchor."""
        k, c = self.count, self.classes
        flat = raw.reshape(k * (c + 5), self.cells)
        confidence = flat[k * c : k * (c + 1)]
        np.greater(confidence, gate, out=self._passed)
        index = self._passed_flat.nonzero()[0]
        if not len(index):
            return self._nothing
        anchor, cell = np.divmod(index, self.cells)
        classes = flat[: k * c].reshape(k, c, self.cells)[anchor, :, cell]
        deltas = flat[k * (c + 1) :].reshape(k, 4, self.cells)[anchor, :, cell]
        parts = (deltas, confidence[anchor, cell, None], classes)
        return np.concatenate(parts, axis=1), self.table.take(index, axis=2)


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
    if activation == "linear":
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


class Decoder:
    """Raw heads to `Detections` in input pixels, before suppression.

    Formulas: region arXiv:1612.08242 section 2, yolo arXiv:1804.02767 section 2.1,
    convdet arXiv:1612.01051 equation 1.

    Args:
        spec: the detector.
        multi_label: logistic classes do not exclude each other: let each of an anchor's classes
            be a detection, as Darknet's own evaluation does, not only its best. No effect on
            softmax heads.
    """

    def __init__(self, spec: ModelSpec, *, multi_label: bool = False) -> None:
        self._heads = [_Head(head, len(spec.classes), spec.contract) for head in spec.heads]
        activations = {head.class_activation for head in spec.heads}
        if len(activations) != 1:
            raise ValueError(f"{spec.name}: heads of different class activations: {activations}")
        self._activation = activations.pop()
        kinds = {head.kind == "convdet" for head in spec.heads}
        if len(kinds) != 1:
            raise ValueError(f"{spec.name}: convdet heads beside others")
        self._logistic = not kinds.pop()
        self._multi_label = multi_label and self._activation == "sigmoid"

    def __call__(self, raw: list[NDArray[Any]], score: float) -> Detections:
        """What scores above `score`; raw head i is (1, channels, h, w).

        Raises:
            ValueError: the number of heads or a head's size is not the spec's.
        """
        if len(raw) != len(self._heads):
            raise ValueError(f"{len(raw)} raw outputs for {len(self._heads)} heads")
        gate = float(np.log(score / (1 - score))) if 0 < score < 1 else -np.inf
        parts = [head.pick(array, gate) for head, array in zip(self._heads, raw, strict=True)]
        parts = [part for part in parts if len(part[0])]
        if not parts:
            return Detections.empty()
        picked = np.concatenate([part[0] for part in parts])
        table = np.concatenate([part[1] for part in parts], axis=2)
        logits = picked[:, 5:]
        label: Any = logits.argmax(axis=1)
        top = logits[np.arange(len(label)), label]
        rows = _exponentials(picked, top)
        if not self._logistic:
            rows[:2] = picked[:, :2].T
        if self._multi_label:
            passed, label, scores = _every_class(logits, rows[4], score)
        else:
            scores = _best_score(logits, top, rows, self._activation)
            passed = (scores > score).nonzero()[0]
            label, scores = label.take(passed), scores.take(passed)
        rows, table = rows.take(passed, axis=1), table.take(passed, axis=2)
        corners = _boxes(rows, table, self._logistic)
        found = Detections(corners.T, scores, label)
        # A NaN fails every comparison, so it leaves here or above, in a side or in a score.
        sided = corners[2:] > corners[:2]
        return found if sided.all() else found[sided.all(axis=0)]


def nms(found: Detections, iou: float = 0.45, limit: int = 300) -> Detections:
    """Greedy non-maximum suppression within each class, highest score first.

    A box goes when its IoU with a kept box of its class is above `iou`. At most `limit` stay.
    Boxes of no area are not expected here; `Decoder` leaves them out. Beyond `MAX_CANDIDATES` the
    lowest scores are not looked at.
    """
    if len(found) > MAX_CANDIDATES:
        found = found[np.argsort(-found.score, kind="stable")[:MAX_CANDIDATES]]
    count = len(found)
    if not count:
        return found
    scores = np.zeros((int(found.class_id.max()) + 1, count), np.float32)
    scores[found.class_id, np.arange(count)] = found.score
    kept = kept_by_class(found.xyxy, scores, iou, limit)
    # Equal scores stay in the order of their boxes, whatever their classes.
    kept.sort()
    best = (-found.score[kept]).argsort(kind="stable")[:limit]
    return found[kept[best]]
