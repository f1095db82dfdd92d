"""The engine lottery: a builder times its tactics on a live machine, so no two builds are alike."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.artifact import read_manifest
from edge.errors import ArtifactError
from edge.files import sha256_of
from edge.measure.accuracy import accuracy, labelled
from edge.measure.bench import bench
from edge.reporting import say
from export.engine.build import build_engine

__all__ = ["rebuild"]


def rebuild(
    onnx: str | Path,
    count: int,
    *,
    data: str | Path | None = None,
    images: int | None = None,
    build: Callable[..., Any] = build_engine,
    **options: Any,
) -> dict[str, Any]:
    """Build the engine of `onnx` `count` times and measure all builds in one run.

    Args:
        data: labelled images for the mAP of each build; none leaves it out.
        build: as `export.engine.build.build_engine`.
        options: as `edge.measure.bench.bench`.

    Returns:
        `builds` (seconds, bytes, sha256, p50_ms, map50) and `spread` by figure: lowest, median,
        highest, and how far apart the ends are, relative to the median.

    Raises:
        ArtifactError: `onnx` is no ONNX file of edge, or `count` is below two.
        BuildError, EngineMismatch, DeviceError: a build cannot be made or run here.
    """
    source = Path(onnx)
    if source.suffix != ".onnx" or count < 2:
        raise ArtifactError(f"{onnx}: --rebuilds takes one .onnx and a count from 2")
    with tempfile.TemporaryDirectory(prefix="edge-rebuilds-") as folder:
        engines = [_build(build, source, Path(folder), i, count) for i in range(count)]
        timed = bench([path for path, _ in engines], **options)
        dataset = data and labelled(data, read_manifest(source).spec.classes, images)
        builds = []
        for (path, seconds), row in zip(engines, timed["rows"], strict=True):
            right = accuracy(path, dataset).metrics.map50 if dataset else None
            builds.append(
                {
                    "seconds": seconds,
                    "bytes": row["bytes"],
                    "sha256": sha256_of(path),
                    "p50_ms": row["latency_ms"]["p50"],
                    "map50": right,
                }
            )
    names = ("p50_ms", "bytes", "seconds", *(("map50",) if data else ()))
    spread = {name: _spread([one[name] for one in builds]) for name in names}
    return {"artifact": str(source), "host": timed["host"], "builds": builds, "spread": spread}


def _build(
    build: Callable[..., Any], source: Path, folder: Path, number: int, count: int
) -> tuple[Path, float]:
    say(f"building {number + 1} of {count}")
    target = folder / f"{source.stem}.{number}.engine"
    report = build(source, target)
    return target, float(report.seconds)


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = min(values), statistics.median(values), max(values)
    apart = (high - low) / middle if middle else 0.0
    return {"lowest": low, "median": middle, "highest": high, "apart": apart}
