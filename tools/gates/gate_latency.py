"""The latency trials of `gate_sensitivity.py`: an artifact beside itself and beside a slower self.

All four contestants of a trial (the last release, the same again, the same a tenth slower, the
full-size baseline) take turns in one run, as the artifacts of one suite do. Each is opened anew in
each trial: how its memory happens to lie is part of what a gate must not mistake.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gate_trials import Trials
from numpy.typing import NDArray

from apps.regress.gather import log_ratios
from edge.detections import Detections
from edge.measure.frames import hold_frames
from edge.measure.host import fingerprint
from edge.measure.sensors import Watch
from edge.measure.statistics import compare_ratio
from edge.measure.turns import Runner, open_runner, opencv_threads, take_turns_until, warm_up
from edge.reporting import say, track

__all__ = ["Timing", "latency_trials"]

SLOWER = 0.1
_HELD = 8
Frames = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Timing:
    """How a trial is timed; `longest` times `rounds` where the machine is noisy."""

    rounds: int
    seconds: float
    longest: int
    margin: float
    alarm: float
    threads: int


class Slowed:
    """A detector that takes a share longer."""

    def __init__(self, detector: Any, share: float) -> None:
        self.detector, self.share = detector, share

    def __call__(self, frame: NDArray[np.uint8]) -> Detections:
        start = time.perf_counter()
        found: Detections = self.detector(frame)
        end = start + (time.perf_counter() - start) * (1 + self.share)
        while time.perf_counter() < end:
            pass
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.detector, name)


def latency_trials(
    artifact: Path, baseline: Path, trials: Trials, count: int, timing: Timing
) -> None:
    """Go on until there are `count` trials of each kind."""
    held, _ = hold_frames(None, _HELD)
    done = trials.of("latency")
    left = range(len(done), count)
    for number in track(left, "latency", len(left)):
        earlier = trials.of("latency")
        trial = _trial(artifact, baseline, held, timing, earlier[-1] if earlier else None)
        say(f"{number:4} " + ", ".join(f"{k}: {v}" for k, v in trial["verdicts"].items()))
        trials.add({"kind": "latency", "number": number, **trial})


def _trial(
    artifact: Path,
    baseline: Path,
    held: Frames,
    timing: Timing,
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    (old, same, slow, full), disturbed = _timed(artifact, baseline, held, timing)
    verdicts = {}
    for kind, now in (("no change", same), ("+10 %", slow)):
        found = _compare(log_ratios(now, old), None, timing)
        verdicts[f"{kind}, same run"] = found.verdict
        if before is not None:
            found = _compare(log_ratios(now, full), before["stored"], timing)
            # As in a suite: what a disturbed machine did is nobody's regression.
            doubtful = found.verdict == "worse" and (disturbed or before["disturbed"])
            verdicts[f"{kind}, stored"] = "cannot tell" if doubtful else found.verdict
    stored = [round(one, 6) for one in log_ratios(old, full)]
    return {"verdicts": verdicts, "stored": stored, "disturbed": disturbed}


def _compare(logs: Sequence[float], stored: Sequence[float] | None, timing: Timing) -> Any:
    return compare_ratio(logs, stored, margin=timing.margin, alarm=timing.alarm)


def _timed(
    artifact: Path, baseline: Path, held: Frames, timing: Timing
) -> tuple[list[Runner], bool]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(opencv_threads(timing.threads))
        paths = (artifact, artifact, artifact, baseline)
        runners = [open_runner(path, held[0], timing.threads) for path in paths]
        for runner in runners:
            stack.callback(runner.detector.close)
            once_ms = warm_up(runner, held)
            runner.block = max(1, round(timing.seconds * 1e3 / timing.rounds / once_ms))
            runner.whole = True
        # The same artifact gets the same frames a block.
        for runner in runners[1:3]:
            runner.block = runners[0].block
        slowed: Any = Slowed(runners[2].detector, SLOWER)
        runners[2].detector = slowed
        watch = Watch()
        take_turns_until(
            lambda: _precise(runners, timing), runners, held, timing.rounds, timing.longest, watch
        )
    return runners, bool(watch.warnings(int(str(fingerprint()["cores"]))))


def _precise(runners: Sequence[Runner], timing: Timing) -> bool:
    """As a suite's run: whether every ratio is known to within its margin."""
    found = [_compare(log_ratios(one, runners[0]), None, timing) for one in runners[1:3]]
    return all(one.high - one.loss <= one.margin for one in found)
