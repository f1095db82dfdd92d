"""YOLOv3's loss as published (arXiv:1804.02767, section 2.1), with the gradient of Darknet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from edge.spec import HeadSpec, ModelSpec
from edge.train.losses.targets import Matches, assign_best, objects
from edge.train.losses.terms import (
    boxes_of_yolo,
    class_term,
    fitted,
    of_anchors,
    passed_over,
    total,
)

__all__ = ["cell_targets", "yolov3_loss"]


def yolov3_loss(
    outputs: Sequence[torch.Tensor],
    targets: torch.Tensor,
    spec: ModelSpec,
    ignore: float = 0.5,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss per image, summed over all scales.

    An object has one prediction, that of its best anchor over all scales. "Our gradient is the
    ground truth value minus our prediction": for the offsets, which a sigmoid gives, that is the
    logistic loss, for the log sizes half the squared error; both times 2 - w*h of the object's
    share of the picture (`delta_yolo_box` in Darknet's yolo_layer.c). Objectness and classes are
    logistic; a prediction that overlaps an object by more than `ignore` is not pushed to zero.
    """
    spec = fitted(spec, outputs)
    hw, found = spec.contract.hw, objects(targets)
    sums: list[torch.Tensor] = []
    for output, head, match in zip(
        outputs, spec.heads, assign_best(found, spec.heads, hw), strict=True
    ):
        raw = of_anchors(output, head, len(spec.classes))
        at = (match.image, match.anchor, match.row, match.column)
        own = raw.permute(0, 1, 3, 4, 2)[at]
        label = class_term(own[:, 5:], found[match.target, 1].long(), False, weights)
        parts = (
            _coordinates(own, found[match.target].to(raw), match, head, hw),
            _objectness(
                raw, at, passed_over(boxes_of_yolo(raw.detach(), head, hw), targets, ignore)
            ),
            label,
        )
        sums.append(torch.stack(parts))
    box, objectness, label = torch.stack(sums).sum(dim=0)
    return total(box, objectness, label, len(outputs[0]))


def cell_targets(
    wanted: torch.Tensor, match: Matches, head: HeadSpec, hw: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what matched targets (P, 6) ask for.

    Returns:
        The offset in the cell (P, 2), the log size over the anchor (P, 2), and the weight 2 - w*h
        (P,) of the object's share of the picture.
    """
    rows, columns = head.grid_hw
    cells = wanted.new_tensor((columns / hw[1], rows / hw[0]))
    offset = wanted[:, 2:4] * cells - torch.stack([match.column, match.row], dim=1)
    size = (wanted[:, 4:6] / wanted.new_tensor(head.anchors)[match.anchor]).log()
    return offset, size, 2 - wanted[:, 4] * wanted[:, 5] / (hw[0] * hw[1])


def _coordinates(
    own: torch.Tensor, wanted: torch.Tensor, match: Matches, head: HeadSpec, hw: tuple[int, int]
) -> torch.Tensor:
    offset, size, weight = cell_targets(wanted, match, head, hw)
    # With YOLOv4's scale_x_y the sigmoid alone has to reach this; 1 leaves the offset.
    level = ((offset + (head.scale_xy - 1) / 2) / head.scale_xy).clamp(0, 1)
    centre = functional.binary_cross_entropy_with_logits(own[:, :2], level, reduction="none")
    extent = (own[:, 2:4] - size).square() / 2
    return (weight[:, None] * (centre + extent)).sum()


def _objectness(
    raw: torch.Tensor, at: tuple[torch.Tensor, ...], free: torch.Tensor
) -> torch.Tensor:
    wanted = torch.zeros_like(raw[:, :, 4])
    wanted[at] = 1.0
    weight = (~free | (wanted > 0)).to(raw)
    return functional.binary_cross_entropy_with_logits(
        raw[:, :, 4], wanted, weight, reduction="sum"
    )
