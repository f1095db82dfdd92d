"""How fast detectors are, side by side in one run: `edge bench`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.files import write_json
from edge.measure.compare import compare_with, read_bench
from edge.measure.frames import hold_frames
from edge.measure.host import fingerprint
from edge.measure.sensors import Watch
from edge.measure.statistics import interval
from edge.measure.turns import Runner, affinity, open_runner, opencv_threads, take_turns, warm_up
from edge.runtime.ort_profile import node_ms

__all__ = ["ROUNDS", "bench", "layer_times"]

# Blocks are short, so that a machine that slows down slows all contestants alike.
ROUNDS = 10
_HELD = 16
_PERCENTS = {"p50": 50, "p95": 95, "p99": 99}


def bench(
    artifacts: Sequence[str | Path],
    baseline: str | Path | None = None,
    *,
    source: str | Path | None = None,
    seconds: float = 5.0,
    frames: int | None = None,
    rounds: int = ROUNDS,
    score: float = 0.25,
    iou: float | None = None,
    threads: int = 2,
    cores: Sequence[int] = (),
    compare: str | Path | None = None,
    layers: bool = False,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Measure engine and pipeline of several artifacts, interleaved in short blocks.

    The engine is `Backend.run` on a prepared tensor; the pipeline is pre-processing, engine,
    decoding and suppression of frames held in memory. Each detector runs until its times have
    settled, and each block begins with one frame that does not count. Frames a second are those
    of the median frame; the percentiles show the others.

    Args:
        baseline: what `speedup` compares with; by default the first artifact.
        source: see `hold_frames`; by default frames of the built-in world.
        seconds: to measure each artifact for, half of it the engine alone.
        frames: instead of `seconds`, pipeline frames of each artifact, at least one a block.
        rounds: turns of each artifact; intervals rest on them, not on frames.
        threads: of the CPU backend and of OpenCV.
        cores: keep the process on these, numbers from 0.
        compare: JSON of an earlier run to hold the rows against.
        layers: measure each layer too, after all else.

    Returns:
        `host`, `source`, `threads`, `warnings` (heat, clocks, other work) and `rows`, the
        baseline's first: `label`, `artifact`, `backend`, `precision`, `fps_engine`,
        `fps_pipeline`, `latency_ms` (`p50`, `p95`, `p99` of the pipeline), `interval_ms` (their
        95 % intervals), `stages_ms` (medians; `decode_file` where a source was decoded), `bytes`,
        `memory_bytes`, `energy_j`, `speedup` (of the pipeline), `speedup_interval`, `frames`,
        `rounds_ms` (median of each block), with `layers` also `layers` (see `layer_times`); with
        `compare`, `comparison`.

    Raises:
        DataError: the source or the earlier run cannot be read, or no such core.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`.
    """
    paths = _in_order(artifacts, baseline)
    if seconds <= 0 or (frames is not None and frames < 1) or rounds < 2:
        raise ValueError(f"seconds {seconds}, frames {frames}, rounds {rounds} must be positive")
    earlier = None if compare is None else read_bench(compare)
    held, decode_ms = hold_frames(source, _HELD)
    watch = Watch()
    with ExitStack() as stack:
        _keep_on(stack, cores)
        stack.enter_context(opencv_threads(threads))
        runners = [_start(stack, path, held, score, iou, threads) for path in paths]
        for runner in runners:
            runner.block = _block(warm_up(runner, held), seconds, frames, rounds)
        take_turns(runners, held, rounds, watch)
        rows = [_row(runner, runners[0], decode_ms) for runner in runners]
        for row, runner in zip(rows, runners, strict=True) if layers else ():
            row["layers"] = layer_times(runner, threads)
    shape = f"{held[0].shape[1]}x{held[0].shape[0]}"
    host = fingerprint()
    result = {
        "host": host,
        "source": f"{source or 'built-in world'}, {shape}, {len(held)} frames in memory",
        "threads": threads,
        "warnings": watch.warnings(int(str(host["cores"]))),
        "rows": rows,
    }
    if earlier is not None:
        result["comparison"] = compare_with(result, earlier)
    write_json(result, json_path)
    return result


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


def _start(
    stack: ExitStack,
    path: Path,
    held: Sequence[NDArray[np.uint8]],
    score: float,
    iou: float | None,
    threads: int,
) -> Runner:
    runner = open_runner(path, held[0], threads, score=score, iou=iou)
    stack.callback(runner.detector.close)
    return runner


def _block(once_ms: float, seconds: float, frames: int | None, rounds: int) -> int:
    """Frames a block: enough of them that all blocks together take `seconds`."""
    if frames is not None:
        return -(-frames // rounds)
    return max(2, round(seconds * 1e3 / (2 * rounds) / once_ms))


def _row(runner: Runner, baseline: Runner, decode_ms: list[float]) -> dict[str, Any]:
    stages = {
        name: float(np.median([one[name] for one in runner.stages_ms]))
        for name in runner.stages_ms[0]
    }
    if decode_ms:
        stages = {"decode_file": float(np.median(decode_ms)), **stages}
    times = runner.frames_ms()
    found = {name: float(np.percentile(times, at)) for name, at in _PERCENTS.items()}
    engine = [value for block in runner.engine_ms for value in block]
    return {
        "label": _label(runner),
        "artifact": str(runner.artifact),
        "backend": runner.detector.backend.name,
        "precision": runner.detector.manifest.precision,
        "fps_engine": 1e3 / float(np.median(engine)),
        "fps_pipeline": 1e3 / found["p50"],
        "latency_ms": found,
        "interval_ms": {
            name: list(interval(runner.latency_ms, at)) for name, at in _PERCENTS.items()
        },
        "stages_ms": stages,
        "bytes": runner.artifact.stat().st_size,
        "memory_bytes": runner.memory_bytes,
        "energy_j": runner.energy_j,
        "speedup": float(np.median(baseline.frames_ms())) / found["p50"],
        "speedup_interval": _speedup_interval(runner, baseline),
        "frames": len(times),
        "rounds_ms": {kind: runner.medians(kind) for kind in ("engine", "pipeline")},
    }


def _speedup_interval(runner: Runner, baseline: Runner) -> list[float]:
    """95 % interval of the median over rounds of how much faster the neighbouring block was."""
    pairs = zip(baseline.medians("pipeline"), runner.medians("pipeline"), strict=True)
    return list(interval([[slow / fast] for slow, fast in pairs], 50))


def _label(runner: Runner) -> str:
    manifest = runner.detector.manifest
    height, width = manifest.spec.contract.hw
    facts = f" ({', '.join(manifest.labels)})" if manifest.labels else ""
    return f"{manifest.spec.name} {width}x{height} {manifest.precision}{facts}"


def layer_times(runner: Runner, threads: int, runs: int = 20) -> list[dict[str, Any]]:
    """Layers by time, the slowest first: `name`, `ms` (median), `share` of all layers' sum, 0..1.

    Of an engine TensorRT's layers, of an ONNX file the nodes that onnxruntime made of it. Both
    are measured one by one, so that their sum is more than a run takes.

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
    return [{"name": name, "ms": ms, "share": ms / total} for name, ms in ordered]
