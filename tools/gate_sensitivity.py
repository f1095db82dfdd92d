"""How small a regression the gates of `edge regress` find, and how often they cry wolf.

    python tools/gate_sensitivity.py ARTIFACT.fp32.onnx --data DIR [--trials 200] [--images 300]

Accuracy: copies of the artifact whose weights are noised or of which one layer is mis-scaled, and
copies changed too little to matter. What a copy truly loses is measured on twice the images that
the gate sees. Latency: the artifact beside itself, and beside itself with a tenth of its time
added, in turns with a baseline; `same run` is the gate with `faster_than`, `stored` compares the
ratio to the baseline with that of the trial before.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from apps.accuracy import accuracy, labelled
from apps.frames import hold_frames
from apps.gather import log_ratios
from apps.host import fingerprint
from apps.image_results import ClassResults
from apps.interleave import Runner, open_runner, opencv_threads, take_turns_until, warm_up
from apps.sensors import Watch
from apps.statistics import (
    compare_precision,
    compare_ratio,
    mean_precision,
    minimum_detectable_drop,
)
from apps.table import say, show
from edge.artifact import read_manifest
from edge.data.items import Dataset
from edge.detections import Detections

Results = dict[str, ClassResults]
ALARMS, GATES = 0.02, 4
ALARM = ALARMS / GATES


def changed(source: Path, target: Path, rng: np.random.Generator, size: float) -> str:
    """Write a copy with noised weights or one mis-scaled layer; what was done.

    Args:
        size: 0..1; at 1 the noise has 6 % of the weights' deviation, or the scale is 80 % off.
    """
    model = onnx.load(source)
    weights = [one for one in model.graph.initializer if one.name.endswith(".weight")]
    if rng.random() < 0.5:
        for one in weights:
            values = numpy_helper.to_array(one)
            noise = rng.normal(0, 0.06 * size * values.std(), values.shape)
            one.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), one.name))
        what = f"weights noised by {6 * size:.1f} %"
    else:
        one = weights[rng.integers(len(weights))]
        factor = 1 + float(rng.choice((-1, 1))) * 0.8 * size
        values = (numpy_helper.to_array(one) * factor).astype(np.float32)
        one.CopyFrom(numpy_helper.from_array(values, one.name))
        what = f"{one.name} x {factor:.3f}"
    onnx.save(model, target)
    return what


def subset(results: Results, images: NDArray[np.int64]) -> Results:
    """The same results on some of the images."""
    place = np.full(len(next(iter(results.values())).boxes), -1)
    place[images] = np.arange(len(images))
    picked = {}
    for name, one in results.items():
        stays = place[one.image] >= 0
        picked[name] = replace(
            one,
            image=place[one.image[stays]].astype(np.int32),
            score=one.score[stays],
            hit=one.hit[stays],
            boxes=one.boxes[images],
        )
    return {name: one for name, one in picked.items() if one.boxes.any()}


def accuracy_trials(
    artifact: Path, dataset: Dataset, images: int, trials: int, margin: float, threads: int
) -> tuple[float, list[tuple[float, str]], list[str]]:
    """Detectable drop; (true drop, verdict) of each regression; verdicts where nothing changed."""
    rng = np.random.default_rng(0)
    before = accuracy(artifact, dataset, threads).results
    plain = np.ones((1, len(dataset)))
    drop = minimum_detectable_drop(
        subset(before, rng.permutation(len(dataset))[:images]), margin=margin, alarm=ALARM
    )
    lost: list[tuple[float, str]] = []
    still: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 * trials):
            copy = Path(folder) / "copy.onnx"
            regression = number % 2 == 0
            size = float(rng.uniform(0.2, 1)) if regression else 0.01
            what = changed(artifact, copy, rng, size)
            now = accuracy(copy, dataset, threads).results
            true = float((mean_precision(before, plain) - mean_precision(now, plain))[0])
            chosen = rng.permutation(len(dataset))[:images]
            sides = subset(before, chosen), subset(now, chosen)
            found = compare_precision(*sides, margin=margin, alarm=ALARM)
            say(f"{number:4} {what}: true drop {true * 100:+.2f}, {found.verdict}")
            if regression:
                lost.append((true, found.verdict))
            else:
                still.append(found.verdict)
    return drop, lost, still


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
    artifact: Path,
    baseline: Path,
    trials: int,
    rounds: int,
    seconds: float,
    longest: int,
    margin: float,
    threads: int,
) -> dict[str, list[str]]:
    """Verdicts by kind of trial and gate."""
    verdicts: dict[str, list[str]] = {}
    held, _ = hold_frames(None, 8)
    stored: list[float] | None = None
    before = False
    for number in range(2 * trials):
        share = 0.1 if number % 2 else 0.0
        kind = "+10 %" if share else "no change"
        (old, new, full), disturbed = _timed(
            artifact, baseline, held, share, rounds, seconds, longest, margin, threads
        )
        same = compare_ratio(log_ratios(new, old), margin=margin, alarm=ALARM)
        verdicts.setdefault(f"{kind}, same run", []).append(same.verdict)
        if stored is not None:
            other = compare_ratio(log_ratios(new, full), stored, margin=margin, alarm=ALARM)
            # As in a suite: what a disturbed machine did is nobody's regression.
            doubtful = other.verdict == "worse" and (disturbed or before)
            verdict = "cannot tell" if doubtful else other.verdict
            verdicts.setdefault(f"{kind}, stored", []).append(verdict)
        stored, before = log_ratios(old, full), disturbed
        say(f"{number:4} {kind}: {np.expm1(same.loss) * 100:+.1f} %, {same.verdict}")
    return verdicts


def _timed(
    artifact: Path,
    baseline: Path,
    held: Sequence[NDArray[np.uint8]],
    share: float,
    rounds: int,
    seconds: float,
    longest: int,
    margin: float,
    threads: int,
) -> tuple[list[Runner], bool]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(opencv_threads(threads))
        runners = [open_runner(path, held[0], threads) for path in (artifact, artifact, baseline)]
        for runner in runners:
            stack.callback(runner.detector.close)
            once_ms = warm_up(runner, held)
            runner.block = max(1, round(seconds * 1e3 / rounds / once_ms))
            runner.whole = True
        # The same artifact gets the same frames a block.
        runners[1].block = runners[0].block
        slowed: Any = Slowed(runners[1].detector, share)
        runners[1].detector = slowed
        watch = Watch()
        take_turns_until(lambda: _precise(runners, margin), runners, held, rounds, longest, watch)
    return runners, bool(watch.warnings(int(str(fingerprint()["cores"]))))


def _precise(runners: Sequence[Runner], margin: float) -> bool:
    """As a suite's run: whether the ratio is known to within its margin."""
    found = compare_ratio(log_ratios(runners[1], runners[0]), margin=margin, alarm=ALARM)
    return found.high - found.loss <= found.margin


def share_of(verdicts: Sequence[str], wanted: str) -> str:
    if not verdicts:
        return "-"
    count = sum(verdict == wanted for verdict in verdicts)
    return f"{count} of {len(verdicts)} ({count / len(verdicts) * 100:.1f} %)"


def accuracy_rows(
    drop: float, lost: list[tuple[float, str]], still: list[str]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("changed too little to matter", *_counts(still))]
    ends = (-1.0, 0.25 * drop, 0.5 * drop, drop, 1.5 * drop, 1.0)
    for low, high in pairwise(ends):
        verdicts = [verdict for true, verdict in lost if low < true <= high]
        low_text = "" if low < 0 else f"{low * 100:.1f} to "
        rows.append((f"true drop {low_text}{high * 100:.1f}", *_counts(verdicts)))
    return rows


def _counts(verdicts: Sequence[str]) -> tuple[str, str]:
    return share_of(verdicts, "worse"), share_of(verdicts, "cannot tell")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--baseline", type=Path, help="of the latency trials; default: ARTIFACT")
    parser.add_argument("--data", help="default: scenes, twice --images")
    parser.add_argument("--images", type=int, default=300, help="that the gate sees")
    parser.add_argument("--trials", type=int, default=200, help="of each kind")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing each, at least")
    parser.add_argument("--longest", type=int, default=8, help="times that, where it is noisy")
    parser.add_argument("--margin", type=float, default=0.01, help="mean AP that may be lost")
    parser.add_argument("--slowdown", type=float, default=0.05, help="growth that is tolerated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("accuracy", "latency"))
    args = parser.parse_args()
    host = fingerprint()
    title = f"{host['cpu']}, {host['cores']} cores; level of each gate {ALARM:.3f}"
    if args.only != "latency":
        data = args.data or f"scenes://?count={2 * args.images}"
        classes = read_manifest(args.artifact).spec.classes
        dataset = labelled(data, classes, 2 * args.images)
        images = len(dataset) // 2
        drop, lost, still = accuracy_trials(
            args.artifact, dataset, images, args.trials, args.margin, args.threads
        )
        head = f"{title}; {images} images; announced: {drop * 100:.1f} points found with 95 %"
        show(head, ("accuracy", "worse", "cannot tell"), accuracy_rows(drop, lost, still))
    if args.only != "accuracy":
        baseline = args.baseline or args.artifact
        verdicts = latency_trials(
            args.artifact,
            baseline,
            args.trials,
            args.rounds,
            args.seconds,
            args.longest,
            args.slowdown,
            args.threads,
        )
        rows = [(kind, *_counts(found)) for kind, found in sorted(verdicts.items())]
        show(f"{title}; {args.rounds} rounds", ("latency", "worse", "cannot tell"), rows)


if __name__ == "__main__":
    main()
