"""How fast detectors are, side by side in one run, and against an earlier run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.decoding import read_json
from edge.errors import DataError
from edge.measure.frames import hold_frames
from edge.measure.host import fingerprint
from edge.measure.sensors import Watch
from edge.measure.statistics import Comparison, compare_ratio, interval
from edge.measure.turns import Runner, affinity, open_runner, opencv_threads, take_turns, warm_up
from edge.options import count, option, positive, share
from edge.runtime.ort_profile import node_ms

__all__ = [
    "BenchOptions",
    "BenchResult",
    "BenchRow",
    "EarlierRun",
    "LayerTime",
    "RowComparison",
    "bench",
    "compare_runs",
    "layer_times",
    "read_bench",
]

_HELD = 16
_PERCENTS = {"p50": 50, "p95": 95, "p99": 99}
_LEAST_ROUNDS = 2
# What one pair of runs is judged by; a suite shares out a smaller one.
_ALARM = 0.01
_MARGIN = 0.05


def _rounds(text: str) -> int:
    """A whole number from 2."""
    value = count(text)
    if value < _LEAST_ROUNDS:
        raise ValueError(f"{text} is too few; intervals take at least {_LEAST_ROUNDS} rounds")
    return value


def _cores(text: str) -> tuple[int, ...]:
    """Whole numbers from 0 with commas between."""
    try:
        found = tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not a list of cores, such as 0,1") from None
    if any(core < 0 for core in found):
        raise ValueError(f"{text!r} is not a list of cores, such as 0,1")
    return found


@dataclass(frozen=True)
class BenchOptions:
    """How `bench` measures.

    Attributes:
        baseline: artifact that speed-ups are relative to; left out: the first one
        source: take frames from this video, image or folder; left out: scenes of the built-in
            world
        seconds: measure each artifact for N seconds, half of them the engine alone; more narrow
            the intervals
        rounds: let each artifact have N turns; intervals rest on turns, so more narrow them
        score: leave out detections at or below this score
        iou: IoU above which two boxes of one class count as one object; left out: what the
            network was made for, or 0.45
        threads: CPU threads of onnxruntime and of OpenCV
        cores: stay on these CPU cores, numbers from 0
        layers: show which layers take the time
        compare: compare with the --json file of an earlier run
        frames: pipeline frames of each artifact instead of `seconds`, at least one a turn
    """

    baseline: str | Path | None = option(None, metavar="ARTIFACT")
    source: str | Path | None = option(None, metavar="S")
    seconds: float = option(5.0, metavar="N", check=positive)
    rounds: int = option(10, metavar="N", check=_rounds)
    score: float = option(0.25, metavar="S", check=share)
    iou: float | None = option(None, metavar="I", check=share)
    threads: int = option(2, metavar="N", check=count)
    cores: tuple[int, ...] = option((), metavar="0,1", check=_cores)
    layers: bool = False
    compare: str | Path | None = option(None, metavar="F")
    frames: int | None = option(None, hidden=True)

    def __post_init__(self) -> None:
        frames = self.frames is not None and self.frames < 1
        if self.seconds <= 0 or frames or self.rounds < _LEAST_ROUNDS or self.threads < 1:
            raise ValueError(
                f"seconds {self.seconds}, frames {self.frames} and threads {self.threads} must be "
                f"positive, rounds {self.rounds} at least {_LEAST_ROUNDS}"
            )


@dataclass(frozen=True)
class LayerTime:
    """Median milliseconds of a layer, and its share of the sum of all layers, 0..1."""

    name: str
    ms: float
    share: float


@dataclass(frozen=True)
class BenchRow:
    """What was measured of one artifact.

    Attributes:
        label: model, size, precision, and facts such as `random weights`.
        fps_engine, fps_pipeline: of the median frame.
        latency_ms: `p50`, `p95` and `p99` of the pipeline.
        interval_ms: their 95 % intervals.
        stages_ms: medians; `decode_file` where a source was decoded.
        bytes: of the file.
        memory_bytes: what loading it and the first frame added to the process, where known.
        energy_j: joules of a frame, where a sensor counts them.
        speedup: of the pipeline over the baseline's.
        speedup_interval: its 95 % interval.
        frames: pipeline frames behind the figures.
        rounds_ms: median of each turn, of `engine` and `pipeline`.
        layers: the slowest first; None where they were not asked for.
    """

    label: str
    artifact: str
    backend: str
    precision: str
    fps_engine: float
    fps_pipeline: float
    latency_ms: dict[str, float]
    interval_ms: dict[str, tuple[float, float]]
    stages_ms: dict[str, float]
    bytes: int
    memory_bytes: int | None
    energy_j: float | None
    speedup: float
    speedup_interval: tuple[float, float]
    frames: int
    rounds_ms: dict[str, list[float]]
    layers: tuple[LayerTime, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; layers that were not asked for are left out."""
        return _without_none(self, "layers")


@dataclass(frozen=True)
class RowComparison:
    """What became of one row since the earlier run: `worse`, `better`, `same`, `cannot tell` or
    `not compared`, and a line that says why.
    """

    label: str
    verdict: str
    text: str


@dataclass(frozen=True)
class BenchResult:
    """What `bench` measured.

    Attributes:
        host: see `edge.measure.host.fingerprint`.
        source: of the frames.
        warnings: heat, clocks or other work that disturbed the run.
        rows: by artifact, the baseline first.
        comparison: with an earlier run; None where none was given.
    """

    host: dict[str, Any]
    source: str
    threads: int
    warnings: tuple[str, ...]
    rows: tuple[BenchRow, ...]
    comparison: tuple[RowComparison, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; a comparison that was not asked for is left out."""
        return _without_none(self, "comparison")


def _without_none(result: Any, name: str) -> dict[str, Any]:
    found = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {key: value for key, value in found.items() if key != name or value is not None}


def bench(artifacts: Sequence[str | Path], options: BenchOptions | None = None) -> BenchResult:
    """Measure engine and pipeline of several artifacts, interleaved in short turns.

    The engine is `Backend.run` on a prepared tensor; the pipeline is pre-processing, engine,
    decoding and suppression of frames held in memory. Each detector runs until its times have
    settled, and each turn begins with one frame that does not count. Frames a second are those
    of the median frame; the percentiles show the others.

    Raises:
        DataError: the source or the earlier run cannot be read, or no such core.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`.
    """
    asked = options or BenchOptions()
    paths = _in_order(artifacts, asked.baseline)
    earlier = None if asked.compare is None else read_bench(asked.compare)
    held, decode_ms = hold_frames(asked.source, _HELD)
    watch = Watch()
    with ExitStack() as stack:
        _keep_on(stack, asked.cores)
        stack.enter_context(opencv_threads(asked.threads))
        runners = [_start(stack, path, held[0], asked) for path in paths]
        for runner in runners:
            runner.block = _block(warm_up(runner, held), asked)
        take_turns(runners, held, asked.rounds, watch)
        layers = [layer_times(r, asked.threads) if asked.layers else None for r in runners]
        rows = tuple(
            _row(runner, runners[0], decode_ms, found)
            for runner, found in zip(runners, layers, strict=True)
        )
    host = fingerprint()
    shape = f"{held[0].shape[1]}x{held[0].shape[0]}"
    result = BenchResult(
        host=host,
        source=f"{asked.source or 'built-in world'}, {shape}, {len(held)} frames in memory",
        threads=asked.threads,
        warnings=tuple(watch.warnings(int(str(host["cores"])))),
        rows=rows,
    )
    if earlier is None:
        return result
    return dataclasses.replace(result, comparison=compare_runs(result, earlier))


def _in_order(artifacts: Sequence[str | Path], baseline: str | Path | None) -> list[Path]:
    paths = [*([] if baseline is None else [baseline]), *artifacts]
    if not paths:
        raise ValueError("nothing to measure: name at least one artifact")
    return list(dict.fromkeys(Path(path) for path in paths))


def _keep_on(stack: ExitStack, cores: Sequence[int]) -> None:
    try:
        stack.enter_context(affinity(cores))
    except ValueError as error:
        raise DataError(f"--cores: {error}") from error


def _start(stack: ExitStack, path: Path, frame: NDArray[np.uint8], asked: BenchOptions) -> Runner:
    runner = open_runner(path, frame, asked.threads, score=asked.score, iou=asked.iou)
    stack.callback(runner.detector.close)
    return runner


def _block(once_ms: float, asked: BenchOptions) -> int:
    """Frames a turn: enough of them that all turns together take the seconds asked for."""
    if asked.frames is not None:
        return -(-asked.frames // asked.rounds)
    return max(2, round(asked.seconds * 1e3 / (2 * asked.rounds) / once_ms))


def _row(
    runner: Runner,
    baseline: Runner,
    decode_ms: list[float],
    layers: tuple[LayerTime, ...] | None,
) -> BenchRow:
    stages = {
        name: float(np.median([one[name] for one in runner.stages_ms]))
        for name in runner.stages_ms[0]
    }
    if decode_ms:
        stages = {"decode_file": float(np.median(decode_ms)), **stages}
    times = runner.frames_ms()
    found = {name: float(np.percentile(times, at)) for name, at in _PERCENTS.items()}
    engine = [value for block in runner.engine_ms for value in block]
    return BenchRow(
        label=_label(runner),
        artifact=str(runner.artifact),
        backend=runner.detector.backend.name,
        precision=runner.detector.manifest.precision,
        fps_engine=1e3 / float(np.median(engine)),
        fps_pipeline=1e3 / found["p50"],
        latency_ms=found,
        interval_ms={name: interval(runner.latency_ms, at) for name, at in _PERCENTS.items()},
        stages_ms=stages,
        bytes=runner.artifact.stat().st_size,
        memory_bytes=runner.memory_bytes,
        energy_j=runner.energy_j,
        speedup=float(np.median(baseline.frames_ms())) / found["p50"],
        speedup_interval=_speedup_interval(runner, baseline),
        frames=len(times),
        rounds_ms={kind: runner.medians(kind) for kind in ("engine", "pipeline")},
        layers=layers,
    )


def _speedup_interval(runner: Runner, baseline: Runner) -> tuple[float, float]:
    """95 % interval of the median over turns of how much faster the neighbouring one was."""
    pairs = zip(baseline.medians("pipeline"), runner.medians("pipeline"), strict=True)
    return interval([[slow / fast] for slow, fast in pairs], 50)


def _label(runner: Runner) -> str:
    manifest = runner.detector.manifest
    height, width = manifest.spec.contract.hw
    facts = f" ({', '.join(manifest.labels)})" if manifest.labels else ""
    return f"{manifest.spec.name} {width}x{height} {manifest.precision}{facts}"


def layer_times(runner: Runner, threads: int, runs: int = 20) -> tuple[LayerTime, ...]:
    """Measure the layers one by one, the slowest first.

    Of an engine TensorRT's layers, of an ONNX file the nodes that onnxruntime made of it. Being
    measured one by one their sum is more than a run takes.

    Raises:
        ArtifactError, DeviceError, MissingDependency: as the backend.
    """
    backend: Any = runner.detector.backend
    if hasattr(backend, "layer_times"):
        times: Sequence[tuple[str, float]] = backend.layer_times(runs)
    else:
        found = node_ms(Path(runner.artifact), runner.tensor, runs=runs, threads=threads)
        times = list(found.items())
    total = sum(ms for _, ms in times) or 1.0
    ordered = sorted(times, key=lambda one: -one[1])
    return tuple(LayerTime(name, ms, ms / total) for name, ms in ordered)


@dataclass(frozen=True)
class _EarlierHost:
    cpu: str
    cores: int


@dataclass(frozen=True)
class _EarlierTurns:
    pipeline: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.pipeline) < _LEAST_ROUNDS or min(self.pipeline) <= 0:
            raise ValueError(
                f"pipeline takes at least {_LEAST_ROUNDS} turns of more than 0 milliseconds"
            )


@dataclass(frozen=True)
class _EarlierRow:
    label: str
    rounds_ms: _EarlierTurns


@dataclass(frozen=True)
class EarlierRun:
    """What a comparison needs of the JSON of an earlier `bench`."""

    host: _EarlierHost
    threads: int
    rows: tuple[_EarlierRow, ...]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows are empty")
        turns = {len(row.rounds_ms.pipeline) for row in self.rows}
        if len(turns) > 1:
            raise ValueError(f"its rows have different numbers of turns: {sorted(turns)}")


def read_bench(source: str | Path) -> EarlierRun:
    """Read the JSON that `edge bench --json` wrote.

    Raises:
        DataError: missing, not JSON, or not of a benchmark.
    """
    return read_json(source, EarlierRun, what="a result of edge bench --json", error=DataError)


def compare_runs(now: BenchResult, before: EarlierRun) -> tuple[RowComparison, ...]:
    """Compare each row that both runs have.

    The ratio to the first row of each run is compared: whatever slowed one run slowed both its
    rows. Where the hosts or the first rows differ nothing is compared, and where the machine was
    disturbed nothing is called worse. A row that is alone has no such ratio.
    """
    earlier = {row.label: row for row in before.rows}
    reason = _difference(now, before)
    found = [_alone(now.rows[0], earlier)] if len(now.rows) == 1 else []
    for row in now.rows[1:]:
        known = earlier.get(row.label)
        if known is None or known is before.rows[0]:
            verdict, text = "not compared", "the earlier run has no such row"
        elif reason:
            verdict = "not compared"
            text = f"{reason}; in this run it is {row.speedup:.2f} times as fast as the baseline"
        else:
            judged = compare_ratio(
                _logs(row.rounds_ms["pipeline"], now.rows[0].rounds_ms["pipeline"]),
                _logs(known.rounds_ms.pipeline, before.rows[0].rounds_ms.pipeline),
                margin=_MARGIN,
                alarm=_ALARM,
            )
            verdict, text = judged.verdict, _text(judged)
            disturbed = [*now.warnings, *before.warnings]
            if verdict == "worse" and disturbed:
                verdict, text = "cannot tell", f"{text}; {disturbed[0]}"
        found.append(RowComparison(row.label, verdict, text))
    return tuple(found)


def _alone(row: BenchRow, earlier: dict[str, _EarlierRow]) -> RowComparison:
    text = "it takes a second artifact in both runs, such as --baseline FULL.onnx"
    if row.label in earlier:
        sides = earlier[row.label].rounds_ms.pipeline, row.rounds_ms["pipeline"]
        before, now = (np.median(side) for side in sides)
        text += f"; for what it is worth, p50 was {before:.2f} ms and is {now:.2f} ms"
    return RowComparison(row.label, "not compared", text)


def _difference(now: BenchResult, before: EarlierRun) -> str:
    """Why two runs cannot be compared; empty where they can."""
    for key in ("cpu", "cores"):
        if now.host.get(key) != getattr(before.host, key):
            return f"{key} was {getattr(before.host, key)}, is {now.host.get(key)}"
    if now.threads != before.threads:
        return f"threads were {before.threads}, are {now.threads}"
    first, second = before.rows[0].label, now.rows[0].label
    return "" if first == second else f"the baseline was {first}, is {second}"


def _logs(row: Sequence[float], first: Sequence[float]) -> list[float]:
    return [math.log(mine / other) for mine, other in zip(row, first, strict=True)]


def _text(found: Comparison) -> str:
    growth, low, high = (math.expm1(one) * 100 for one in (found.loss, found.low, found.high))
    more = f"; run longer: {found.more} more rounds" if found.more else ""
    return (
        f"latency {growth:+.1f} % against the earlier run's ratio to the baseline "
        f"({low:+.1f} to {high:+.1f}; margin +{_MARGIN * 100:.0f} %){more}"
    )
