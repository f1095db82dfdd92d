"""Batches as a function of the step alone, so that resumed and parallel trainings agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import default_rng
from numpy.typing import NDArray
from torch.nn import functional

from edge.letterbox import Letterbox
from edge.spec import InputContract, ModelSpec
from edge.train.augment import IGNORE, Augmentation, Labelled, augment

__all__ = [
    "BatchMaker",
    "as_tensor",
    "make_batch",
    "prefetched",
    "rescaled",
    "resized",
    "scale_at",
]

Batch = tuple[torch.Tensor, torch.Tensor]
_SMALLEST_PX = 2.0
# YOLOv2 draws another size every ten batches, from 0.77 to 1.46 of its own (arXiv:1612.08242).
_STEPS_OF_A_SCALE = 10
_SCALES = (0.75, 1.25)


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of a step.

    Attributes:
        pictures: each is used once an epoch, in a new order.
        spec: the model.
        size: pictures in a batch of all processes together.
        seed: of the order, the changes and the scales.
        options: of augmentation; None only resizes as the contract says.
        scales: whether the input's size changes.
        rank, ranks: number of this process and of all.
    """

    pictures: Sequence[Labelled]
    spec: ModelSpec
    size: int
    seed: int
    options: Augmentation | None = None
    scales: bool = False
    rank: int = 0
    ranks: int = 1


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return default_rng((seed, epoch)).permutation(count)


def make_batch(maker: BatchMaker, step: int) -> Batch:
    """Return this process's images (size / ranks, 3, H, W) and targets (M, 6) of one step.

    Raises:
        ValueError: the batch cannot be divided among the processes.
    """
    if maker.size % maker.ranks:
        raise ValueError(f"a batch of {maker.size} cannot be shared by {maker.ranks} processes")
    count, images, targets = len(maker.pictures), [], [np.empty((0, 6), np.float32)]
    mine = range(
        maker.size * maker.rank // maker.ranks, maker.size * (maker.rank + 1) // maker.ranks
    )
    for place, position in enumerate(mine):
        number = step * maker.size + position
        index = int(_order(count, maker.seed, number // count)[number % count])
        made = _picture(maker, index, (maker.seed, step, position))
        images.append(made.image)
        targets.append(_targets(made.boxes, place))
    batch = (
        as_tensor(np.stack(images), maker.spec.contract),
        torch.from_numpy(np.concatenate(targets)),
    )
    return rescaled(batch, scale_at(maker.spec, step, maker.seed)) if maker.scales else batch


def as_tensor(images: NDArray[np.uint8], contract: InputContract) -> torch.Tensor:
    """Return images (N, H, W, 3) BGR as the contract's (N, 3, H, W), channels last in memory."""
    ordered = images[..., ::-1] if contract.channel_order == "RGB" else images
    pixels = torch.from_numpy(np.ascontiguousarray(ordered)).float()
    pixels = (pixels - torch.tensor(contract.mean)) * torch.tensor(contract.scale)
    return pixels.permute(0, 3, 1, 2)


def _picture(maker: BatchMaker, index: int, seed: tuple[int, int, int]) -> Labelled:
    contract = maker.spec.contract
    if maker.options is None:
        return resized(maker.pictures[index], contract)
    rng = default_rng(seed)
    return augment(maker.pictures, index, contract.hw, maker.options, rng, contract.pad_value)


def resized(picture: Labelled, contract: InputContract) -> Labelled:
    """Fit a picture and its boxes into the input as the contract says."""
    fit = Letterbox.fit((picture.image.shape[0], picture.image.shape[1]), contract)
    (height, width), (left, top) = fit.resized_hw, fit.pad_xy
    image = np.full((*contract.hw, 3), contract.pad_value, np.uint8)
    image[top : top + height, left : left + width] = cv2.resize(
        picture.image, (width, height), interpolation=cv2.INTER_LINEAR
    )
    boxes = np.column_stack((picture.boxes[:, 0], fit.to_input(picture.boxes[:, 1:])))
    return Labelled(image, boxes.astype(np.float32))


def _targets(boxes: NDArray[Any], place: int) -> NDArray[np.float32]:
    """Return targets (M, 6) of boxes (M, 5); an object too small to see becomes a region."""
    centre, size = (boxes[:, 1:3] + boxes[:, 3:]) / 2, boxes[:, 3:] - boxes[:, 1:3]
    label = np.where((size < _SMALLEST_PX).any(axis=1), IGNORE, boxes[:, 0])
    image = np.full(len(boxes), place)
    rows = np.column_stack((image, label, centre, size))[(size > 0).all(axis=1)]
    return np.asarray(rows, np.float32)


def scale_at(spec: ModelSpec, step: int, seed: int) -> tuple[int, int]:
    """Return the input size (height, width) of a step, in whole cells of the coarsest grid."""
    rows, columns = min(head.grid_hw for head in spec.heads)
    height, width = spec.contract.hw
    low, high = max(1, round(rows * _SCALES[0])), max(1, round(rows * _SCALES[1]))
    drawn = int(default_rng((seed, step // _STEPS_OF_A_SCALE)).integers(low, high + 1))
    across = max(1, round(columns * drawn / rows))
    return height // rows * drawn, width // columns * across


def rescaled(batch: Batch, hw: tuple[int, int]) -> Batch:
    """Return the batch, its boxes too, at another input size."""
    images, targets = batch
    old = images.shape[-2:]
    if tuple(old) == hw:
        return batch
    factor = torch.tensor((1, 1, *(2 * (hw[1] / old[1], hw[0] / old[0]))))
    resized = functional.interpolate(images, hw, mode="bilinear", align_corners=False)
    return resized.contiguous(memory_format=torch.channels_last), targets * factor


@contextlib.contextmanager
def prefetched(
    batch_at: Callable[[int], Batch], start: int, device: torch.device, ahead: int = 2
) -> Iterator[Callable[[], Batch]]:
    """Give batches from step `start` on, each made while the ones before it are trained on."""
    with ThreadPoolExecutor(1) as painter:
        waiting = [painter.submit(batch_at, start + number) for number in range(ahead)]
        following = iter(range(start + ahead, 2**62))

        def batches() -> Batch:
            waiting.append(painter.submit(batch_at, next(following)))
            images, targets = waiting.pop(0).result()
            return images.to(device, non_blocking=True), targets.to(device)

        try:
            yield batches
        finally:
            painter.shutdown(cancel_futures=True)
