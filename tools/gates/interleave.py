"""Time functions side by side, so that a machine that slows down slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

__all__ = ["medians_ms"]


def medians_ms(
    contestants: Mapping[str, Callable[[], object]], rounds: int, block: int
) -> dict[str, float]:
    """Median milliseconds of a call, by name.

    Each round gives every contestant one call that does not count and `block` that do; every
    other round runs backwards, so that who comes first gains nothing.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            call = contestants[name]
            call()
            for _ in range(block):
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(found)) for name, found in times.items()}
