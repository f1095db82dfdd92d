"""How far several builds of one graph lie apart: a builder times its tactics on a live machine."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge.artifact import read_manifest
from edge.errors import ArtifactError
from edge.files import sha256_of
from edge.measure.accuracy import accuracy, labelled
from edge.measure.bench import BenchOptions, bench
from edge.reporting import say
from export.engine.build import build_engine

__all__ = ["Rebuild", "Rebuilds", "Spread", "rebuild"]


@dataclass(frozen=True)
class Rebuild:
    """One build: how long it took, its plan, and what was measured on it.

    Attributes:
        map50: mAP@.5, where labelled images were given.
    """

    seconds: float
    bytes: int
    sha256: str
    p50_ms: float
    map50: float | None


@dataclass(frozen=True)
class Spread:
    """One figure over all builds; `apart` is highest minus lowest, relative to the median."""

    lowest: float
    median: float
    highest: float
    apart: float


@dataclass(frozen=True)
class Rebuilds:
    """All builds of `artifact`, and the spread of each figure by its name."""

    artifact: str
    host: dict[str, Any]
    builds: tuple[Rebuild, ...]
    spread: dict[str, Spread]


class _Timed(Protocol):
    @property
    def seconds(self) -> float: ...


def rebuild(
    onnx: str | Path,
    count: int,
    *,
    data: str | Path | None = None,
    images: int | None = None,
    build: Callable[[Path, Path], _Timed] = build_engine,
    options: BenchOptions | None = None,
) -> Rebuilds:
    """Build the engine of `onnx` `count` times and measure all builds in one run.

    Args:
        data: labelled images for the mAP of each build; None leaves it out.
        images: how many of them to use at most.
        build: as `export.engine.build.build_engine`.
        options: of the timing.

    Raises:
        ArtifactError: `onnx` is no ONNX file of edge, or `count` is below two.
        BuildError, EngineMismatch, DeviceError: a build cannot be made or run here.
    """
    source = Path(onnx)
    if source.suffix != ".onnx" or count < 2:
        raise ArtifactError(f"{onnx}: --rebuilds takes one .onnx and a count from 2")
    with tempfile.TemporaryDirectory(prefix="edge-rebuilds-") as folder:
        engines = [_build(build, source, Path(folder), i, count) for i in range(count)]
        timed = bench([path for path, _ in engines], options)
        dataset = data and labelled(data, read_manifest(source).spec.classes, images)
        builds = tuple(
            Rebuild(
                seconds,
                row.bytes,
                sha256_of(path),
                row.latency_ms["p50"],
                accuracy(path, dataset).metrics.map50 if dataset else None,
            )
            for (path, seconds), row in zip(engines, timed.rows, strict=True)
        )
    names = ("p50_ms", "bytes", "seconds", *(("map50",) if data else ()))
    spread = {name: _spread([getattr(one, name) for one in builds]) for name in names}
    return Rebuilds(str(source), timed.host, builds, spread)


def _build(
    build: Callable[[Path, Path], _Timed], source: Path, folder: Path, number: int, count: int
) -> tuple[Path, float]:
    say(f"building {number + 1} of {count}")
    target = folder / f"{source.stem}.{number}.engine"
    report = build(source, target)
    return target, float(report.seconds)


def _spread(values: Sequence[float]) -> Spread:
    low, middle, high = min(values), statistics.median(values), max(values)
    return Spread(low, middle, high, (high - low) / middle if middle else 0.0)
