"""The regression suite: what is measured, on what, and how much may be lost.

schema = 1
data = "val/annotations.json"       # as `edge evaluate --data`; paths count from this file
images = 300                        # at most so many
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
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edge.errors import DataError
from edge.optional import require

__all__ = ["SCHEMA", "Entry", "Margins", "Suite", "is_scenes", "read_suite"]

SCHEMA = 1


@dataclass(frozen=True)
class Margins:
    """What may be lost; None is not tested. Shares and AP 0..1.

    Attributes:
        map50: mean AP at IoU 0.5, against the stored results.
        small: the same for objects under 32 x 32 pixels.
        classes: AP of named classes.
        reference: mean AP, against the artifact's `reference` in the same run.
        slowdown: growth of the median latency: against `faster_than` in the same run where that
            is given, else against the stored ratio to the baseline, on the same host only.
        speedup: at least so many times as fast as the baseline of the same run.
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
    """Whether `data` or `source` is the built-in world."""
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
        document = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not TOML: {error}") from error
    try:
        return _suite(path, document)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _suite(path: Path, document: dict[str, Any]) -> Suite:
    if document.pop("schema", None) != SCHEMA:
        raise ValueError(f"its first line must be: schema = {SCHEMA}")
    folder = path.resolve().parent
    shared = _margins(Margins(), document.pop("margins", {}), "[margins]")
    entries = tuple(_entry(one, shared, folder) for one in document.pop("artifact", []))
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ValueError("it needs [[artifact]] tables, each with a name of its own")
    values = {"data": document.pop("data"), **document}
    allowed = {each.name for each in fields(Suite)} - {"path", "entries"}
    _known(values, allowed, "the suite")
    for name in ("data", "source"):
        if name in values:
            values[name] = _whole(str(values[name]), folder)
    for name in ("results", "baseline"):
        if name in values:
            values[name] = folder / values[name]
    values.setdefault("results", path.with_suffix(".jsonl"))
    suite = Suite(path=path, entries=entries, **values)
    _sensible(suite)
    return suite


def _whole(word: str, folder: Path) -> str:
    return word if is_scenes(word) else str(folder / word)


def _entry(one: dict[str, Any], shared: Margins, folder: Path) -> Entry:
    one = dict(one)
    name = str(one.get("name") or Path(one["path"]).stem)
    where = f"artifact {name!r}"
    margins = _margins(shared, one.pop("margins", {}), where)
    _known(one, {"name", "path", "reference", "faster_than"}, where)
    paths = {key: folder / one[key] if key in one else None for key in ("reference", "faster_than")}
    return Entry(name, folder / one["path"], margins, **paths)


def _margins(shared: Margins, values: dict[str, Any], where: str) -> Margins:
    values = dict(values)
    _known(values, {each.name for each in fields(Margins)}, f"margins of {where}")
    if "classes" in values:
        values["classes"] = tuple(sorted((str(k), v) for k, v in values["classes"].items()))
    for name, value in (*values.items(), *values.get("classes", ())):
        if name != "classes" and not _positive(value):
            raise ValueError(f"margin {name} of {where} is {value!r}; it takes a number from 0")
    return replace(shared, **values)


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


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
        if value is not None and (not _positive(value) or value == 0):
            raise ValueError(f"{name} is {value!r}; it takes a positive number")
    if not _positive(suite.camera_seconds):
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
