"""How fast detectors are, side by side in one run: `edge bench`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.frames import hold_frames
from apps.host import fingerprint
from apps.table import show, steps
from edge.artifact import write_atomic
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import preprocess

__all__ = ["bench", "print_bench"]

# Blocks are short, so that a machine that slows down slows all contestants alike.
_ROUNDS = 10
_HELD = 16


@dataclass
class _Contestant:
    artifact: Path
    detector: Detector
    tensor: NDArray[np.float32]
    block: int = 1
    engine_ms: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)


def bench(
    artifacts: Sequence[str | Path],
    baseline: str | Path | None = None,
    *,
    source: str | Path | None = None,
    seconds: float = 5.0,
    frames: int | None = None,
    score: float = 0.25,
    iou: float = 0.45,
    threads: int = 2,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Measure engine and pipeline of several artifacts, interleaved in short blocks.

    The engine is `Backend.run` on a prepared tensor; the pipeline is pre-processing, engine,
    decoding and suppression of frames held in memory. Each block begins with one frame that does
    not count. Frames a second are those of the median frame; the percentiles show the others.

    Args:
        baseline: what `speedup` compares with; by default the first artifact.
        source: see `hold_frames`; by default frames of the built-in world.
        seconds: to measure each artifact for, half of it the engine alone.
        frames: instead of `seconds`, pipeline frames of each artifact, at least one a block.
        threads: of the CPU backend and of OpenCV.

    Returns:
        `host`, `source` and `rows`, the baseline's first: `label`, `artifact`, `backend`,
        `precision`, `fps_engine`, `fps_pipeline`, `latency_ms` (`p50`, `p95`, `p99` of the
        pipeline), `stages_ms` (medians; `decode_file` where a source was decoded), `bytes`,
        `speedup` (of the pipeline), `frames`.

    Raises:
        DataError: the source cannot be read.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`.
    """
    paths = _in_order(artifacts, baseline)
    if seconds <= 0 or (frames is not None and frames < 1):
        raise ValueError(f"seconds {seconds} and frames {frames} must be positive")
    held, decode_ms = hold_frames(source, _HELD)
    with ExitStack() as stack:
        stack.enter_context(_opencv_threads(threads))
        runners = [_open(stack, path, held[0], score, iou, threads) for path in paths]
        for runner in runners:
            runner.block = _block(runner, held, seconds, frames)
        _measure(runners, held)
        rows = [_row(runner, runners[0], decode_ms) for runner in runners]
    shape = f"{held[0].shape[1]}x{held[0].shape[0]}"
    result = {
        "host": fingerprint(),
        "source": f"{source or 'built-in world'}, {shape}, {len(held)} frames in memory",
        "threads": threads,
        "rows": rows,
    }
    if json_path is not None:
        write_atomic(Path(json_path), json.dumps(result, indent=1).encode())
    return result


def _in_order(artifacts: Sequence[str | Path], baseline: str | Path | None) -> list[Path]:
    paths = [*([] if baseline is None else [baseline]), *artifacts]
    if not paths:
        raise ValueError("nothing to measure: name at least one artifact")
    return list(dict.fromkeys(Path(path) for path in paths))


@contextmanager
def _opencv_threads(threads: int) -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _open(
    stack: ExitStack, path: Path, frame: NDArray[np.uint8], score: float, iou: float, threads: int
) -> _Contestant:
    options: dict[str, Any] = {"threads": threads} if path.suffix == ".onnx" else {}
    detector = stack.enter_context(Detector.open(path, score=score, iou=iou, **options))
    tensor, _ = preprocess(frame, detector.contract)
    return _Contestant(path, detector, tensor)


def _block(
    runner: _Contestant, held: Sequence[NDArray[np.uint8]], seconds: float, frames: int | None
) -> int:
    """Frames a block: enough of them that all blocks together take `seconds`."""
    for frame in held[:3]:
        runner.detector(frame)
    start = time.perf_counter()
    runner.detector(held[0])
    once = time.perf_counter() - start
    if frames is not None:
        return -(-frames // _ROUNDS)
    return max(2, round(seconds / (2 * _ROUNDS) / once))


def _measure(runners: Sequence[_Contestant], held: Sequence[NDArray[np.uint8]]) -> None:
    endless = cycle(held)
    for number in steps(range(_ROUNDS), "measuring", _ROUNDS):
        # Every other round runs backwards: who comes first gains nothing.
        order = list(runners)[:: -1 if number % 2 else 1]
        kinds = (_engine_block, _pipeline_block)[:: -1 if number % 2 else 1]
        for runner in order:
            for kind in kinds:
                kind(runner, endless)


def _engine_block(runner: _Contestant, held: Iterator[NDArray[np.uint8]]) -> None:
    run, tensor = runner.detector.backend.run, runner.tensor
    run(tensor)
    for _ in range(runner.block):
        start = time.perf_counter()
        run(tensor)
        runner.engine_ms.append((time.perf_counter() - start) * 1e3)


def _pipeline_block(runner: _Contestant, held: Iterator[NDArray[np.uint8]]) -> None:
    detector = runner.detector
    detector(next(held))
    for _ in range(runner.block):
        frame = next(held)
        start = time.perf_counter()
        detector(frame)
        runner.latency_ms.append((time.perf_counter() - start) * 1e3)
        runner.stages_ms.append(dict(detector.stages_ms))


def _row(runner: _Contestant, baseline: _Contestant, decode_ms: list[float]) -> dict[str, Any]:
    stages = {
        name: float(np.median([one[name] for one in runner.stages_ms]))
        for name in runner.stages_ms[0]
    }
    if decode_ms:
        stages = {"decode_file": float(np.median(decode_ms)), **stages}
    p50, p95, p99 = np.percentile(runner.latency_ms, (50, 95, 99)).tolist()
    return {
        "label": _label(runner),
        "artifact": str(runner.artifact),
        "backend": runner.detector.backend.name,
        "precision": runner.detector.manifest.precision,
        "fps_engine": 1e3 / float(np.median(runner.engine_ms)),
        "fps_pipeline": 1e3 / p50,
        "latency_ms": {"p50": p50, "p95": p95, "p99": p99},
        "stages_ms": stages,
        "bytes": runner.artifact.stat().st_size,
        "speedup": float(np.median(baseline.latency_ms)) / p50,
        "frames": len(runner.latency_ms),
    }


def _label(runner: _Contestant) -> str:
    manifest = runner.detector.manifest
    height, width = manifest.spec.contract.hw
    facts = f" ({', '.join(manifest.labels)})" if manifest.labels else ""
    return f"{manifest.spec.name} {width}x{height} {manifest.precision}{facts}"


def print_bench(result: dict[str, Any]) -> None:
    """The result as a table on stdout, with the host it was measured on."""
    host = result["host"]
    title = f"{host['cpu']}, {host['cores']} cores, {result['threads']} threads; {result['source']}"
    columns = (
        "model",
        "backend",
        "FPS engine",
        "FPS pipeline",
        "p50 ms",
        "p99 ms",
        "MB",
        "speed-up",
    )
    show(title, columns, [_cells(row) for row in result["rows"]])
    stages = list(result["rows"][0]["stages_ms"])
    rows = [
        (row["label"], *(f"{row['stages_ms'].get(stage, 0):.2f}" for stage in stages))
        for row in result["rows"]
    ]
    show("stages, ms", ("model", *stages), rows)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["label"],
        row["backend"],
        f"{row['fps_engine']:.1f}",
        f"{row['fps_pipeline']:.1f}",
        f"{row['latency_ms']['p50']:.2f}",
        f"{row['latency_ms']['p99']:.2f}",
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['speedup']:.2f}x",
    )
