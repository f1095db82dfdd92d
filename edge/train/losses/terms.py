"""What the losses share: decoding of raw heads, ignored predictions, the class term.

Targets are (M, 6) as in `edge.train.losses.targets`; rows of class -1 are regions (COCO's crowds,
KITTI's DontCare), inside which a prediction is neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from edge.spec import HeadSpec, ModelSpec
from edge.train.distributed import shared
from edge.train.losses.targets import common_area

__all__ = [
    "boxes_of_convdet",
    "boxes_of_yolo",
    "class_term",
    "fitted",
    "full",
    "of_anchors",
    "parts_of_convdet",
    "passed_over",
    "positives",
    "total",
]

_MAX_LOG_SIZE = 4.0  # exp(4) anchors: beyond it the gradient of exp only does harm
_INSIDE_REGION = 0.5


def full(raw: torch.Tensor) -> torch.Tensor:
    """Return half precision as float32; float32 and float64 unchanged."""
    return raw.float() if raw.dtype.itemsize < 4 else raw


def fitted(spec: ModelSpec, outputs: Sequence[torch.Tensor]) -> ModelSpec:
    """Return `spec` at the input size of `outputs`, which multi-scale training changes."""
    grids = [tuple(output.shape[-2:]) for output in outputs]
    if grids == [head.grid_hw for head in spec.heads]:
        return spec
    old, (height, width) = spec.heads[0].grid_hw, spec.contract.hw
    hw = (height * grids[0][0] // old[0], width * grids[0][1] // old[1])
    heads = [h.at_grid((g[0], g[1])) for h, g in zip(spec.heads, grids, strict=True)]
    return replace(spec, contract=replace(spec.contract, hw=hw), heads=tuple(heads))


def of_anchors(output: torch.Tensor, head: HeadSpec, classes: int) -> torch.Tensor:
    """Return a raw `[yolo]` or `[region]` head (N, A*(5+C), h, w) as (N, A, 5+C, h, w)."""
    return full(output).reshape(len(output), len(head.anchors), 5 + classes, *head.grid_hw)


def boxes_of_yolo(raw: torch.Tensor, head: HeadSpec, hw: tuple[int, int]) -> torch.Tensor:
    """Return boxes (N, A, h, w, 4) by centre and size in pixels of raw (N, A, 5+C, h, w)."""
    rows, columns = head.grid_hw
    cell = raw.new_tensor((hw[1] / columns, hw[0] / rows))
    across, down = torch.arange(columns), torch.arange(rows)
    corner = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1).to(raw)
    offset = raw[:, :, 0:2].sigmoid() * head.scale_xy - (head.scale_xy - 1) / 2
    centre = (offset.permute(0, 1, 3, 4, 2) + corner) * cell
    anchors = raw.new_tensor(head.anchors)[:, None, None]
    size = anchors * raw[:, :, 2:4].clamp(max=_MAX_LOG_SIZE).exp().permute(0, 1, 3, 4, 2)
    return torch.cat([centre, size], dim=-1)


def parts_of_convdet(
    raw: torch.Tensor, head: HeadSpec, classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return class logits (N, K, h, w, C), confidence logits (N, K, h, w), deltas (..., 4)."""
    number, images = len(head.anchors), len(raw)
    split = (number * classes, number, number * 4)
    logits, confidence, deltas = raw.split(split, dim=1)
    logits = logits.reshape(images, number, classes, *head.grid_hw).permute(0, 1, 3, 4, 2)
    deltas = deltas.reshape(images, number, 4, *head.grid_hw).permute(0, 1, 3, 4, 2)
    return logits, confidence, deltas


def boxes_of_convdet(deltas: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Return boxes (..., 4) by centre and size in input pixels of ConvDet's deltas and anchors."""
    centre = grid[..., :2] + deltas[..., :2] * grid[..., 2:]
    size = grid[..., 2:] * deltas[..., 2:].clamp(max=_MAX_LOG_SIZE).exp()
    return torch.cat([centre, size], dim=-1)


def passed_over(boxes: torch.Tensor, targets: torch.Tensor, ignore: float) -> torch.Tensor:
    """Return which boxes (N, ..., 4) overlap an object over `ignore`, or are half in a region."""
    found = []
    for image, own in enumerate(boxes):
        here = targets[targets[:, 0] == image]
        places, is_object = here[:, 2:6].to(boxes).T[..., None], here[:, 1] >= 0
        things, regions = places[:, is_object], places[:, ~is_object]
        flat = own.reshape(-1, 4).T.contiguous()[:, None]
        area = flat[2] * flat[3] + 1e-9
        common = common_area(flat, things)
        over = common > ignore * (area + things[2] * things[3] - common)
        inside = common_area(flat, regions) > _INSIDE_REGION * area
        found.append((over.any(dim=0) | inside.any(dim=0)).reshape(own.shape[:-1]))
    return torch.stack(found)


def class_term(
    logits: torch.Tensor, label: torch.Tensor, softmax: bool, weights: torch.Tensor | None
) -> torch.Tensor:
    """Return the summed cross entropy of (P, C) logits; `weights` (C,) go by the true class."""
    if softmax:
        each = functional.cross_entropy(logits, label, reduction="none")
    else:
        wanted = functional.one_hot(label, logits.shape[1]).to(logits)
        each = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)
    return (each if weights is None else each * weights.to(each)[label]).sum()


def positives(count: int, like: torch.Tensor) -> float:
    """Return the count, at least 1, so that the mean over all processes is the loss of all."""
    return shared(count, like.device)


def total(
    box: torch.Tensor, objectness: torch.Tensor, label: torch.Tensor, count: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss divided by `count`, and its three parts as numbers."""
    parts = {"box": box / count, "objectness": objectness / count, "class": label / count}
    numbers = {name: part.item() for name, part in parts.items()}
    return parts["box"] + parts["objectness"] + parts["class"], numbers
