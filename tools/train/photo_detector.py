"""The photo detector: its network, its pictures in memory, and its loss with ignored regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edge.data.classes import match_classes
from edge.data.datasets import Dataset, load
from edge.models.squeezedet import SqueezeDetConfig, version_1_0
from edge.spec import HeadSpec, InputContract, ModelSpec
from edge.train.anchors import kmeans_anchors
from edge.train.augment import IGNORE, Augmentation, Labelled, augment
from edge.train.batches import as_tensor, resized
from edge.train.losses.ciou import ciou
from edge.train.losses.targets import assign_yolo, box_iou
from edge.train.pictures import labelled_boxes

__all__ = ["batch", "labelled", "photo_anchors", "photo_config", "photo_loss"]

# Caffe's SqueezeNet 1.0 was trained with this mean and no scaling; grey levels, BGR.
_MEAN = (104.0, 117.0, 123.0)
_PYRAMID = ((64, 256, 256), (64, 128, 128), (48, 96, 96))
# Anything smaller in the network's input is not an object: pixels, and pixels squared.
_LEAST_SIDE, _LEAST_AREA = 2.5, 24.0
_MAX_LOG_SIZE = 4.0
# Below this logit an objectness costs next to nothing, whether it is ignored or not.
_SILENT = -3.0


def photo_config(
    hw: tuple[int, int], classes: Sequence[str], anchors: NDArray[Any]
) -> SqueezeDetConfig:
    """Return SqueezeDet on SqueezeNet 1.0, heads at strides 8, 16 and 32, frames letterboxed."""
    sizes = tuple((round(float(w), 1), round(float(h), 1)) for w, h in anchors)
    body = version_1_0(SqueezeDetConfig(hw=hw, classes=tuple(classes), anchors=sizes))
    return SqueezeDetConfig(
        hw=hw,
        classes=tuple(classes),
        anchors=sizes,
        conv1=body.conv1,
        pools=body.pools,
        fires=body.fires[:8],
        head_size=1,
        mean=_MEAN,
        resize="letterbox",
        pyramid=_PYRAMID,
    )


def labelled(dataset: Dataset, classes: Sequence[str]) -> list[Labelled]:
    """Return every picture with its boxes of `classes`; crowds become regions to ignore.

    Raises:
        ValueError: the data set does not label one of the classes.
        DataError: a picture cannot be read, or none of the classes is labelled.
    """
    join = match_classes(dataset.classes, classes)
    if len(set(join[join >= 0].tolist())) < len(classes):
        raise ValueError(f"{dataset.source} does not label each of {', '.join(classes)}")
    pictures = []
    for entry in dataset.items:
        image, item = load(entry)
        pictures.append(Labelled(image, labelled_boxes(item, join)))
    return pictures


def photo_anchors(
    pictures: Sequence[Labelled], hw: tuple[int, int], count: int, seed: int
) -> NDArray[np.float64]:
    """Return k-means anchors, small to large, of the boxes as letterboxed into `hw`."""
    sizes = []
    for image, boxes in pictures:
        fit = min(hw[0] / image.shape[0], hw[1] / image.shape[1])
        sizes.append((boxes[:, 3:] - boxes[:, 1:3])[boxes[:, 0] >= 0] * fit)
    every = np.concatenate(sizes)
    return kmeans_anchors(every[every.min(axis=1) >= _LEAST_SIDE], count, seed)


def batch(
    pictures: Sequence[Labelled],
    indices: Sequence[int],
    contract: InputContract,
    options: Augmentation | None,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (N, 3, H, W) as the contract scales them, channels last, and targets (M, 6).

    Targets are as in `edge.train.losses.targets`, with class -1 for regions to ignore. Without
    `options`
    every picture is only letterboxed.
    """
    images = np.empty((len(indices), *contract.hw, 3), np.uint8)
    targets = []
    for number, index in enumerate(indices):
        if options is None:
            image, boxes = resized(pictures[index], contract)
        else:
            image, boxes = augment(pictures, index, contract.hw, options, rng, contract.pad_value)
        images[number] = image
        targets.append(_targets(boxes, number))
    return as_tensor(images, contract), torch.from_numpy(np.concatenate(targets))


def _targets(boxes: NDArray[np.float32], number: int) -> NDArray[np.float32]:
    size = boxes[:, 3:] - boxes[:, 1:3]
    tiny = (size.min(axis=1) < _LEAST_SIDE) | (size.prod(axis=1) < _LEAST_AREA)
    label = np.where(tiny, IGNORE, boxes[:, 0])
    centre = (boxes[:, 1:3] + boxes[:, 3:]) / 2
    return np.column_stack((np.full(len(boxes), number), label, centre, size)).astype(np.float32)


def photo_loss(
    outputs: Sequence[torch.Tensor],
    targets: torch.Tensor,
    spec: ModelSpec,
    ignore: float = 0.6,
    box_gain: float = 3.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return YOLOv3's loss (arXiv:1804.02767) with complete IoU, for targets with ignored regions.

    Objectness aims at 1/2 + IoU/2, so that it ranks boxes by their fit as well. A prediction that
    matches nothing but overlaps an object by more than `ignore`, or is half in an ignored region
    (class -1), is not pushed to zero. Sums over the batch are divided by the number of matches.
    """
    hw, classes = spec.contract.hw, len(spec.classes)
    own, regions = targets[targets[:, 1] >= 0], targets[targets[:, 1] < 0]
    matches = assign_yolo(own, spec.heads, hw)
    count = max(1, sum(len(match.target) for match in matches))
    sums = outputs[0].new_zeros(3, dtype=torch.float32)
    for output, head, match in zip(outputs, spec.heads, matches, strict=True):
        shape = (len(output), len(head.anchors), 5 + classes, *head.grid_hw)
        raw = output.float().reshape(shape).permute(0, 1, 3, 4, 2)
        at = (match.image, match.anchor, match.row, match.column)
        picked = raw[at]
        boxes = _boxes(picked, at, head, hw)
        truth = own[match.target]
        wanted = torch.zeros(raw.shape[:4])
        wanted[at] = 0.5 + box_iou(boxes.detach(), truth[:, 2:6]) / 2
        weight = _counted(raw.detach(), wanted, head, hw, own, regions, ignore)
        labels = functional.one_hot(truth[:, 1].long(), classes).float()
        sums = sums + torch.stack(
            (
                box_gain * (1 - ciou(boxes, truth[:, 2:6])).sum(),
                _bce(raw[..., 4], wanted, weight),
                _bce(picked[:, 5:], labels),
            )
        )
    parts = sums / count
    return parts.sum(), dict(zip(("box", "objectness", "class"), parts.tolist(), strict=True))


def _bce(
    logits: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")


def _boxes(
    picked: torch.Tensor, at: tuple[torch.Tensor, ...], head: HeadSpec, hw: tuple[int, int]
) -> torch.Tensor:
    """Return boxes (P, 4) by centre and size of the predictions `picked` (P, 5 + C)."""
    _, anchor, row, column = at
    rows, columns = head.grid_hw
    cell = torch.tensor((hw[1] / columns, hw[0] / rows))
    offset = picked[:, :2].sigmoid() * head.scale_xy - (head.scale_xy - 1) / 2
    centre = (offset + torch.stack((column, row), dim=1)) * cell
    size = torch.tensor(head.anchors)[anchor] * picked[:, 2:4].clamp(max=_MAX_LOG_SIZE).exp()
    return torch.cat((centre, size), dim=1)


def _counted(
    raw: torch.Tensor,
    wanted: torch.Tensor,
    head: HeadSpec,
    hw: tuple[int, int],
    own: torch.Tensor,
    regions: torch.Tensor,
    ignore: float,
) -> torch.Tensor:
    """Return 1 where an objectness counts, 0 where it is ignored: (N, A, rows, columns)."""
    weight = torch.ones_like(wanted)
    at = ((raw[..., 4] > _SILENT) & (wanted == 0)).nonzero(as_tuple=True)
    boxes = _boxes(raw[at], at, head, hw)[:, None]
    near = box_iou(boxes, _by_image(own, len(raw))[at[0]]) > ignore
    inside = _share_inside(boxes, _by_image(regions, len(raw))[at[0]]) > 0.5
    weight[at] = 1.0 - (near.any(dim=1) | inside.any(dim=1)).float()
    return weight


def _by_image(targets: torch.Tensor, images: int) -> torch.Tensor:
    """Return boxes (images, most in one image, 4); surplus rows are empty boxes at 0."""
    image = targets[:, 0].long()
    counts = torch.bincount(image, minlength=images)
    starts = counts.cumsum(0) - counts
    rows = torch.zeros(images, int(counts.max()), 4)
    rows[image, torch.arange(len(targets)) - starts[image]] = targets[:, 2:6]
    return rows


def _share_inside(boxes: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Return the share of each box (..., 4) that is in a region, by centre and size, broadcast."""
    a, b = boxes, regions
    low = torch.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    return (high - low).clamp(min=0).prod(dim=-1) / (a[..., 2:].prod(dim=-1) + 1e-9)
