"""YOLOv2's region loss as published (arXiv:1612.08242) and in Darknet's region_layer.c."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edge.spec import HeadSpec, ModelSpec
from edge.train.losses.targets import Matches, assign_best, box_iou, objects
from edge.train.losses.terms import (
    boxes_of_yolo,
    class_term,
    fitted,
    of_anchors,
    passed_over,
    total,
)
from edge.train.losses.yolov3 import cell_targets

__all__ = ["WARM_UP_IMAGES", "region_loss"]

WARM_UP_IMAGES = 12_800
_WARM_UP_SCALE = 0.01


def region_loss(
    outputs: Sequence[torch.Tensor],
    targets: torch.Tensor,
    spec: ModelSpec,
    seen: int = WARM_UP_IMAGES,
    *,
    ignore: float = 0.6,
    object_scale: float = 5.0,
    no_object_scale: float = 1.0,
    rescore: bool = True,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss per image; its gradient equals Darknet's deltas.

    It is half the squared errors of offsets, log sizes and confidence, and the cross entropy of
    the classes, with the scales of yolov2.cfg. The prediction of an object's best anchor aims at
    its IoU as confidence (at 1 without `rescore`); any other is pushed to 0 unless it overlaps an
    object by more than `ignore`. Until `seen` reaches 12 800 images, all others are drawn to their
    anchor in the middle of the cell.
    """
    spec = fitted(spec, outputs)
    head, hw, found = spec.heads[0], spec.contract.hw, objects(targets)
    if len(spec.heads) != 1:
        raise ValueError(f"{spec.name}: a region loss takes one head, not {len(spec.heads)}")
    raw = of_anchors(outputs[0], head, len(spec.classes))
    match = assign_best(found, spec.heads, hw)[0]
    at = (match.image, match.anchor, match.row, match.column)
    own, wanted = raw.permute(0, 1, 3, 4, 2)[at], found[match.target].to(raw)
    matched = torch.zeros_like(raw[:, :, 4], dtype=torch.bool)
    matched[at] = True
    boxes = boxes_of_yolo(raw.detach(), head, hw)
    level = box_iou(boxes[at], wanted[:, 2:6]) if rescore else wanted.new_ones(len(wanted))
    confidence = raw[:, :, 4].sigmoid()
    empty = ~matched & ~passed_over(boxes, targets, ignore)
    objectness = object_scale * (level - confidence[at]).square().sum()
    objectness = objectness + no_object_scale * confidence[empty].square().sum()
    box = _coordinates(own, wanted, match, head, hw)
    if seen < WARM_UP_IMAGES:
        box = box + _WARM_UP_SCALE * _to_anchors(raw, ~matched)
    softmax = head.class_activation == "softmax"
    label = class_term(own[:, 5:], wanted[:, 1].long(), softmax, weights)
    return total(box / 2, objectness / 2, label, len(raw))


def _coordinates(
    own: torch.Tensor, wanted: torch.Tensor, match: Matches, head: HeadSpec, hw: tuple[int, int]
) -> torch.Tensor:
    offset, size, weight = cell_targets(wanted, match, head, hw)
    errors = (own[:, :2].sigmoid() - offset).square() + (own[:, 2:4] - size).square()
    return (weight[:, None] * errors).sum()


def _to_anchors(raw: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    offset = (raw[:, :, :2].sigmoid() - 0.5).square().sum(dim=2)
    return (offset + raw[:, :, 2:4].square().sum(dim=2))[where].sum()
