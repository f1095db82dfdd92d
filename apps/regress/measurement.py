"""One measurement of one artifact as a JSON line: reports and gates read nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edge.errors import DataError
from edge.files import write_file
from edge.measure import results as image_results
from edge.measure.results import ClassResults
from edge.measure.turns import Blocks, block_logs, whole

__all__ = ["SCHEMA", "Measurement", "read_measurements", "same_host", "write_measurements"]

SCHEMA = 2
# What decides how long a frame takes; versions of packages are what a gate is there to compare.
_HOST = ("cpu", "cores", "gpu", "power_mode")


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured of one artifact, with the raw results that statistics need.

    Attributes:
        name: in the suite.
        label: of the model: name, input size, precision, facts such as `random weights`.
        artifact, sha256, bytes: the file.
        backend, precision: what ran it.
        data, data_sha256, images: what it was run on; the digest covers pixels and labels.
        host: `edge.measure.host.fingerprint` with clocks, power mode and GPU where there is one.
        threads: of the CPU backend.
        fps: frames a second of `engine`, `pipeline` and, from a camera, `camera`.
        latency_ms: percentiles p50, p95, p99 by stage, `pipeline` among them.
        frame_age_ms: the same of the camera's frames, at the pace of its source.
        camera: the rounds behind these two, see `CameraRun`; None: no camera ran.
        speedup: of the pipeline over the baseline of the same run, where there is one.
        map50, map50_95, by_class, by_size: accuracy, 0..1.
        memory_bytes: what loading and running it added to the process.
        energy_j: of a frame, where the machine counts it; other work on it included.
        frames_us: microseconds of every frame, block by block: of the `engine` alone, of the
            `pipeline`, and of the pipelines that took turns with it, `baseline` and `faster_than`.
        stages_us: the same of each stage of the pipeline's frames.
        baseline: label and sha256 of the baseline; empty without one.
        results: per class and image, for the bootstrap.
        small: the same for objects under 32 x 32 pixels.
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
    results: dict[str, ClassResults]
    small: dict[str, ClassResults]
    made: str
    baseline: str = ""
    noise_db: dict[str, float] = field(default_factory=dict)
    frame_age_ms: dict[str, float] | None = None
    camera: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def pairs(self) -> list[float]:
        """log(latency / that of the baseline's neighbouring block) of each round; none without."""
        return self._logs("baseline")

    @property
    def rival_pairs(self) -> list[float]:
        """The same over the suite's `faster_than`."""
        return self._logs("faster_than")

    def _logs(self, other: str) -> list[float]:
        known = self.frames_us.get(other)
        return [] if known is None else block_logs(self.frames_us["pipeline"], known)

    def to_json(self) -> str:
        """One line."""
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("results", "small"):
            data[name] = image_results.to_json(data[name])
        return json.dumps(data)


def write_measurements(measurements: Iterable[Measurement], target: str | Path) -> None:
    """Write JSON lines, all or none."""
    text = "".join(one.to_json() + "\n" for one in measurements)
    write_file(Path(target), text.encode())


def read_measurements(source: str | Path) -> list[Measurement]:
    """Read what `write_measurements` wrote; unknown keys of newer writers are ignored.

    Raises:
        DataError: missing, damaged or of another schema; names the line.
    """
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read: {error}; make it: --update") from error
    found = [_parse(line, f"{source}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{source}: no measurement in it; make it: --update")
    return found


def _parse(line: str, where: str) -> Measurement:
    try:
        data = json.loads(line)
        schema = data["schema"]
        if schema == 1:
            data = _upgraded(data)
        elif schema != SCHEMA:
            raise ValueError(f"schema {schema}, this reads 1 and {SCHEMA}")
        known = {each.name for each in fields(Measurement)}
        data = {key: value for key, value in data.items() if key in known}
        for name in ("results", "small"):
            data[name] = image_results.from_json(data[name])
        return Measurement(**data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{where}: not a measurement of edge: {error}; measure again: --update"
        ) from error


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1, which kept no more than each block's median: a block of one frame."""
    rounds = {kind: whole([[one] for one in each]) for kind, each in data["rounds_ms"].items()}
    return {**data, "frames_us": rounds, "stages_us": {}, "schema": SCHEMA}


def same_host(now: Measurement, before: Measurement) -> list[str]:
    """Why stored latencies say nothing here; empty where both ran on one kind of machine."""
    differences = [
        f"{key} was {before.host.get(key)}, is {now.host.get(key)}"
        for key in _HOST
        if now.host.get(key) != before.host.get(key)
    ]
    if now.threads != before.threads:
        differences.append(f"threads were {before.threads}, are {now.threads}")
    return differences
