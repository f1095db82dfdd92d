"""One measurement of one artifact as a JSON line: reports and gates read nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from edge.decoding import decode, parse_json
from edge.errors import DataError
from edge.files import read_file, to_plain, write_file
from edge.measure import results as image_results
from edge.measure.results import ClassResults
from edge.measure.turns import PERCENTS, Blocks, block_logs, whole

__all__ = [
    "SCHEMA",
    "CameraRun",
    "Measurement",
    "Record",
    "read_measurements",
    "same_host",
    "write_measurements",
]

SCHEMA = 2
_WHAT = "a measurement of edge"
_AGAIN = "measure again: --update"
# What decides how long a frame takes; versions of packages are what a gate is there to compare.
_HOST = ("cpu", "cores", "gpu", "power_mode")


@dataclass
class CameraRun:
    """What the camera's loop did with one artifact, round by round.

    Attributes:
        source: its last name, without folders.
        nominal_fps: of the source at its own pace.
        fps: frames a second of each round in which every frame was taken, as fast as possible.
        paced_fps: frames a second of each round at the source's pace.
        gaps_us, paced_gaps_us: microseconds between the detections of neighbouring frames, of each
            round of either kind.
        age_ms: of each frame of each paced round, from capture until its detections were there.
        dropped: of each paced round, frames that a newer one replaced.
    """

    source: str
    nominal_fps: float | None = None
    fps: list[float] = field(default_factory=list)
    paced_fps: list[float] = field(default_factory=list)
    gaps_us: list[list[int]] = field(default_factory=list)
    paced_gaps_us: list[list[int]] = field(default_factory=list)
    age_ms: list[list[float]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    def ages(self) -> dict[str, float]:
        """Return p50, p95, p99 over all frames, milliseconds."""
        every = np.concatenate(self.age_ms)
        found = np.percentile(every, (50, 95, 99)).tolist()
        return dict(zip(("p50", "p95", "p99"), found, strict=True))


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """What was measured of one artifact, but for the results of each image.

    Attributes:
        name: of the artifact in the suite.
        label: of the model: name, input size, precision, and facts such as `random weights`.
        artifact, sha256, bytes: the file.
        backend, precision: what ran it.
        data, data_sha256, images: what it was run on; the digest covers pixels and labels.
        host: `edge.measure.host.fingerprint` with clocks, power mode and GPU where there is one.
        threads: of the CPU backend.
        fps: frames a second of `engine`, `pipeline` and, from a camera, `camera`.
        latency_ms: percentiles p50, p95, p99 by stage, `pipeline` among them.
        frame_age_ms: the same of the camera's frames, at the pace of its source.
        camera: the rounds behind these two; None where no camera ran.
        speedup: of the pipeline over the baseline of the same run, where there is one.
        map50, map50_95, by_class, by_size: accuracy, 0..1.
        memory_bytes: what loading and running it added to the process.
        energy_j: of a frame, where the machine counts it; other work on it included.
        frames_us: microseconds of every frame, block by block: of the `engine` alone, of the
            `pipeline`, and of the pipelines that took turns with it, `baseline` and `faster_than`.
        stages_us: the same of each stage of the pipeline's frames.
        baseline: label and sha256 of the baseline; empty without one.
        made: when, UTC.
        noise_db: signal to noise by tensor against the suite's reference, in the graph's order.
        warnings: what disturbed the measurement.
    """

    name: str
    label: str
    artifact: str
    sha256: str
    bytes: int
    backend: str
    precision: str
    data: str
    data_sha256: str
    images: int
    host: dict[str, Any]
    threads: int
    fps: dict[str, float]
    latency_ms: dict[str, dict[str, float]]
    speedup: float | None
    map50: float
    map50_95: float
    by_class: dict[str, dict[str, float]]
    by_size: dict[str, dict[str, float]]
    memory_bytes: int | None
    energy_j: float | None
    frames_us: dict[str, Blocks]
    stages_us: dict[str, Blocks]
    made: str
    baseline: str = ""
    noise_db: dict[str, float] = field(default_factory=dict)
    frame_age_ms: dict[str, float] | None = None
    camera: CameraRun | None = None
    warnings: list[str] = field(default_factory=list)
    schema: int = SCHEMA


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement(Record):
    """What was measured of one artifact, with the raw results that statistics need.

    Attributes:
        results: per class and image, for the bootstrap.
        small: the same for objects under 32 x 32 pixels.
    """

    results: dict[str, ClassResults]
    small: dict[str, ClassResults]

    @property
    def pairs(self) -> list[float]:
        """log(latency / that of the baseline's neighbouring block) of each round."""
        return self._logs("baseline")

    @property
    def rival_pairs(self) -> list[float]:
        """The same over the suite's `faster_than`."""
        return self._logs("faster_than")

    def _logs(self, other: str) -> list[float]:
        known = self.frames_us.get(other)
        return [] if known is None else block_logs(self.frames_us["pipeline"], known)

    def to_json(self) -> str:
        """Return the measurement as one line."""
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("results", "small"):
            data[name] = image_results.to_json(data[name])
        return json.dumps(to_plain(data))


def write_measurements(measurements: Iterable[Measurement], target: str | Path) -> None:
    """Write JSON lines, all or none.

    Raises:
        ArtifactError: as `write_file`.
    """
    text = "".join(one.to_json() + "\n" for one in measurements)
    write_file(target, text.encode())


def read_measurements(source: str | Path) -> list[Measurement]:
    """Read what `write_measurements` wrote; unknown keys of newer writers are ignored.

    Raises:
        DataError: missing, damaged, of another schema, or with a figure that cannot be one; names
            the line and the field.
    """
    try:
        text = read_file(source, error=DataError).decode("utf-8")
    except (DataError, UnicodeDecodeError) as error:
        said = str(error) if isinstance(error, DataError) else f"{source}: cannot be read: {error}"
        raise DataError(f"{said}; make it: --update") from error
    lines = enumerate(text.splitlines(), 1)
    found = [_parse(line, f"{source}:{number}") for number, line in lines if line.strip()]
    if not found:
        raise DataError(f"{source}: no measurement in it; make it: --update")
    return found


@dataclass(frozen=True)
class _Schema:
    schema: int


@dataclass(frozen=True)
class _Rounds:
    rounds_ms: dict[str, list[float]]


@dataclass(frozen=True)
class _Results:
    results: dict[str, image_results.Encoded]
    small: dict[str, image_results.Encoded]


def _parse(line: str, where: str) -> Measurement:
    try:
        data = parse_json(line, where, _WHAT, DataError)
        schema = decode(data, _Schema, where, _WHAT, DataError).schema
        if schema == 1:
            data = _upgraded(data, where)
        elif schema != SCHEMA:
            raise ValueError(f"schema {schema}, this reads 1 and {SCHEMA}")
        record = decode(data, Record, where, _WHAT, DataError)
        encoded = decode(data, _Results, where, _WHAT, DataError)
        _check_figures(record)
        values = {each.name: getattr(record, each.name) for each in fields(Record)}
        return Measurement(
            **values,
            results=image_results.from_json(encoded.results),
            small=image_results.from_json(encoded.small),
        )
    except DataError as error:
        raise DataError(f"{error}; {_AGAIN}") from error
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: not {_WHAT}: {error}; {_AGAIN}") from error


def _upgraded(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Turn a record of schema 1, which kept the median of each block, into blocks of a frame."""
    kept = decode(data, _Rounds, where, _WHAT, DataError).rounds_ms
    rounds = {kind: whole([[one] for one in each]) for kind, each in kept.items()}
    return {**data, "frames_us": rounds, "stages_us": {}, "schema": SCHEMA}


def _check_figures(one: Record) -> None:
    """Refuse figures that would disable a gate or end it in a division by zero.

    Raises:
        ValueError: names the field.
    """
    for name in ("bytes", "images", "threads"):
        _within(name, getattr(one, name), 1, 2**53)
    for name in ("map50", "map50_95"):
        _within(name, getattr(one, name), 0, 1)
    for name in ("speedup", "energy_j", "memory_bytes"):
        if getattr(one, name) is not None:
            _within(name, getattr(one, name), 0, 2**53)
    for name, least in (("fps", 1e-9), ("noise_db", -1e6), ("frame_age_ms", 0)):
        for key, value in (getattr(one, name) or {}).items():
            _within(f"{name}.{key}", value, least, 1e12)
    _has("fps", one.fps, ("engine", "pipeline"))
    _has("latency_ms", one.latency_ms, ("pipeline",))
    for stage, figures in one.latency_ms.items():
        _has(f"latency_ms.{stage}", figures, PERCENTS)
        for key, value in figures.items():
            _within(f"latency_ms.{stage}.{key}", value, 0, 1e9)
    for kind, key in (("by_class", "ap50"), ("by_size", "map50")):
        for name, figures in getattr(one, kind).items():
            _has(f"{kind}.{name}", figures, (key,))
            _within(f"{kind}.{name}.{key}", figures[key], 0, 1)
    if not isinstance(one.host.get("packages", {}), dict):
        raise ValueError("host.packages: takes an object")
    _check_times(one)
    if one.camera is not None:
        _has("frame_age_ms", one.frame_age_ms or {}, PERCENTS)
        _check_camera(one.camera)


def _check_times(one: Record) -> None:
    _has("frames_us", one.frames_us, ("engine", "pipeline"))
    for name, kinds in (("frames_us", one.frames_us), ("stages_us", one.stages_us)):
        for kind, blocks in kinds.items():
            if not all(blocks):
                raise ValueError(f"{name}.{kind}: a block without a frame")
            for value in (value for block in blocks for value in block):
                _within(f"{name}.{kind}", value, 0 if name == "stages_us" else 1, 2**53)
    for kind in ("baseline", "faster_than"):
        beside = one.frames_us.get(kind)
        if beside is not None and len(beside) != len(one.frames_us["pipeline"]):
            raise ValueError(f"frames_us.{kind}: not as many blocks as frames_us.pipeline")


def _check_camera(run: CameraRun) -> None:
    for name in ("fps", "paced_fps", "age_ms"):
        if not getattr(run, name) or not all(getattr(run, name)):
            raise ValueError(f"camera.{name}: is empty, or a round of it")
    for value in (*run.fps, *run.paced_fps):
        _within("camera.fps", value, 1e-9, 1e9)


def _within(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name} is {value}; it must be from {least:g} to {most:g}")


def _has(name: str, values: Iterable[str], wanted: Iterable[str]) -> None:
    lacking = set(wanted) - set(values)
    if lacking:
        raise ValueError(f"{name}: {', '.join(sorted(lacking))} is missing")


def same_host(now: Measurement, before: Measurement) -> list[str]:
    """Return why stored latencies say nothing here; empty where both ran on like machines."""
    differences = [
        f"{key} was {before.host.get(key)}, is {now.host.get(key)}"
        for key in _HOST
        if now.host.get(key) != before.host.get(key)
    ]
    if now.threads != before.threads:
        differences.append(f"threads were {before.threads}, are {now.threads}")
    return differences
