"""Where a head's numbers lie and what its candidates' boxes are made of, for CPU and GPU alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.spec import HeadSpec, Holds, InputContract

__all__ = ["ORDER", "Part", "candidate_table", "parts_of"]

# What a picked candidate's numbers are, in this order.
ORDER: tuple[Holds, ...] = ("box", "objectness", "classes", "label")


class Part(NamedTuple):
    """One kind of columns in one tensor: where it begins, and columns to the next anchor."""

    source: int
    column: int
    step: int
    width: int


def parts_of(head: HeadSpec, first: int, classes: int) -> dict[str, Part]:
    """Where each kind of columns lies; `classes` without a column are left out."""
    parts: dict[str, Part] = {}
    side_by_side = head.layout.anchors == "kinds"
    for source, tensor in enumerate(head.layout.tensors, first):
        widths = [head.width(kind, classes) for kind in tensor.holds]
        shared = [kind == "classes" and head.layout.shared_classes for kind in tensor.holds]
        own = sum(width for width, one in zip(widths, shared, strict=True) if not one)
        column = 0
        for kind, width, one in zip(tensor.holds, widths, shared, strict=True):
            step = 0 if one else width if side_by_side else own
            if kind != "other":
                parts[kind] = Part(source, column, step, width)
            column += width * (head.side_by_side if side_by_side and not one else 1)
    return parts


def candidate_table(head: HeadSpec, contract: InputContract) -> NDArray[np.float32]:
    """Origin and step of a candidate's centre and half its anchor: (3, 2, candidates), pixels."""
    box, whole = head.box, np.array(contract.hw[::-1], np.float64)
    levels = []
    for level in box.levels:
        rows, columns = level.grid_hw
        grid = np.array((columns, rows))
        at = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=2).reshape(-1, 2)
        stride = whole / (grid + box.margin) if level.stride is None else np.full(2, level.stride)
        centre = (at + box.shift) * stride
        anchors = np.asarray(level.anchors, np.float64)
        if box.clip_priors:
            centre, anchors = np.clip(centre, 0, whole), np.clip(anchors, 0, whole)
        step = {"cells": stride, "pixels": np.ones(2), "input": whole}[box.unit]
        if box.form == "grid":
            centre = centre - (box.stretch - 1) / 2 * stride
            step = box.stretch * stride
        parts = np.empty((len(anchors), len(at), 3, 2))
        parts[:, :, 0] = centre
        parts[:, :, 1] = box.variances[0] * anchors[:, None] if box.form == "priors" else step
        parts[:, :, 2] = anchors[:, None] / 2
        if head.layout.anchors == "inner":
            parts = parts.swapaxes(0, 1)
        levels.append(parts.reshape(-1, 3, 2))
    return np.ascontiguousarray(np.concatenate(levels).transpose(1, 2, 0), np.float32)
