"""Figures of a stream that never ends, in memory that never grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["Distribution"]

_LOWEST, _HIGHEST, _STEP = 1e-3, 1e7, 1.01
_BINS = math.ceil(math.log(_HIGHEST / _LOWEST) / math.log(_STEP)) + 2


class Distribution:
    """A histogram with bins 1 % wide: percentiles to 1 %, mean and extremes exactly.

    For positive numbers from 0.001 to 10,000,000, here milliseconds; others count as the nearest.
    """

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0
        self.low, self.high = math.inf, -math.inf
        self._bins = np.zeros(_BINS, np.int64)

    def add(self, value: float) -> None:
        """Count one value."""
        inside = min(max(value, _LOWEST), _HIGHEST)
        self._bins[int(math.log(inside / _LOWEST) / math.log(_STEP)) + 1] += 1
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def mean(self) -> float:
        """The mean; 0 of nothing."""
        return self.total / self.count if self.count else 0.0

    def percentiles(self, shares: Sequence[float]) -> list[float]:
        """Return the values that the given percentages do not exceed; zeros of nothing."""
        if not self.count:
            return [0.0] * len(shares)
        ranks = [max(1, math.ceil(share / 100 * self.count)) for share in shares]
        found = np.searchsorted(np.cumsum(self._bins), ranks)
        middles = [_LOWEST * _STEP ** (int(each) - 0.5) for each in found]
        return [min(max(middle, self.low), self.high) for middle in middles]

    def summary(self) -> dict[str, float]:
        """`p50`, `p95`, `p99`, `mean` and `max`."""
        p50, p95, p99 = self.percentiles((50, 95, 99))
        return {
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "mean": self.mean,
            "max": self.high if self.count else 0.0,
        }
