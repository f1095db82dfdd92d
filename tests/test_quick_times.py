"""Short timings know how sure they are, and measure on until they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.measure import turns
from edge.measure.turns import quick_ms

FRAMES = [np.zeros((8, 8, 3), np.uint8)]
Times = Callable[[str, int], float]


class FakeDetector:
    """Says that each frame took what `times` tells of its artifact and number."""

    def __init__(self, name: str, times: Times) -> None:
        self.backend = SimpleNamespace(name="a clock")
        self.stages_ms: dict[str, float] = {}
        self.name, self.times, self.seen = name, times, 0

    def __call__(self, frame: Any) -> None:
        self.seen += 1
        self.stages_ms = {"engine": self.times(self.name, self.seen), "decode": 1.0}

    def __enter__(self) -> FakeDetector:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Times], dict[str, int]]:
    """Install times; the number of frames that each artifact was run on."""

    def install(times: Times) -> dict[str, int]:
        made: dict[str, int] = {}

        class Opening:
            @staticmethod
            def open(path: Path, **_: Any) -> FakeDetector:
                def counted(name: str, number: int) -> float:
                    made[name] = number
                    return times(name, number)

                return FakeDetector(Path(path).name, counted)

        monkeypatch.setattr(turns, "Detector", Opening)
        return made

    return install


def timed(settle: bool) -> tuple[turns.Quick, turns.Quick]:
    found = quick_ms(["a", "b"], FRAMES, seconds=0.0, least=60, settle=settle)
    return found[Path("a")], found[Path("b")]


def test_a_calm_machine_is_sure_after_one_window(
    clock: Callable[[Times], dict[str, int]],
) -> None:
    draw = np.random.default_rng(0)
    seen = clock(lambda name, _: (2.0 if name == "a" else 3.0) * draw.normal(1, 0.01))
    a, b = timed(settle=True)
    assert b.engine_ms / a.engine_ms == pytest.approx(1.5, rel=0.01)
    assert a.unsure == 0 and 0 < b.unsure < 0.03
    assert seen["a"] == 61  # one frame warms up


def test_times_that_scatter_are_measured_longer_and_stay_unsure(
    clock: Callable[[Times], dict[str, int]],
) -> None:
    draw = np.random.default_rng(0)
    seen = clock(lambda name, _: (2.0 if name == "a" else 3.0) * draw.lognormal(0, 0.5))
    _, b = timed(settle=False)
    assert seen["a"] == 61
    assert b.unsure > 0.1
    # The interval is honest: the true ratio, 1.5, lies in it.
    found = [timed(settle=False) for _ in range(20)]
    off = [abs(np.log(two.engine_ms / one.engine_ms / 1.5)) <= two.unsure for one, two in found]
    assert sum(off) >= 17


def test_other_work_that_lasts_shows_though_each_part_is_calm(
    clock: Callable[[Times], dict[str, int]],
) -> None:
    # From the middle on, one of the two takes three times as long: medians hide it.
    clock(lambda name, number: 3.0 if name == "b" and number > 40 else 1.0)
    _, b = timed(settle=False)
    assert b.unsure > 0.5


def test_settling_ends_where_nothing_settles(
    clock: Callable[[Times], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(1)
    seen = clock(lambda name, _: draw.lognormal(0, 1.0))
    found = quick_ms(["a", "b"], FRAMES, seconds=0.2, least=60, settle=True)
    assert found[Path("b")].unsure > turns._SURE
    # Four windows at most, by what they took or by their rounds.
    assert 61 < seen["a"] <= 1 + turns._MOST_WINDOWS * turns._MOST_ROUNDS
