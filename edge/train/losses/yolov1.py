"""YOLOv1's loss as published (arXiv:1506.02640, equation 3).

No head of `edge.spec` decodes YOLOv1's grid, so `loss_for` never returns it; it serves those who
train such a network themselves.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from edge.train.losses.targets import box_iou, objects
from edge.train.losses.terms import full, total

__all__ = ["yolov1_loss"]


def yolov1_loss(
    output: torch.Tensor,
    targets: torch.Tensor,
    hw: tuple[int, int],
    classes: int,
    *,
    coord: float = 5.0,
    no_object: float = 0.5,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the sum of squared errors per image.

    `output` is (N, 5*B + C, rows, columns), linear: for each of a cell's B boxes x, y within the
    cell, the roots of width and height as shares of the picture, and the confidence; then the
    cell's C class probabilities. A cell has one object, the first whose centre it holds. Of its
    boxes the one with the highest IoU is responsible for it and aims at that IoU as confidence;
    all others are pushed to 0, with the weight `no_object`.
    """
    raw = full(output)
    images, channels, rows, columns = raw.shape
    found = _first_of_cells(objects(targets), hw, (rows, columns)).to(raw)
    image = found[:, 0].long()
    place = found[:, 2:4] * raw.new_tensor((columns / hw[1], rows / hw[0]))
    column, row = place[:, 0].long(), place[:, 1].long()
    boxes = raw[:, : channels - classes].reshape(images, -1, 5, rows, columns)
    own = boxes[image, :, :, row, column]
    overlap = _overlaps(own.detach(), found, column, row, hw, (rows, columns))
    best = overlap.argmax(dim=1)
    each = torch.arange(len(found), device=raw.device)
    mine = own[each, best]
    roots = (found[:, 4:6] / raw.new_tensor((hw[1], hw[0]))).sqrt()
    aim = torch.cat([place - torch.stack([column, row], dim=1), roots], dim=1)
    confidence = boxes[:, :, 4]
    empty = torch.ones_like(confidence, dtype=torch.bool)
    empty[image, best, row, column] = False
    objectness = (mine[:, 4] - overlap[each, best]).square().sum()
    objectness = objectness + no_object * confidence[empty].square().sum()
    wanted = functional.one_hot(found[:, 1].long(), classes).to(raw)
    label = (raw[image, channels - classes :, row, column] - wanted).square().sum()
    return total(coord * (mine[:, :4] - aim).square().sum(), objectness, label, images)


def _first_of_cells(
    targets: torch.Tensor, hw: tuple[int, int], grid_hw: tuple[int, int]
) -> torch.Tensor:
    kept: dict[tuple[int, int, int], int] = {}
    for number, (image, _, x, y, *_) in enumerate(targets.tolist()):
        cell = int(image), int(y * grid_hw[0] / hw[0]), int(x * grid_hw[1] / hw[1])
        kept.setdefault(cell, number)
    return targets[list(kept.values())]


def _overlaps(
    own: torch.Tensor,
    found: torch.Tensor,
    column: torch.Tensor,
    row: torch.Tensor,
    hw: tuple[int, int],
    grid_hw: tuple[int, int],
) -> torch.Tensor:
    """Return the IoU (P, B) of the boxes (P, B, 5) of the objects' cells with the objects."""
    corner = torch.stack([column, row], dim=1)[:, None]
    cell = own.new_tensor((hw[1] / grid_hw[1], hw[0] / grid_hw[0]))
    centre = (own[..., :2] + corner) * cell
    size = own[..., 2:4].square() * own.new_tensor((hw[1], hw[0]))
    return box_iou(torch.cat([centre, size], dim=-1), found[:, None, 2:6])
