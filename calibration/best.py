"""Which of several thresholds each tensor gets, judged on images that gave none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from calibration.histogram import Histogram
from calibration.threshold import METHODS, noise, percentile, threshold

__all__ = ["CANDIDATES", "Choice", "best_thresholds", "candidate"]

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
class Choice:
    """What one tensor gets.

    Attributes:
        name: key of `CANDIDATES`.
        gain_db: how much less noise than `mse` it has on the images held back; 0 or more.
    """

    name: str
    gain_db: float


def candidate(histogram: Histogram, name: str) -> float:
    """The threshold of a candidate; a tensor of nothing but zeros gets 1.

    Raises:
        ValueError: the histogram saw nothing.
    """
    return threshold(histogram, "mse") if not histogram.peak else CANDIDATES[name](histogram)


def best_thresholds(
    fit: Mapping[str, Histogram], held: Mapping[str, Histogram]
) -> dict[str, Choice]:
    """For each tensor the candidate measured on `fit` with the least noise on `held`.

    Noise is the mean squared error of 8-bit rounding and clipping.

    Raises:
        ValueError: a histogram saw nothing.
    """
    return {name: _best(histogram, held[name]) for name, histogram in fit.items()}


def _best(fit: Histogram, held: Histogram) -> Choice:
    names = list(CANDIDATES)
    amax = np.array([candidate(fit, name) for name in names])
    if not held.peak:
        return Choice("mse", 0.0)
    errors = noise(held, amax)
    least, default = errors.min(), errors[names.index("mse")]
    if default <= least:
        return Choice("mse", 0.0)
    gain_db = 10 * np.log10(default / max(least, 1e-300))
    return Choice(names[int(errors.argmin())], float(gain_db))
