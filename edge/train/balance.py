"""Class weights for data in which some classes are rare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edge.data.items import Item

__all__ = ["class_weights", "count_classes"]


def count_classes(items: Sequence[Item], classes: int) -> list[int]:
    """Objects of each class; regions do not count."""
    every = [item.class_id[~item.crowd & (item.class_id >= 0)] for item in items]
    return [
        int(n) for n in np.bincount(np.concatenate([[], *every]).astype(int), minlength=classes)
    ]


def class_weights(counts: Sequence[int], power: float = 0.5, limit: float = 10.0) -> torch.Tensor:
    """A weight (C,) for each class: its count to the power of -`power`, scaled so that the mean
    over all objects is 1 and none is above `limit`; a class without objects has `limit`.

    Raises:
        ValueError: no objects at all.
    """
    number = torch.tensor(counts, dtype=torch.float64)
    if number.sum() <= 0:
        raise ValueError("no objects to weigh classes by")
    rough = number.clamp(min=1) ** -power
    weights = rough * number.sum() / (rough * number).sum()
    weights[number == 0] = limit
    return weights.clamp(max=limit).float()
