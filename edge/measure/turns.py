"""Detectors timed in turns: what slows the machine slows all of them alike."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.measure.sensors import Watch, memory_bytes, spent_energy
from edge.onnx_file import OnnxFile
from edge.reporting import track
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import preprocess

__all__ = [
    "PERCENTS",
    "Blocks",
    "Quick",
    "Runner",
    "affinity",
    "block_logs",
    "flat",
    "open_runner",
    "opencv_threads",
    "percentiles",
    "quick_ms",
    "stage_times",
    "take_turns",
    "take_turns_until",
    "warm_up",
    "whole",
]

Frames = Sequence[NDArray[np.uint8]]
_WARM_FRAMES, _WARM_WINDOW, _WARM_SECONDS, _STABLE = 40, 4, 3.0, 0.05


@dataclass
class Runner:
    """A detector and what was measured of it, block by block.

    Attributes:
        artifact: its file.
        block: frames a block.
        whole: whether only the pipeline is timed.
        engine_ms, latency_ms: milliseconds of each frame of each block: the engine on a prepared
            tensor, the pipeline on a frame.
        stages_ms: of each pipeline frame.
        memory_bytes: what loading it and the first frame added to the process.
        joules, counted: energy of the pipeline blocks and their frames, where it is counted.
    """

    artifact: Path
    detector: Detector
    tensor: NDArray[np.float32]
    block: int = 1
    whole: bool = False
    engine_ms: list[list[float]] = field(default_factory=list)
    latency_ms: list[list[float]] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)
    memory_bytes: int | None = None
    joules: float = 0.0
    counted: int = 0

    def medians(self, kind: str) -> list[float]:
        """Median milliseconds of each block of `engine` or `pipeline`."""
        blocks = self.engine_ms if kind == "engine" else self.latency_ms
        return [float(np.median(block)) for block in blocks]

    @property
    def energy_j(self) -> float | None:
        """Joules of a frame, other work on the machine included; None without a sensor."""
        return self.joules / self.counted if self.counted else None

    def frames_ms(self) -> list[float]:
        """Pipeline milliseconds of every frame."""
        return [value for block in self.latency_ms for value in block]


@contextmanager
def opencv_threads(threads: int) -> Iterator[None]:
    """Let OpenCV use as many threads as the backend."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextmanager
def affinity(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process on `cores` (numbers from 0); none leaves it where it is.

    Raises:
        ValueError: a core that this process may not use.
    """
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    if not set(cores) <= before:
        raise ValueError(f"cores {sorted(set(cores) - before)} are not among {sorted(before)}")
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def open_runner(path: Path, frame: NDArray[np.uint8], threads: int, **options: Any) -> Runner:
    """Open an artifact; the caller closes `Runner.detector`.

    Raises:
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`.
    """
    before = memory_bytes()
    detector = Detector.open(path, **options, threads=threads)
    try:
        tensor, _ = preprocess(frame, detector.contract)
        detector(frame)
    except BaseException:
        detector.close()
        raise
    after = memory_bytes()
    grown = None if before is None or after is None else max(0, after - before)
    return Runner(path, detector, tensor, memory_bytes=grown)


def warm_up(runner: Runner, held: Frames) -> float:
    """Run frames until two neighbouring windows take the same time; milliseconds of a frame."""
    taken: list[float] = []
    began = time.perf_counter()
    for frame, _ in zip(cycle(held), range(_WARM_FRAMES), strict=False):
        start = time.perf_counter()
        runner.detector(frame)
        taken.append((time.perf_counter() - start) * 1e3)
        late, early = taken[-_WARM_WINDOW:], taken[-2 * _WARM_WINDOW : -_WARM_WINDOW]
        settled = len(early) == _WARM_WINDOW and (
            abs(np.median(late) / np.median(early) - 1) < _STABLE
        )
        if settled or (len(taken) > 1 and time.perf_counter() - began > _WARM_SECONDS):
            break
    return float(np.median(taken[-_WARM_WINDOW:]))


def take_turns(
    runners: Sequence[Runner], held: Frames, rounds: int, watch: Watch | None = None
) -> None:
    """Give every runner one engine block and one pipeline block in each of `rounds`.

    Each round has an order of its own, drawn from a fixed seed: who follows whom leaves traces in
    caches and clocks, and no runner may always follow the same one.
    """
    endless = cycle(held)
    draw = random.Random(sum(len(runner.latency_ms) for runner in runners))
    for number in track(range(rounds), "measuring", rounds):
        turn = -1 if number % 2 else 1
        for runner in draw.sample(list(runners), len(runners)):
            kinds = (_pipeline_block,) if runner.whole else (_engine_block, _pipeline_block)
            for kind in kinds[::turn]:
                kind(runner, endless)
        if watch is not None:
            watch.look()


def take_turns_until(
    enough: Callable[[], bool],
    runners: Sequence[Runner],
    held: Frames,
    rounds: int,
    longest: int,
    watch: Watch | None = None,
) -> None:
    """`take_turns` of `rounds`, and on until `enough`, `longest` times `rounds` at most.

    So that stopping favours no verdict, `enough` must look at how sure a ratio is and never at
    the ratio itself.
    """
    take_turns(runners, held, rounds, watch)
    for _ in range(longest - 1):
        if enough():
            return
        take_turns(runners, held, rounds, watch)


def _engine_block(runner: Runner, held: Iterator[NDArray[np.uint8]]) -> None:
    run, tensor = runner.detector.backend.run, runner.tensor
    run(tensor)
    taken = []
    for _ in range(runner.block):
        start = time.perf_counter()
        run(tensor)
        taken.append((time.perf_counter() - start) * 1e3)
    runner.engine_ms.append(taken)


def _pipeline_block(runner: Runner, held: Iterator[NDArray[np.uint8]]) -> None:
    detector = runner.detector
    detector(next(held))
    taken = []
    with spent_energy() as spent:
        for _ in range(runner.block):
            frame = next(held)
            start = time.perf_counter()
            detector(frame)
            taken.append((time.perf_counter() - start) * 1e3)
            runner.stages_ms.append(dict(detector.stages_ms))
    if spent:
        runner.joules += spent[0]
        runner.counted += runner.block
    runner.latency_ms.append(taken)


# Microseconds of each frame of each block.
Blocks = list[list[int]]
PERCENTS = {"p50": 50, "p95": 95, "p99": 99}


def whole(blocks_ms: Sequence[Sequence[float]]) -> Blocks:
    """Milliseconds as whole microseconds, one at least: a ratio of two must exist."""
    return [[max(1, round(value * 1e3)) for value in block] for block in blocks_ms]


def stage_times(runner: Runner) -> dict[str, Blocks]:
    """Of each stage of the pipeline's frames, in the pipeline's blocks."""
    ends = np.cumsum([len(block) for block in runner.latency_ms]).tolist()
    starts = [0, *ends[:-1]]
    return {
        stage: whole(
            [
                [one[stage] for one in runner.stages_ms[start:end]]
                for start, end in zip(starts, ends, strict=True)
            ]
        )
        for stage in runner.stages_ms[0]
    }


def flat(blocks: Blocks) -> NDArray[np.float64]:
    """Milliseconds of all frames."""
    return np.array([value for block in blocks for value in block], np.float64) / 1e3


def percentiles(blocks: Blocks) -> dict[str, float]:
    """p50, p95, p99 over all frames, milliseconds."""
    found = np.percentile(flat(blocks), list(PERCENTS.values())).tolist()
    return dict(zip(PERCENTS, found, strict=True))


def block_logs(mine: Blocks, other: Blocks) -> list[float]:
    """log(median / the other's median) of each round's neighbouring blocks."""
    pairs = zip(mine, other, strict=True)
    return [math.log(float(np.median(a)) / float(np.median(b))) for a, b in pairs]


_LEAST_ROUNDS, _MOST_ROUNDS = 3, 200
# Times are measured again, this often at most, until their ratios are known this closely.
_MOST_WINDOWS, _SURE = 4, 0.03


@dataclass(frozen=True)
class Quick:
    """Medians over few frames.

    Attributes:
        engine_ms, pipeline_ms: of the network, and from frame to boxes.
        backend: what ran it.
        unsure: how far `engine_ms` of the first artifact against this one may be off: the half
            width of the 95 % interval of the logarithm of their ratio.
        disturbed: what else the machine did meanwhile, a line each.
    """

    engine_ms: float
    pipeline_ms: float
    backend: str
    unsure: float = 0.0
    disturbed: tuple[str, ...] = ()


def quick_ms(
    artifacts: Sequence[str | Path | OnnxFile],
    frames: Sequence[NDArray[np.uint8]],
    *,
    seconds: float = 1.0,
    threads: int | None = None,
    least: int = _LEAST_ROUNDS,
    settle: bool = False,
) -> dict[Path, Quick]:
    """Run artifacts in turns, frame by frame, for about `seconds` all together.

    Args:
        least: rounds to measure however long they take.
        settle: measure up to four times as long, until the ratios to the first artifact are
            known to 3 %. How sure they are decides that, and not what they are, so that
            stopping favours no artifact.

    Raises:
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`.
    """
    opened = {Path(one): one for one in artifacts}
    with ExitStack() as stack:
        if threads is not None:
            stack.enter_context(opencv_threads(threads))
        detectors = [
            stack.enter_context(Detector.open(one, threads=threads)) for one in opened.values()
        ]
        for detector in detectors:
            detector(frames[0])
        watch = Watch()
        watch.look()
        rounds = _rounds(detectors, frames, seconds, least)
        while settle and len(rounds) < _MOST_WINDOWS * _MOST_ROUNDS:
            unsure = max(_unsure(rounds, index) for index in range(len(detectors)))
            spent = sum(sum(one.values()) for each in rounds for one in each) / 1e3
            if unsure <= _SURE or spent > (_MOST_WINDOWS - 1) * seconds:
                break
            rounds += _rounds(detectors, frames, seconds, least)
        watch.look()
        warnings = watch.warnings(os.cpu_count() or 1)
        disturbed = tuple(line.partition(";")[0] for line in warnings)
        found = {}
        for index, path in enumerate(opened):
            engine = [one[index]["engine"] for one in rounds]
            whole = [sum(one[index].values()) for one in rounds]
            name = detectors[index].backend.name
            found[path] = Quick(
                float(np.median(engine)),
                float(np.median(whole)),
                name,
                round(_unsure(rounds, index), 4),
                disturbed,
            )
    return found


def _unsure(rounds: Sequence[Sequence[Mapping[str, float]]], index: int) -> float:
    """Half width of the 95 % interval of log(time / time of the first), by its own scatter.

    A median's interval is 1.58 quartile ranges over the root of the count (McGill, Tukey and
    Larsen, 1978). That takes rounds for independent; what lasts longer than a round shows in the
    difference between the thirds of a measurement.
    """
    if not index:
        return 0.0
    logs = np.array([math.log(one[index]["engine"] / one[0]["engine"]) for one in rounds])
    low, high = np.percentile(logs, (25, 75))
    thirds = [float(np.median(part)) for part in np.array_split(logs, 3) if part.size]
    scatter = 1.58 * float(high - low) / math.sqrt(len(logs))
    return max(scatter, (max(thirds) - min(thirds)) / 2)


def _rounds(
    detectors: Sequence[Detector], frames: Sequence[NDArray[np.uint8]], seconds: float, least: int
) -> list[list[dict[str, float]]]:
    rounds: list[list[dict[str, float]]] = []
    began = time.perf_counter()
    while len(rounds) < _MOST_ROUNDS:
        stages = []
        for detector in detectors:
            detector(frames[len(rounds) % len(frames)])
            stages.append(dict(detector.stages_ms))
        rounds.append(stages)
        if len(rounds) >= least and time.perf_counter() - began > seconds:
            break
    return rounds
