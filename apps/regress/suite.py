"""The regression suite: what is measured, on what, and how much may be lost.

schema = 1
data = "val/annotations.json"       # as `edge evaluate --data`; paths count from this file
images = 300                        # at most this many, spread evenly
baseline = "yolov3.fp32.onnx"       # full-size network, timed in turns with the others
source = "drive.mp4"                # video, folder or scenes://, which the camera's loop runs over
results = "suite.jsonl"             # what `--update` writes and later runs compare with

[margins]                           # of every artifact
map50 = 0.01                        # mean AP that may be lost, 0..1
slowdown = 0.05                     # share by which latency may grow

[[artifact]]
name = "tiny int8"
path = "tiny.int8.onnx"
reference = "tiny.fp32.onnx"        # what it must be as right as, layer by layer
[artifact.margins]
speedup = 4.0                       # over the baseline of the same run
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edge.decoding import decode
from edge.errors import DataError
from edge.files import read_file
from edge.optional import require

__all__ = ["SCHEMA", "Entry", "Margins", "Suite", "is_scenes", "read_suite"]

SCHEMA = 1
_LIMIT_BYTES = 1 << 20
# Beyond this no margin, number of images or time makes sense; infinity and NaN are beyond it.
_MOST = 1e9


@dataclass(frozen=True)
class Margins:
    """What may be lost; None is not tested. Shares and AP are 0..1.

    Attributes:
        map50: mean AP at IoU 0.5, against the stored results.
        small: the same for objects under 32 x 32 pixels.
        classes: AP of named classes.
        reference: mean AP, against the artifact's `reference` in the same run.
        slowdown: growth of the median latency: against `faster_than` in the same run where that
            is given, else against the stored ratio to the baseline, on the same host only.
        speedup: how many times as fast as the baseline of the same run it must be.
        p99_ms: of the pipeline, at most.
        frame_age_p99: milliseconds from capture to detections of the camera's loop at the pace of
            the suite's source, at most.
        camera_fps: frames a second of that loop as fast as possible, at least.
        bytes, memory: growth of the file and of the process, against the stored figures.
        noise_db: signal to noise of the heads against `reference`, at least.
    """

    map50: float | None = None
    small: float | None = None
    classes: tuple[tuple[str, float], ...] = ()
    reference: float | None = None
    slowdown: float | None = None
    speedup: float | None = None
    p99_ms: float | None = None
    frame_age_p99: float | None = None
    camera_fps: float | None = None
    bytes: float | None = None
    memory: float | None = None
    noise_db: float | None = None


@dataclass(frozen=True)
class Entry:
    """One artifact of the suite.

    Attributes:
        reference: the artifact that accuracy and layers are compared with in the same run.
        faster_than: the artifact, usually the last release's, that latency is compared with.
    """

    name: str
    path: Path
    margins: Margins
    reference: Path | None = None
    faster_than: Path | None = None


@dataclass(frozen=True)
class Suite:
    """See the module's text; paths are whole.

    Attributes:
        seconds: of timing each artifact.
        rounds: turns that each artifact gets at least.
        threads: of the CPU backend.
        noise_images: that layers are compared on.
        alarms: probability of any false alarm in the whole suite, 0..1; shared out evenly.
        source: frames to time on, and for the camera's loop (a video tells most: pictures are slow
            to decode and `scenes://` to draw); None: frames of the built-in world, and no camera.
        camera_seconds: of the loop at the source's pace, and as many as fast as possible, of each
            artifact; 0: no camera.
    """

    path: Path
    data: str
    results: Path
    entries: tuple[Entry, ...]
    images: int | None = None
    baseline: Path | None = None
    source: str | None = None
    camera_seconds: float = 10.0
    seconds: float = 4.0
    rounds: int = 20
    threads: int = 2
    alarms: float = 0.02
    noise_images: int = 4

    @property
    def alarm(self) -> float:
        """Level of each statistical test, so that all together stay below `alarms` (Bonferroni)."""
        tests = sum(_tests(entry.margins) for entry in self.entries)
        return self.alarms / max(1, tests)


def _tests(margins: Margins) -> int:
    single = (margins.map50, margins.small, margins.reference, margins.slowdown, margins.speedup)
    camera = (margins.frame_age_p99, margins.camera_fps)
    return sum(one is not None for one in (*single, *camera)) + len(margins.classes)


def is_scenes(word: str) -> bool:
    """Return whether `data` or `source` is the built-in world."""
    return word == "scenes" or word.startswith("scenes://")


def read_suite(path: str | Path) -> Suite:
    """Read a suite file.

    Raises:
        DataError: missing, not TOML, of another schema, with a key that is not known or a value
            that makes no sense; names the key.
        MissingDependency: Python 3.10 without tomli.
    """
    path = Path(path)
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document = toml.loads(read_file(path, limit=_LIMIT_BYTES, error=DataError).decode("utf-8"))
    except RecursionError as error:
        raise DataError(f"{path}: not TOML: nested too deeply") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not TOML: {error}") from error
    try:
        return _suite(path, document)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Artifact:
    """An `[[artifact]]` table as it stands in the file."""

    path: str
    name: str | None = None
    reference: str | None = None
    faster_than: str | None = None
    margins: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """A suite as it stands in the file, but for its schema."""

    data: str
    artifact: tuple[_Artifact, ...] = ()
    margins: dict[str, Any] = field(default_factory=dict)
    results: str | None = None
    images: int | None = None
    baseline: str | None = None
    source: str | None = None
    camera_seconds: float = 10.0
    seconds: float = 4.0
    rounds: int = 20
    threads: int = 2
    alarms: float = 0.02
    noise_images: int = 4


def _suite(path: Path, document: dict[str, Any]) -> Suite:
    if document.pop("schema", None) != SCHEMA:
        raise ValueError(f"its first line must be: schema = {SCHEMA}")
    _known(document, {each.name for each in fields(_File)}, "the suite")
    found = decode(document, _File, str(path), "a suite", DataError)
    folder = path.resolve().parent
    shared = _margins(Margins(), found.margins, "[margins]")
    entries = tuple(
        _entry(one, written, shared, folder)
        for one, written in zip(found.artifact, document.get("artifact", []), strict=True)
    )
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ValueError("it needs [[artifact]] tables, each with a name of its own")
    suite = Suite(
        path=path,
        data=_whole(found.data, folder),
        results=path.with_suffix(".jsonl") if found.results is None else folder / found.results,
        entries=entries,
        images=found.images,
        baseline=None if found.baseline is None else folder / found.baseline,
        source=None if found.source is None else _whole(found.source, folder),
        camera_seconds=found.camera_seconds,
        seconds=found.seconds,
        rounds=found.rounds,
        threads=found.threads,
        alarms=found.alarms,
        noise_images=found.noise_images,
    )
    _sensible(suite)
    return suite


def _whole(word: str, folder: Path) -> str:
    return word if is_scenes(word) else str(folder / word)


def _entry(one: _Artifact, written: dict[str, Any], shared: Margins, folder: Path) -> Entry:
    name = one.name or Path(one.path).stem
    where = f"artifact {name!r}"
    _known(written, {each.name for each in fields(_Artifact)}, where)
    return Entry(
        name,
        folder / one.path,
        _margins(shared, one.margins, where),
        None if one.reference is None else folder / one.reference,
        None if one.faster_than is None else folder / one.faster_than,
    )


def _margins(shared: Margins, values: dict[str, Any], where: str) -> Margins:
    values = dict(values)
    _known(values, {each.name for each in fields(Margins)}, f"margins of {where}")
    classes = values.pop("classes", None)
    if classes is not None and not isinstance(classes, dict):
        raise ValueError(f"margin classes of {where} takes a table, such as {{ person = 0.02 }}")
    for name, value in (*values.items(), *(classes or {}).items()):
        if not _from_zero(value):
            raise ValueError(f"margin {name} of {where} is {value!r}; it takes a number from 0")
    if classes is not None:
        values["classes"] = tuple(sorted(classes.items()))
    return replace(shared, **values)


def _from_zero(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= _MOST  # type: ignore[operator]


def _known(values: Mapping[str, Any], allowed: set[str], where: str) -> None:
    unknown = sorted(set(values) - allowed)
    if unknown:
        raise ValueError(
            f"{where} has no {', '.join(unknown)}; known: {', '.join(sorted(allowed))}"
        )


def _sensible(suite: Suite) -> None:
    if not 0 < suite.alarms < 0.5:
        raise ValueError(f"alarms is {suite.alarms!r}; it takes a probability such as 0.02")
    for name in ("images", "threads", "rounds", "noise_images", "seconds"):
        value = getattr(suite, name)
        if value is not None and (not _from_zero(value) or value == 0):
            raise ValueError(f"{name} is {value!r}; it takes a positive number")
    if not _from_zero(suite.camera_seconds):
        raise ValueError(f"camera_seconds is {suite.camera_seconds!r}; it takes a number from 0")
    filmed = suite.source if suite.camera_seconds else None
    for entry in suite.entries:
        wants = (
            ("speedup", suite.baseline, "a baseline of the suite"),
            ("reference", entry.reference, "a reference"),
            ("noise_db", entry.reference, "a reference"),
            ("frame_age_p99", filmed, "a source of the suite and camera_seconds"),
            ("camera_fps", filmed, "a source of the suite and camera_seconds"),
        )
        for margin, given, what in wants:
            if getattr(entry.margins, margin) is not None and given is None:
                raise ValueError(f"margin {margin} of {entry.name!r} needs {what}")
        if entry.margins.slowdown is not None and not (suite.baseline or entry.faster_than):
            raise ValueError(f"margin slowdown of {entry.name!r} needs a baseline or faster_than")
