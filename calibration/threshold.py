"""From a histogram of |x| to the clipping threshold `amax`; the INT8 scale is amax / 127."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.histogram import BINS, Histogram

__all__ = [
    "CANDIDATES",
    "METHODS",
    "ThresholdChoice",
    "best_thresholds",
    "candidate",
    "noise",
    "percentile",
    "threshold",
]

_LEVELS = 127
_CANDIDATES = 256


def _minmax(histogram: Histogram) -> float:
    return histogram.peak


def percentile(histogram: Histogram, share: float = 0.9999) -> float:
    """Return the smallest bin edge below which `share` of the values lie."""
    below = np.cumsum(histogram.counts)
    bin_ = int(np.searchsorted(below, share * below[-1]))
    return min((bin_ + 1) * histogram.limit / BINS, histogram.peak)


def noise(histogram: Histogram, amax: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean squared error of rounding to 127 levels up to each of `amax` (M,).

    Values above `amax` are clipped to it. Within a bin values count as spread evenly, so a step
    finer than a bin is judged right.
    """
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)
    used = np.flatnonzero(counts)
    centres, counts = centres[used], counts[used]
    step = amax[:, None] / _LEVELS
    nearest = np.minimum(np.rint(centres / step), _LEVELS) * step
    inside = centres <= amax[:, None]
    # A bin narrower than a step is seen at its centre; one wider has the step's own noise.
    width = histogram.limit / BINS
    rounding = np.where(step > width, (centres - nearest) ** 2, step**2 / 12)
    error = np.where(inside, rounding, (centres - amax[:, None]) ** 2)
    # Exact zeros (ReLU) carry no error, whatever the step: the first bin counts as zero.
    if used.size and used[0] == 0:
        error[:, 0] = 0
    mean: NDArray[np.float64] = (error @ counts) / max(histogram.seen, 1)
    return mean


def _mse(histogram: Histogram) -> float:
    """Return the threshold of the least mean squared error."""
    candidates = histogram.peak * np.linspace(1 / _CANDIDATES, 1, _CANDIDATES)
    best = int(np.argmin(noise(histogram, candidates)))
    return float(candidates[best])


def _entropy(histogram: Histogram) -> float:
    """Return the threshold of the least Kullback-Leibler divergence to its 128-level version.

    NVIDIA, "8-bit inference with TensorRT" (GTC 2017, S7310).
    """
    # The first bin is mostly exact zeros; with them the divergence always prefers to clip.
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    top = min(int(np.ceil(histogram.peak / histogram.limit * BINS)), BINS)
    stops = np.unique(np.linspace(_LEVELS + 1, top, _CANDIDATES).astype(int))
    divergence = [_divergence(counts[:top], int(stop)) for stop in stops if stop <= top]
    if not divergence:
        return histogram.peak
    return min(float(stops[int(np.argmin(divergence))] * histogram.limit / BINS), histogram.peak)


def _divergence(counts: NDArray[np.float64], stop: int) -> float:
    """Return the divergence of the distribution clipped at bin `stop` from its 128 levels."""
    kept = counts[:stop].copy()
    clipped = kept.copy()
    clipped[-1] += counts[stop:].sum()
    starts = np.linspace(0, stop, _LEVELS + 2).astype(int)[:-1]
    sums = np.add.reduceat(kept, starts)
    filled = np.add.reduceat((kept > 0).astype(np.float64), starts)
    level = np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0)
    spread = np.repeat(level, np.diff(np.append(starts, stop))) * (kept > 0)
    total, approximated = clipped.sum(), spread.sum()
    if total == 0 or approximated == 0:
        return float("inf")
    p, q = clipped / total, spread / approximated
    seen = p > 0
    if (q[seen] == 0).any():
        q = np.maximum(q, 1e-12)
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


METHODS: dict[str, Callable[[Histogram], float]] = {
    "mse": _mse,
    "percentile": percentile,
    "entropy": _entropy,
    "minmax": _minmax,
}


def threshold(histogram: Histogram, method: str = "mse") -> float:
    """Return the clipping threshold by `method`: mse, percentile (99.99 %), entropy or minmax.

    A tensor of nothing but zeros gets 1, which quantizes it exactly.

    Raises:
        ValueError: no such method, or a histogram that saw nothing.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; known: {', '.join(METHODS)}")
    if histogram.seen == 0:
        raise ValueError("the histogram is empty")
    if histogram.peak == 0:
        return 1.0
    return METHODS[method](histogram)


# Around the threshold of the least squared error, which is flat there.
_FACTORS = (0.7, 0.8, 0.9, 1.1, 1.25, 1.5)


def _scaled(factor: float) -> Callable[[Histogram], float]:
    return lambda histogram: min(factor * METHODS["mse"](histogram), histogram.peak)


def _share(share: float) -> Callable[[Histogram], float]:
    return lambda histogram: percentile(histogram, share)


CANDIDATES: dict[str, Callable[[Histogram], float]] = {
    **METHODS,
    "percentile 99.9": _share(0.999),
    "percentile 99.999": _share(0.99999),
    **{f"mse x {factor:g}": _scaled(factor) for factor in _FACTORS},
}


@dataclass(frozen=True)
class ThresholdChoice:
    """The threshold that one tensor gets.

    Attributes:
        name: key of `CANDIDATES`.
        gain_db: how much less noise than `mse` it has on the images held back; 0 or more.
    """

    name: str
    gain_db: float


def candidate(histogram: Histogram, name: str) -> float:
    """Return the threshold of a candidate; a tensor of nothing but zeros gets 1.

    Raises:
        ValueError: the histogram saw nothing.
    """
    return threshold(histogram, "mse") if not histogram.peak else CANDIDATES[name](histogram)


def best_thresholds(
    fit: Mapping[str, Histogram], held: Mapping[str, Histogram]
) -> dict[str, ThresholdChoice]:
    """Return for each tensor the candidate measured on `fit` that has the least noise on `held`.

    Noise is the mean squared error of 8-bit rounding and clipping.

    Raises:
        ValueError: a histogram saw nothing.
    """
    return {name: _best(histogram, held[name]) for name, histogram in fit.items()}


def _best(fit: Histogram, held: Histogram) -> ThresholdChoice:
    names = list(CANDIDATES)
    amax = np.array([candidate(fit, name) for name in names])
    if not held.peak:
        return ThresholdChoice("mse", 0.0)
    errors = noise(held, amax)
    least, default = errors.min(), errors[names.index("mse")]
    if default <= least:
        return ThresholdChoice("mse", 0.0)
    gain_db = 10 * np.log10(default / max(least, 1e-300))
    return ThresholdChoice(names[int(errors.argmin())], float(gain_db))
