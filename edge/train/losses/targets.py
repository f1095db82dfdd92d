"""Which predictions are responsible for which objects.

Targets are one float32 tensor (M, 6): image in the batch, class, then centre x, centre y, width
and height in pixels of the network's input. A class below 0 marks a region to ignore.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge.spec import HeadSpec

__all__ = [
    "Matches",
    "anchor_grid",
    "assign_best",
    "assign_convdet",
    "assign_unshared",
    "assign_yolo",
    "box_iou",
    "common_area",
    "objects",
]


@dataclass(frozen=True)
class Matches:
    """Positive predictions of one head, (P,) int64 each: their place and their target."""

    image: torch.Tensor
    anchor: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    target: torch.Tensor


def objects(targets: torch.Tensor) -> torch.Tensor:
    """Return the rows that are objects, not regions to ignore."""
    return targets[targets[:, 1] >= 0]


def _shape_iou(sizes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    inter = torch.minimum(sizes[:, None], anchors[None]).prod(dim=2)
    return inter / (sizes.prod(dim=1)[:, None] + anchors.prod(dim=1)[None] - inter)


def assign_yolo(
    targets: torch.Tensor, heads: tuple[HeadSpec, ...], hw: tuple[int, int], threshold: float = 0.3
) -> list[Matches]:
    """Return the matches of each `[yolo]` head.

    An object takes its best anchor over all heads (YOLOv3) and every other whose shape has an IoU
    above `threshold` with it, in the cell of its centre. Where `scale_xy` lets a centre leave its
    cell by half a cell, the nearer neighbours across and down match as well (as in YOLOv5).
    """
    sizes = [targets.new_tensor(head.anchors) for head in heads]
    fit = _shape_iou(targets[:, 4:6], torch.cat(sizes))
    good = fit > threshold
    if len(targets):
        good[torch.arange(len(targets)), fit.argmax(dim=1)] = True
    found, start = [], 0
    for head, anchors in zip(heads, sizes, strict=True):
        target, anchor = good[:, start : start + len(anchors)].nonzero(as_tuple=True)
        found.append(_cells(targets, target, anchor, head, hw))
        start += len(anchors)
    return found


def _cells(
    targets: torch.Tensor,
    target: torch.Tensor,
    anchor: torch.Tensor,
    head: HeadSpec,
    hw: tuple[int, int],
) -> Matches:
    rows, columns = head.grid_hw
    x = targets[target, 2] * columns / hw[1]
    y = targets[target, 3] * rows / hw[0]
    moves = [(torch.zeros_like(x), torch.zeros_like(y))]
    if head.scale_xy >= 2:
        moves.append((torch.where(x.frac() < 0.5, -1.0, 1.0), torch.zeros_like(y)))
        moves.append((torch.zeros_like(x), torch.where(y.frac() < 0.5, -1.0, 1.0)))
    column = torch.cat([x.floor() + dx for dx, _ in moves]).long()
    row = torch.cat([y.floor() + dy for _, dy in moves]).long()
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    target, anchor = target.repeat(len(moves))[inside], anchor.repeat(len(moves))[inside]
    return Matches(targets[target, 0].long(), anchor, row[inside], column[inside], target)


def assign_best(
    targets: torch.Tensor, heads: tuple[HeadSpec, ...], hw: tuple[int, int]
) -> list[Matches]:
    """Return the matches of each head as published (arXiv:1612.08242, 1804.02767).

    An object takes, in the cell of its centre, the one anchor over all heads whose shape fits it
    best. Where two objects compete for a prediction the later one gets it, as in Darknet.
    """
    sizes = torch.cat([targets.new_tensor(head.anchors) for head in heads])
    best = _shape_iou(targets[:, 4:6], sizes).argmax(dim=1).tolist() if len(targets) else []
    owner = [
        (index, anchor) for index, head in enumerate(heads) for anchor in range(len(head.anchors))
    ]
    taken: list[dict[tuple[int, int, int, int], int]] = [{} for _ in heads]
    for number, (target, fit) in enumerate(zip(targets.tolist(), best, strict=True)):
        index, anchor = owner[fit]
        rows, columns = heads[index].grid_hw
        row = min(rows - 1, max(0, int(target[3] * rows / hw[0])))
        column = min(columns - 1, max(0, int(target[2] * columns / hw[1])))
        taken[index][int(target[0]), anchor, row, column] = number
    return [_matches(own, targets.device) for own in taken]


def _matches(taken: dict[tuple[int, int, int, int], int], device: torch.device) -> Matches:
    rows = [(*place, target) for place, target in taken.items()]
    table = torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 5)
    return Matches(*table.unbind(dim=1))


def anchor_grid(head: HeadSpec, hw: tuple[int, int]) -> torch.Tensor:
    """Return ConvDet's anchors (K, rows, columns, 4): centre and size in input pixels."""
    rows, columns = head.grid_hw
    grid = torch.empty(len(head.anchors), rows, columns, 4)
    grid[..., 0] = (torch.arange(columns) + 1) * (hw[1] / (columns + 1))
    grid[..., 1] = ((torch.arange(rows) + 1) * (hw[0] / (rows + 1)))[:, None]
    grid[..., 2:] = torch.tensor(head.anchors)[:, None, None]
    return grid


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the IoU of boxes (..., 4) by centre and size, broadcast."""
    low = torch.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    inter = (high - low).clamp(min=0).prod(dim=-1)
    return inter / (a[..., 2:].prod(dim=-1) + b[..., 2:].prod(dim=-1) - inter + 1e-9)


def common_area(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the area that boxes share, broadcast; x, y, width and height come first: (4, ...).

    In this order each of the four is contiguous in memory, which is several times as fast.
    """
    low = torch.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = torch.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    across, down = (high - low).clamp(min=0)
    return across * down


def _all_pairs(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the IoU of each of (M, 4) with each of (P, 4), by centre and size: (M, P)."""
    mine, theirs = a.T[:, :, None], b.T.contiguous()[:, None]
    common = common_area(mine, theirs)
    return common / (mine[2] * mine[3] + theirs[2] * theirs[3] - common + 1e-9)


def assign_convdet(
    targets: torch.Tensor, head: HeadSpec, hw: tuple[int, int], threshold: float = 0.5
) -> Matches:
    """Return the matches of a ConvDet head.

    As in SqueezeDet (arXiv:1612.01051), the anchor with the highest IoU is responsible for an
    object. Unlike in the paper, so is every other with an IoU above `threshold`, which trains
    faster.
    """
    grid = anchor_grid(head, hw).to(targets)
    overlap = _all_pairs(targets[:, 2:6], grid.reshape(-1, 4))
    good = overlap > threshold
    if len(targets):
        good[torch.arange(len(targets)), overlap.argmax(dim=1)] = True
        # Of several objects an anchor keeps the one that it fits best.
        good &= _owned(overlap * good, targets[:, 0].long())
    target, cell = good.nonzero(as_tuple=True)
    rows, columns = head.grid_hw
    anchor, rest = cell // (rows * columns), cell % (rows * columns)
    return Matches(targets[target, 0].long(), anchor, rest // columns, rest % columns, target)


def assign_unshared(targets: torch.Tensor, head: HeadSpec, hw: tuple[int, int]) -> Matches:
    """Return the matches of a ConvDet head as published (arXiv:1612.01051): one anchor an object.

    It is the anchor with the highest IoU that no earlier object of the image has; where none is
    left that overlaps, the nearest by centre and size.
    """
    grid = anchor_grid(head, hw).to(targets).reshape(-1, 4)
    overlap = _all_pairs(targets[:, 2:6], grid)
    taken: dict[tuple[int, int, int, int], int] = {}
    rows, columns = head.grid_hw
    for number, image in enumerate(targets[:, 0].long().tolist()):
        used = [
            (anchor * rows + row) * columns + column
            for own, anchor, row, column in taken
            if own == image
        ]
        worth = overlap[number]
        worth[used] = 0.0
        if not worth.any():
            worth = -(targets[number, 2:6] - grid).square().sum(dim=1)
            worth[used] = -torch.inf
        anchor, rest = divmod(int(worth.argmax()), rows * columns)
        taken[image, anchor, rest // columns, rest % columns] = number
    return _matches(taken, targets.device)


def _owned(overlap: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return whether no other object of the image overlaps the anchor more: (M, anchors)."""
    most = overlap.new_zeros(int(image.max()) + 1, overlap.shape[1])
    most.scatter_reduce_(0, image[:, None].expand_as(overlap), overlap, "amax")
    return overlap >= most[image]
