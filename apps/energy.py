"""Energy of a stretch of work: by the CPU package's counter, or a Jetson's power added up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from apps.sensors import energy_j, energy_span_j, power_w

__all__ = ["spent_energy"]

_ROOT = Path("/")
# Reading a rail takes about a millisecond of its bus; the interpreter is free meanwhile.
_EVERY_S = 0.05
Samples = list[tuple[float, float]]


@contextmanager
def spent_energy(root: Path = _ROOT) -> Iterator[list[float]]:
    """A list that holds the joules of the block once it is left; without a sensor it stays empty.

    Other work of the machine counts too. Power is added up by the trapezoidal rule, from samples
    at both ends and every 50 ms between them.
    """
    spent: list[float] = []
    before = energy_j(root)
    if before is not None:
        yield spent
        after = energy_j(root)
        if after is not None and (passed := _passed(before, after, root)) is not None:
            spent.append(passed)
    elif power_w(root) is None:
        yield spent
    else:
        samples: Samples = []
        with _sampling(root, samples):
            yield spent
        if len(samples) > 1:
            moments, watts = np.array(samples).T
            spent.append(float(np.diff(moments) @ (watts[1:] + watts[:-1]) / 2))


def _passed(before: float, after: float, root: Path) -> float | None:
    """What a counter that may have begun anew has counted; None: nobody knows."""
    if after >= before:
        return after - before
    span = energy_span_j(root)
    return None if span is None else after - before + span


@contextmanager
def _sampling(root: Path, samples: Samples) -> Iterator[None]:
    done = threading.Event()

    def sample() -> None:
        watts = power_w(root)
        if watts is not None:
            samples.append((time.perf_counter(), watts))

    def run() -> None:
        while not done.wait(_EVERY_S):
            sample()

    sample()
    thread = threading.Thread(target=run, name="power", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sample()
