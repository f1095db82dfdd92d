"""SqueezeDet's loss as published (arXiv:1612.01051, equation 4)."""

from __future__ import annotations

import torch

from edge.spec import ModelSpec
from edge.train.losses.targets import anchor_grid, assign_unshared, box_iou, objects
from edge.train.losses.terms import (
    boxes_of_convdet,
    class_term,
    fitted,
    full,
    parts_of_convdet,
    passed_over,
    positives,
)

__all__ = ["squeezedet_loss"]


def squeezedet_loss(
    output: torch.Tensor,
    targets: torch.Tensor,
    spec: ModelSpec,
    *,
    box_weight: float = 5.0,
    positive_weight: float = 75.0,
    negative_weight: float = 100.0,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of a batch of N objects.

    Squared deltas and cross entropy are divided by N; so are squared confidences towards the box's
    IoU, while those towards 0 are divided by the number of all other anchors. Each object has one
    anchor of its own. Only predictions in a region to ignore do not count.
    """
    spec = fitted(spec, [output])
    head, hw, found = spec.heads[0], spec.contract.hw, objects(targets)
    logits, raw, deltas = parts_of_convdet(full(output), head, len(spec.classes))
    match = assign_unshared(found, head, hw)
    at = (match.image, match.anchor, match.row, match.column)
    grid, wanted = anchor_grid(head, hw).to(deltas), found[match.target].to(deltas)
    own, confidence = grid[at[1:]], raw.sigmoid()
    shift = (wanted[:, 2:4] - own[:, :2]) / own[:, 2:]
    aim = torch.cat([shift, (wanted[:, 4:6] / own[:, 2:]).log()], dim=1)
    boxes = boxes_of_convdet(deltas.detach(), grid)
    empty = ~passed_over(boxes, targets[targets[:, 1] < 0], 0.0)
    empty[at] = False
    count = positives(len(match.target), targets)
    others = positives(raw.numel() - len(match.target), targets)
    right = (box_iou(boxes[at], wanted[:, 2:6]) - confidence[at]).square().sum() / count
    wrong = confidence[empty].square().sum() / others
    label = class_term(logits[at], wanted[:, 1].long(), True, weights)
    parts = {
        "box": box_weight * (deltas[at] - aim).square().sum() / count,
        "objectness": positive_weight * right + negative_weight * wrong,
        "class": label / count,
    }
    total = parts["box"] + parts["objectness"] + parts["class"]
    return total, {name: part.item() for name, part in parts.items()}
