"""The camera app over a long time: a minute in every run, twenty before a release."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from apps.camera.live import LiveState
from apps.camera.options import Outputs
from apps.camera.stats import CameraStats
from tests.support.camera_parts import run_camera
from tests.support.small_models import write_small
from tests.support.tolerances import SOAK_MIB_PER_MINUTE


@pytest.mark.parametrize("seconds", [60, pytest.param(1200, marks=pytest.mark.slow)])
def test_a_long_run_neither_grows_nor_ages(seconds: int, tmp_path: Path) -> None:
    """In a process of its own: what other tests leave behind must not be weighed."""
    alone = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with alone:
        stats, slope, ages = alone.submit(long_run, seconds, tmp_path).result()
    print(f"soak: {stats.fps:.1f} FPS, {slope:+.2f} MiB/min, age {stats.frame_age_ms}")
    assert slope < SOAK_MIB_PER_MINUTE[seconds]
    assert stats.frame_age_ms["p99"] < 500
    first, second = np.array_split(np.array(ages), 2)
    assert np.median(second) < 1.5 * np.median(first) + 10


def long_run(seconds: int, folder: Path) -> tuple[CameraStats, float, list[float]]:
    """With a recording, events, tracks and somebody who watches the picture: the app's figures,
    how it grows in MiB per minute, ages of its frames in ms."""
    artifact = folder / "small.onnx"
    write_small(artifact)
    scales = Scales()
    stats = run_camera(
        artifact,
        ["scenes://?seed=1&fps=30&size=360x640"],
        outputs=Outputs(record=folder / "r.mp4", record_total_mib=40, events=folder / "e.jsonl"),
        seconds=seconds,
        track=True,
        beside=[scales.beside],
        threads=1,
        score=0.01,
    )
    return stats, scales.slope(after=seconds / 3), scales.ages


class Scales:
    """Weighs this process once a second while the app runs, and keeps its frames' ages."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self.ages: list[float] = []

    @contextmanager
    def beside(self, live: LiveState) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._weigh, args=(live, over), name="scales")
        thread.start()
        yield
        over.set()
        thread.join(5)
        self.ages = [one["age_ms"] for one in live.series() if one["age_ms"] is not None]

    def _weigh(self, live: LiveState, over: threading.Event) -> None:
        start = time.monotonic()
        while not over.wait(1):
            live.jpeg()
            self.samples.append((time.monotonic() - start, _resident_mib()))

    def slope(self, after: float) -> float:
        """MiB per minute from `after` seconds on."""
        warm = [sample for sample in self.samples if sample[0] > after]
        return float(np.polyfit(*zip(*warm, strict=True), 1)[0]) * 60


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
