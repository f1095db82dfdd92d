"""The losses: raw heads against targets (M, 6) as in `edge.train.losses.targets`.

The `ciou` losses, the default, use complete IoU for boxes and match more predictions than the
papers, which trains small detectors faster. Each is a sum over the batch divided by the number of
positive predictions. The `published` losses are in the other files of this folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.nn import functional

from edge.spec import ModelSpec
from edge.train.losses.region import WARM_UP_IMAGES, region_loss
from edge.train.losses.squeezedet import squeezedet_loss
from edge.train.losses.targets import anchor_grid, assign_convdet, assign_yolo, box_iou, objects
from edge.train.losses.terms import (
    boxes_of_convdet,
    boxes_of_yolo,
    class_term,
    fitted,
    full,
    of_anchors,
    parts_of_convdet,
    passed_over,
    positives,
    total,
)
from edge.train.losses.yolov3 import yolov3_loss

__all__ = ["KINDS", "Loss", "ciou", "convdet_loss", "loss_for", "yolo_loss"]

# A loss and its parts.
LossParts = tuple[torch.Tensor, dict[str, float]]
Loss = Callable[[Sequence[torch.Tensor], torch.Tensor], LossParts]
KINDS = ("ciou", "published")


def ciou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the complete IoU (arXiv:1911.08287) of boxes (P, 4) by centre and size: (P,)."""
    iou = box_iou(a, b)
    low = torch.minimum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = torch.maximum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    diagonal = (high - low).square().sum(dim=1) + 1e-9
    apart = (a[:, :2] - b[:, :2]).square().sum(dim=1)
    turn = torch.atan(b[:, 2] / b[:, 3]) - torch.atan(a[:, 2] / a[:, 3])
    aspect = (4 / math.pi**2) * turn.square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect + 1e-9)
    return iou - apart / diagonal - weight * aspect


def yolo_loss(
    outputs: Sequence[torch.Tensor],
    targets: torch.Tensor,
    spec: ModelSpec,
    ignore: float = 0.6,
    box_gain: float = 3.0,
    weights: torch.Tensor | None = None,
) -> LossParts:
    """Return YOLOv3's loss (arXiv:1804.02767) with complete IoU for the boxes.

    It serves `[region]` heads as well. Objectness and classes are logistic (softmax where the head
    has it); a prediction that matches nothing but overlaps an object by more than `ignore` is not
    pushed to zero.
    """
    spec = fitted(spec, outputs)
    hw, classes, found = spec.contract.hw, len(spec.classes), objects(targets)
    matches = assign_yolo(found, spec.heads, hw)
    count = positives(sum(len(match.target) for match in matches), targets)
    box = full(outputs[0]).new_zeros(())
    objectness, label = box.clone(), box.clone()
    for output, head, match in zip(outputs, spec.heads, matches, strict=True):
        raw = of_anchors(output, head, classes)
        boxes, wanted = boxes_of_yolo(raw, head, hw), found[match.target].to(raw)
        at = (match.image, match.anchor, match.row, match.column)
        box = box + (1 - ciou(boxes[at], wanted[:, 2:6])).sum()
        objectness = objectness + _objectness(raw[:, :, 4], boxes.detach(), at, targets, ignore)
        logits = raw.permute(0, 1, 3, 4, 2)[at][:, 5:]
        softmax = head.class_activation == "softmax"
        label = label + class_term(logits, wanted[:, 1].long(), softmax, weights)
    return total(box_gain * box, objectness, label, count)


def _objectness(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    at: tuple[torch.Tensor, ...],
    targets: torch.Tensor,
    ignore: float,
) -> torch.Tensor:
    wanted = torch.zeros_like(logits)
    wanted[at] = 1.0
    weight = (~passed_over(boxes, targets, ignore) | (wanted > 0)).to(logits)
    return functional.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")


def convdet_loss(
    output: torch.Tensor,
    targets: torch.Tensor,
    spec: ModelSpec,
    ignore: float = 0.6,
    box_gain: float = 5.0,
    weights: torch.Tensor | None = None,
) -> LossParts:
    """Return SqueezeDet's loss (arXiv:1612.01051): squared deltas, softmax classes, IoU confidence.

    The paper squares the error of the confidence, with weights of 75 and 100. This takes the
    logistic loss towards the same IoU, which needs no such weights, and ignores predictions as
    `yolo_loss` does.
    """
    spec = fitted(spec, [output])
    head, hw, found = spec.heads[0], spec.contract.hw, objects(targets)
    logits, confidence, deltas = parts_of_convdet(full(output), head, len(spec.classes))
    match = assign_convdet(found, head, hw)
    at = (match.image, match.anchor, match.row, match.column)
    grid, wanted = anchor_grid(head, hw).to(deltas), found[match.target].to(deltas)[:, 2:6]
    own = grid[at[1:]]
    shift = (wanted[:, :2] - own[:, :2]) / own[:, 2:]
    aim = torch.cat([shift, (wanted[:, 2:] / own[:, 2:]).log()], dim=1)
    box = (deltas[at] - aim).square().sum()
    with torch.no_grad():
        boxes = boxes_of_convdet(deltas, grid)
        level, matched = torch.zeros_like(confidence), torch.zeros_like(confidence)
        level[at], matched[at] = box_iou(boxes[at], wanted), 1.0
        weight = (~passed_over(boxes, targets, ignore) | (matched > 0)).to(level)
    objectness = functional.binary_cross_entropy_with_logits(
        confidence, level, weight, reduction="sum"
    )
    label = class_term(logits[at], found[match.target, 1].long(), True, weights)
    return total(box_gain * box, objectness, label, positives(len(match.target), targets))


def _seen_enough() -> int:
    return WARM_UP_IMAGES


def loss_for(
    spec: ModelSpec,
    kind: Literal["ciou", "published"] = "ciou",
    *,
    weights: torch.Tensor | None = None,
    seen: Callable[[], int] = _seen_enough,
    region: bool = False,
) -> Loss:
    """Return the loss that fits a model's heads.

    Args:
        spec: the detector.
        kind: complete IoU, or the papers' own loss.
        weights: (C,) of the class term, by an object's class; see `edge.train.session`.
        seen: training images so far, for the warm-up of the published region loss.
        region: the head is a `[region]`, which a spec without softmax does not tell from a
            `[yolo]`.

    Raises:
        ValueError: the heads cannot be trained here, or there is no such loss.
    """
    if kind not in KINDS:
        raise ValueError(f"loss is {kind!r}; known: {', '.join(KINDS)}")
    kinds = {head.kind for head in spec.heads}
    options: dict[str, Any] = {"spec": spec, "weights": weights}
    if len(kinds) == 1 and kinds <= {"yolo", "region"}:
        if kind == "ciou":
            return partial(yolo_loss, **options)
        if kinds == {"yolo"} and not region:
            return partial(yolov3_loss, **options)
        return lambda outputs, targets: region_loss(outputs, targets, seen=seen(), **options)
    if kinds == {"convdet"} and len(spec.heads) == 1:
        chosen = convdet_loss if kind == "ciou" else squeezedet_loss
        return lambda outputs, targets: chosen(outputs[0], targets, **options)
    raise ValueError(
        f"{spec.name}: heads {sorted(kinds)} cannot be trained; yolo, region and convdet can"
    )
