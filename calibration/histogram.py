"""The only accumulator of activations: a histogram of |x| whose memory never grows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Histogram"]

# At least 2048 bins lie below the largest value, 16 for each of INT8's 128 magnitudes.
BINS = 4096


@dataclass
class Histogram:
    """Counts of |x| in `BINS` equal bins over [0, limit).

    `limit` is always a power of two, so that a wider range joins whole bins and two histograms
    merge to exactly the histogram of both data together, in any order.

    Attributes:
        counts: (BINS,) int64.
        limit: upper end of the last bin; 0 while nothing but zeros was seen.
        peak: the largest |x|.
        seen: values counted, zeros included.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    limit: float = 0.0
    peak: float = 0.0
    seen: int = 0

    def add(self, values: NDArray[np.floating]) -> None:
        """Count `values` of any shape.

        Raises:
            ValueError: a value is NaN or infinite; nothing is counted then.
        """
        magnitude = np.abs(values.reshape(-1))
        peak = float(magnitude.max(initial=0.0))
        if not np.isfinite(peak):
            raise ValueError("NaN or infinity")
        self._reach(peak)
        self.peak = max(self.peak, peak)
        self.seen += magnitude.size
        if self.limit == 0:
            self.counts[0] += magnitude.size
            return
        scale = BINS / self.limit
        if scale > float(np.finfo(magnitude.dtype).max):  # of values next to the smallest there are
            magnitude = magnitude.astype(np.float64)
        np.multiply(magnitude, magnitude.dtype.type(scale), out=magnitude)
        self.counts += np.bincount(magnitude.astype(np.int32), minlength=BINS)

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of the data of both; neither changes."""
        wide, narrow = (self, other) if self.limit >= other.limit else (other, self)
        merged = Histogram(narrow.counts.copy(), narrow.limit, narrow.peak, narrow.seen)
        merged._widen(wide.limit)
        merged.counts += wide.counts
        merged.peak = max(wide.peak, narrow.peak)
        merged.seen += wide.seen
        return merged

    def _reach(self, peak: float) -> None:
        """Make `limit` a power of two above `peak`."""
        if peak >= self.limit and peak > 0:
            self._widen(float(2.0 ** np.floor(np.log2(peak) + 1)))

    def _widen(self, limit: float) -> None:
        if limit <= self.limit:
            return
        if self.limit > 0:
            joined = min(round(limit / self.limit), BINS)
            sums = self.counts.reshape(-1, joined).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[: sums.size] = sums
        self.limit = limit

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin, (BINS,)."""
        middle: NDArray[np.float64] = (np.arange(BINS, dtype=np.float64) + 0.5) * (
            self.limit / BINS
        )
        return middle
