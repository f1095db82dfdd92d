"""What training minimises: raw heads against targets (M, 6) as in `edge.train.targets`.

Each loss is a sum over the batch divided by the number of positive predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from edge.spec import HeadSpec, ModelSpec
from edge.train.targets import (
    anchor_grid,
    assign_convdet,
    assign_yolo,
    box_iou,
)

__all__ = ["Loss", "ciou", "convdet_loss", "loss_for", "yolo_loss"]

Loss = Callable[[Sequence[torch.Tensor], torch.Tensor], tuple[torch.Tensor, dict[str, float]]]
_MAX_LOG_SIZE = 4.0  # exp(4) anchors: beyond it the gradient of exp only does harm


def ciou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Complete IoU (arXiv:1911.08287) of boxes (P, 4) given by centre and size: (P,)."""
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


def _yolo_boxes(raw: torch.Tensor, head: HeadSpec, hw: tuple[int, int]) -> torch.Tensor:
    """Boxes (N, A, rows, columns, 4) by centre and size, input pixels, of raw (N, A, 5+C, h, w)."""
    rows, columns = head.grid_hw
    cell = torch.tensor((hw[1] / columns, hw[0] / rows))
    corner = torch.stack(
        torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), dim=-1
    )
    offset = raw[:, :, 0:2].sigmoid() * head.scale_xy - (head.scale_xy - 1) / 2
    centre = (offset.permute(0, 1, 3, 4, 2) + corner) * cell
    anchors = torch.tensor(head.anchors)[:, None, None]
    size = anchors * raw[:, :, 2:4].clamp(max=_MAX_LOG_SIZE).exp().permute(0, 1, 3, 4, 2)
    return torch.cat([centre, size], dim=-1)


def _best_overlap(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Highest IoU of every box (N, ..., 4) with a target of its image: (N, ...)."""
    best = torch.zeros(boxes.shape[:-1])
    for image in range(len(boxes)):
        own = targets[targets[:, 0] == image, 2:6]
        for box in own:
            best[image] = torch.maximum(best[image], box_iou(boxes[image], box))
    return best


def yolo_loss(
    outputs: Sequence[torch.Tensor],
    targets: torch.Tensor,
    spec: ModelSpec,
    ignore: float = 0.6,
    box_gain: float = 3.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """YOLOv3's loss (arXiv:1804.02767) with complete IoU for the boxes.

    Objectness and classes are logistic; a prediction that is no match but overlaps an object by
    more than `ignore` is not pushed to zero.
    """
    hw, classes = spec.contract.hw, len(spec.classes)
    matches = assign_yolo(targets, spec.heads, hw)
    count = max(1, sum(len(match.target) for match in matches))
    box = outputs[0].new_zeros(())
    objectness, label = box.clone(), box.clone()
    for output, head, match in zip(outputs, spec.heads, matches, strict=True):
        raw = output.float().reshape(len(output), len(head.anchors), 5 + classes, *head.grid_hw)
        boxes = _yolo_boxes(raw, head, hw)
        at = (match.image, match.anchor, match.row, match.column)
        box = box + (1 - ciou(boxes[at], targets[match.target, 2:6])).sum()
        objectness = objectness + _objectness(raw[:, :, 4], boxes.detach(), at, targets, ignore)
        logits = raw.permute(0, 1, 3, 4, 2)[at][:, 5:]
        wanted = functional.one_hot(targets[match.target, 1].long(), classes).float()
        label = label + functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    return _total(box_gain * box, objectness, label, count)


def _objectness(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    at: tuple[torch.Tensor, ...],
    targets: torch.Tensor,
    ignore: float,
) -> torch.Tensor:
    wanted = torch.zeros_like(logits)
    wanted[at] = 1.0
    weight = ((_best_overlap(boxes, targets) <= ignore) | (wanted > 0)).float()
    return functional.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")


def convdet_loss(
    output: torch.Tensor,
    targets: torch.Tensor,
    spec: ModelSpec,
    ignore: float = 0.6,
    box_gain: float = 5.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """SqueezeDet's loss (arXiv:1612.01051): squared deltas, softmax classes, confidence = IoU.

    Where the paper squares the confidence's error, weighted 75 and 100, this takes the logistic
    loss towards the same IoU, which needs no such weights, and ignores as `yolo_loss` does.
    """
    head, hw = spec.heads[0], spec.contract.hw
    logits, confidence, deltas = _convdet_parts(output.float(), head, len(spec.classes))
    match = assign_convdet(targets, head, hw)
    at = (match.image, match.anchor, match.row, match.column)
    grid, wanted = anchor_grid(head, hw), targets[match.target, 2:6]
    own = grid[at[1:]]
    shift = (wanted[:, :2] - own[:, :2]) / own[:, 2:]
    aim = torch.cat([shift, (wanted[:, 2:] / own[:, 2:]).log()], dim=1)
    box = (deltas[at] - aim).square().sum()
    with torch.no_grad():
        boxes = _convdet_boxes(deltas, grid)
        level, matched = torch.zeros_like(confidence), torch.zeros_like(confidence)
        level[at], matched[at] = box_iou(boxes[at], wanted), 1.0
        weight = ((_best_overlap(boxes, targets) <= ignore) | (matched > 0)).float()
    objectness = functional.binary_cross_entropy_with_logits(
        confidence, level, weight, reduction="sum"
    )
    label = functional.cross_entropy(logits[at], targets[match.target, 1].long(), reduction="sum")
    return _total(box_gain * box, objectness, label, max(1, len(match.target)))


def _convdet_parts(
    raw: torch.Tensor, head: HeadSpec, classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class logits (N, K, h, w, C), confidence logits (N, K, h, w), deltas (N, K, h, w, 4)."""
    number, images = len(head.anchors), len(raw)
    split = (number * classes, number, number * 4)
    logits, confidence, deltas = raw.split(split, dim=1)
    logits = logits.reshape(images, number, classes, *head.grid_hw).permute(0, 1, 3, 4, 2)
    deltas = deltas.reshape(images, number, 4, *head.grid_hw).permute(0, 1, 3, 4, 2)
    return logits, confidence, deltas


def _convdet_boxes(deltas: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    centre = grid[..., :2] + deltas[..., :2] * grid[..., 2:]
    size = grid[..., 2:] * deltas[..., 2:].clamp(max=_MAX_LOG_SIZE).exp()
    return torch.cat([centre, size], dim=-1)


def _total(
    box: torch.Tensor, objectness: torch.Tensor, label: torch.Tensor, count: int
) -> tuple[torch.Tensor, dict[str, float]]:
    parts = {"box": box / count, "objectness": objectness / count, "class": label / count}
    total = parts["box"] + parts["objectness"] + parts["class"]
    return total, {name: part.item() for name, part in parts.items()}


def loss_for(spec: ModelSpec) -> Loss:
    """The loss that fits a model's heads.

    Raises:
        ValueError: a kind of head that cannot be trained here.
    """
    kinds = {head.kind for head in spec.heads}
    if kinds == {"yolo"}:
        return lambda outputs, targets: yolo_loss(outputs, targets, spec)
    if kinds == {"convdet"} and len(spec.heads) == 1:
        return lambda outputs, targets: convdet_loss(outputs[0], targets, spec)
    raise ValueError(f"{spec.name}: heads {sorted(kinds)} cannot be trained; yolo and convdet can")
