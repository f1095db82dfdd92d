"""Scenes held in memory as the network sees them, and random batches of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from edge.data.world.world import Scene
from edge.letterbox import Letterbox
from edge.spec import InputContract

__all__ = ["Pool", "as_tensor", "make_pool"]


@dataclass(frozen=True, eq=False)
class Pool:
    """Training pictures after the contract's resize, before its scaling.

    Attributes:
        images: (N, H, W, 3) uint8 BGR, the network's input size, borders included.
        boxes: for each, (M, 5) float32: class, then centre and size in input pixels.
    """

    images: NDArray[np.uint8]
    boxes: tuple[NDArray[np.float32], ...]
    contract: InputContract

    def batch(self, rng: Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (size, 3, H, W) float32 as the contract scales them, and targets (M, 6)."""
        chosen = rng.integers(len(self.images), size=size).tolist()
        images, targets = np.empty((size, *self.images.shape[1:]), np.uint8), []
        for index, source in enumerate(chosen):
            images[index] = _jitter(self.images[source], rng)
            boxes = self.boxes[source]
            if rng.random() < 0.5:
                images[index] = images[index, :, ::-1]
                boxes = boxes * (1, -1, 1, 1, 1) + (0, images.shape[2], 0, 0, 0)
            targets.append(np.insert(boxes, 0, index, axis=1))
        return self.tensor(images), torch.from_numpy(np.concatenate(targets).astype(np.float32))

    def tensor(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Images (N, H, W, 3) BGR to the contract's (N, 3, H, W), channels last in memory."""
        return as_tensor(images, self.contract)


def as_tensor(images: NDArray[np.uint8], contract: InputContract) -> torch.Tensor:
    """Images (N, H, W, 3) BGR to the contract's (N, 3, H, W), channels last in memory."""
    ordered = images[..., ::-1] if contract.channel_order == "RGB" else images
    pixels = torch.from_numpy(np.ascontiguousarray(ordered)).float()
    pixels = (pixels - torch.tensor(contract.mean)) * torch.tensor(contract.scale)
    return pixels.permute(0, 3, 1, 2)


def _jitter(image: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """Hue by +-9 degrees, saturation by +-40 %, brightness by +-30 %; the border stays put."""
    hue, saturation, value = rng.uniform(-1, 1, 3) * (9, 0.4, 0.3)
    level = np.arange(256)
    tables = [(level + hue / 2) % 180, level * (1 + saturation), level * (1 + value)]
    table = np.clip(np.stack(tables, axis=1), 0, 255).astype(np.uint8)[None]
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)


def make_pool(scenes: Iterable[Scene], count: int, contract: InputContract) -> Pool:
    """Put `count` scenes through the contract's resize."""
    images = np.full((count, *contract.hw, 3), contract.pad_value, np.uint8)
    boxes: list[Any] = []
    for image, scene in zip(images, scenes, strict=True):
        fit = Letterbox.fit((scene.image.shape[0], scene.image.shape[1]), contract)
        (height, width), (left, top) = fit.resized_hw, fit.pad_xy
        image[top : top + height, left : left + width] = cv2.resize(
            scene.image, (width, height), interpolation=cv2.INTER_LINEAR
        )
        boxes.append(_centred(fit.to_input(scene.xyxy), scene.class_id))
    return Pool(images, tuple(boxes), contract)


def _centred(xyxy: NDArray[Any], class_id: NDArray[Any]) -> NDArray[np.float32]:
    centre, size = (xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]
    return np.concatenate([class_id[:, None], centre, size], axis=1).astype(np.float32)
