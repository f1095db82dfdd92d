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
from edge.spec import HeadSpec, InputContract, ModelSpec

__all__ = ["Decoder", "Preprocessor", "nms", "preprocess"]

Array = NDArray[np.float32]

# exp(20) cells is wider than any image; beyond it float32 overflows to inf.
_MAX_LOG_SIZE = 20.0
# Greedy suppression is quadratic; scores beyond this rank never reach a report.
_MAX_CANDIDATES = 3000


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
        self._planes_of = (2, 1, 0) if contract.channel_order == "RGB" else (0, 1, 2)
        self._fit: Letterbox | None = None
        self._resized: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)
        self._planes: list[NDArray[np.uint8]] = []
        self._inside: list[Array] = []

    def _place(self, source_hw: tuple[int, int]) -> Letterbox:
        fit = Letterbox.fit(source_hw, self.contract)
        height, width = fit.resized_hw
        left, top = fit.pad_xy
        self._resized = np.empty((height, width, 3), np.uint8)
        self._planes = [np.empty((height, width), np.uint8) for _ in range(3)]
        self._inside = []
        for channel, table in enumerate(self._tables):
            plane = self.tensor[0, channel]
            plane[...] = table[self.contract.pad_value]
            self._inside.append(plane[top : top + height, left : left + width])
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
        cv2.split(self._resized, self._planes)
        for inside, table, source in zip(self._inside, self._tables, self._planes_of, strict=True):
            if inside.flags.c_contiguous:
                cv2.LUT(self._planes[source], table, dst=inside)
            else:  # a border at the left: OpenCV cannot write into a strided view in place
                inside[...] = cv2.LUT(self._planes[source], table)
        return self.tensor, fit


def preprocess(frame: NDArray[np.uint8], contract: InputContract) -> tuple[Array, Letterbox]:
    """One frame through a fresh `Preprocessor`; for paths where a frame's time does not count."""
    return Preprocessor(contract)(frame)


def _sigmoid(x: NDArray[Any]) -> Array:
    result: Array = 1 / (1 + np.exp(-np.clip(x, -80, 80)))
    return result


class _Head:
    """One head's constants and its decoding; boxes in pixels of the network's input."""

    def __init__(self, head: HeadSpec, classes: int, contract: InputContract) -> None:
        self.spec, self.classes = head, classes
        rows, columns = head.grid_hw
        self.count = len(head.anchors)
        self.anchors = np.asarray(head.anchors, np.float32)
        self.cells = rows * columns
        self.columns = columns
        height, width = contract.hw
        self.stride = np.array([width / columns, height / rows], np.float32)
        # Upstream SqueezeDet spreads the anchors' centres over W/(columns + 1) steps.
        self.spread = np.array([width / (columns + 1), height / (rows + 1)], np.float32)
        self.shape = (self.count, 5 + classes, self.cells)

    def candidates(self, raw: NDArray[Any], gate: float) -> tuple[Array, Array, Array]:
        """Logits of what can pass `gate` (a logit): objectness (M,), classes (M, C), xyxy (M, 4).

        A score is objectness times class probability, so objectness alone can rule a box out,
        before its classes are looked at.
        """
        if self.spec.kind == "convdet":
            objectness, classes, boxes, anchor, cell = self._gather_convdet(raw, gate)
        else:
            objectness, classes, boxes, anchor, cell = self._gather_yolo(raw, gate)
        row, column = np.divmod(cell, self.columns)
        at = np.stack((column, row), axis=1).astype(np.float32)
        size = self.anchors[anchor] * np.exp(np.minimum(boxes[:, 2:], _MAX_LOG_SIZE))
        if self.spec.kind == "convdet":
            centre = (at + 1) * self.spread + boxes[:, :2] * self.anchors[anchor]
        else:
            stretch = self.spec.scale_xy
            offset = _sigmoid(boxes[:, :2]) * stretch - (stretch - 1) / 2
            centre = (at + offset) * self.stride
        half = size / 2
        return objectness, classes, np.concatenate((centre - half, centre + half), axis=1)

    def _gather_yolo(self, raw: NDArray[Any], gate: float) -> tuple[Any, ...]:
        grid = raw.reshape(self.shape)
        anchor, cell = np.nonzero(grid[:, 4] > gate)
        picked = grid[anchor, :, cell]
        return picked[:, 4], picked[:, 5:], picked[:, :4], anchor, cell

    def _gather_convdet(self, raw: NDArray[Any], gate: float) -> tuple[Any, ...]:
        k, c = self.count, self.classes
        flat = raw.reshape(k * (c + 5), self.cells)
        confidence = flat[k * c : k * (c + 1)]
        anchor, cell = np.nonzero(confidence > gate)
        classes = flat[: k * c].reshape(k, c, self.cells)[anchor, :, cell]
        deltas = flat[k * (c + 1) :].reshape(k, 4, self.cells)[anchor, :, cell]
        return confidence[anchor, cell], classes, deltas, anchor, cell


def _every_class(logits: Array, objectness: Array, score: float) -> tuple[Any, Any, Array]:
    """Row (K,), class (K,) and score (K,) of every logistic class that passes `score`."""
    scores = _sigmoid(logits) * objectness[:, None]
    row, label = np.nonzero(scores > score)
    return row, label, scores[row, label]


def _best_class(logits: Array, objectness: Array, activation: str) -> tuple[Any, Array]:
    """Class (M,) and score (M,) of each row's best class."""
    label = logits.argmax(axis=1)
    top = logits[np.arange(len(logits)), label]
    if activation == "softmax":
        top = 1 / np.exp(np.clip(logits - top[:, None], -80, 0)).sum(axis=1)
    elif activation == "sigmoid":
        top = _sigmoid(top)
    return label, top * objectness


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
        self._multi_label = multi_label and self._activation == "sigmoid"

    def __call__(self, raw: list[NDArray[Any]], score: float) -> Detections:
        """What scores above `score`; raw head i is (1, channels, h, w).

        Raises:
            ValueError: the number of heads or a head's size is not the spec's.
        """
        if len(raw) != len(self._heads):
            raise ValueError(f"{len(raw)} raw outputs for {len(self._heads)} heads")
        gate = float(np.log(score / (1 - score))) if 0 < score < 1 else -np.inf
        parts = [head.candidates(array, gate) for head, array in zip(self._heads, raw, strict=True)]
        objectness, logits, xyxy = (np.concatenate(part) for part in zip(*parts, strict=True))
        if self._multi_label:
            row, label, scores = _every_class(logits, _sigmoid(objectness), score)
            xyxy = xyxy[row]
        else:
            label, scores = _best_class(logits, _sigmoid(objectness), self._activation)
        # A NaN fails every comparison, so it leaves here too, whether in a score or a side.
        keep = (scores > score) & ((xyxy[:, 2:] - xyxy[:, :2]) > 0).all(axis=1)
        return Detections(xyxy[keep], scores[keep], label[keep].astype(np.int32))


def nms(found: Detections, iou: float = 0.45, limit: int = 300) -> Detections:
    """Greedy non-maximum suppression within each class, highest score first.

    A box goes when its IoU with a kept box of its class is above `iou`. At most `limit` stay.
    Boxes of no area are not expected here; `Decoder` leaves them out.
    """
    if not len(found):
        return found
    xywh = found.xyxy.astype(np.float64)
    # Classes moved apart by more than any box reaches cannot suppress each other.
    apart = float(np.abs(xywh).max()) * 2 + 1
    xywh[:, 2:] -= xywh[:, :2]
    xywh[:, :2] += found.class_id[:, None] * apart
    kept = cv2.dnn.NMSBoxes(xywh, found.score, 0.0, iou, top_k=_MAX_CANDIDATES)  # type: ignore[arg-type]
    return found[np.asarray(kept, np.intp)[:limit]]
