"""A tensor that has few different values: the values, and which of them stands where."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Codebook", "as_matrix"]


@dataclass(frozen=True, eq=False)
class Codebook:
    """A pruned, shared tensor.

    Attributes:
        centroids: (K,) float32, ascending; a pruned position has none of them.
        index: of the tensor's shape; 0 where pruned, else 1 + the place in `centroids`.
        scale: (O,) float32, what the values of each output channel are multiplied by; None: 1.
    """

    centroids: NDArray[np.float32]
    index: NDArray[np.integer[Any]]
    scale: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.centroids.ndim != 1 or not len(self.centroids) or self.index.ndim < 1:
            raise ValueError("a codebook takes centroids (K,), one or more, and an index")
        if self.index.size and not 0 <= self.index.min() <= self.index.max() <= self.levels:
            raise ValueError(f"the index of a codebook of {self.levels} goes from 0 to that number")
        if self.scale is not None and self.scale.shape != self.index.shape[:1]:
            raise ValueError(f"{self.scale.shape} scales for a tensor of {self.index.shape}")

    @property
    def levels(self) -> int:
        """K, the number of centroids."""
        return len(self.centroids)

    @property
    def pruned(self) -> bool:
        """Whether any position is pruned."""
        return bool((self.index == 0).any())

    def dense(self) -> NDArray[np.float32]:
        """Return the tensor as float32; pruned positions are exactly 0."""
        values = np.concatenate([np.zeros(1, np.float32), self.centroids.astype(np.float32)])
        dense = np.asarray(values[self.index])
        if self.scale is None:
            return dense
        with np.errstate(invalid="ignore", over="ignore"):  # of a damaged package, refused later
            return dense * self.scale.astype(np.float32).reshape(-1, *[1] * (dense.ndim - 1))

    def matrix(self) -> NDArray[np.int64]:
        """Return the index as (O, I, T): outputs, inputs, taps of the kernel."""
        return self.index.astype(np.int64).reshape(as_matrix(self.index.shape))


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return a weight's shape as (O, I, T): outputs, inputs, taps of the kernel."""
    return shape[0], prod(shape[1:2]), prod(shape[2:])
