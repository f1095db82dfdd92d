"""The camera app over a suite's source, in rounds: frames a second, their age, drops."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.camera import camera
from apps.outputs import Outputs
from apps.result import Result
from apps.source_frame import Frame, Source, SourceOptions
from apps.sources import make_source
from apps.table import steps
from edge.errors import CameraError

__all__ = ["ROUNDS", "CameraRun", "film", "is_scenes"]

ROUNDS = 5
# Pictures have no pace of their own.
_FOLDER_FPS = 30.0
# The first frames wait for the start of the loop.
_START = 3
_SHORT = 0.8


@dataclass(frozen=True)
class CameraRun:
    """What the app's loop did with one artifact, round by round.

    Attributes:
        source: as the suite names it, without its folder.
        nominal_fps: of the source at its own pace.
        fps: of each round in which frames were taken as fast as the detector could.
        paced_fps: of each round at the source's pace.
        age_ms: of each frame of each of these, from capture until its detections were there.
        dropped: frames of these rounds that a newer one replaced.
    """

    source: str
    nominal_fps: float
    fps: list[float] = field(default_factory=list)
    paced_fps: list[float] = field(default_factory=list)
    age_ms: list[list[float]] = field(default_factory=list)
    dropped: int = 0


class _Ages:
    """A sink that keeps the age of every frame."""

    name, pictures, newest = "ages", False, False
    # More than any round has frames: none is ever left out.
    depth = 1_000_000

    def __init__(self) -> None:
        self.age_ms: list[float] = []

    def write(self, result: Result) -> None:
        """See `Sink.write`."""
        self.age_ms.append(round(result.age_ms, 2))

    def close(self) -> None:
        """See `Sink.close`."""


class _Endless:
    """A source of files that begins again at its end."""

    damaged, note = 0, ""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name, self.live = source.name, source.live
        self.fps: float | None = None
        self._closed = threading.Event()

    def open(self) -> None:
        """See `Source.open`."""
        self._closed.clear()
        self._source.open()
        self.fps = self._source.fps

    def read(self) -> Frame | None:
        """See `Source.read`."""
        frame = self._source.read()
        if frame is None and not self._closed.is_set():
            self._source.close()
            self._source.open()
            frame = self._source.read()
        return frame

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
        self._source.close()


def is_scenes(source: str) -> bool:
    """Whether a source is the built-in world."""
    return source == "scenes" or source.startswith("scenes://")


def film(
    artifacts: Sequence[Path], source: str, seconds: float, threads: int
) -> Mapping[Path, CameraRun]:
    """Run the camera app headless with each artifact in turn.

    Args:
        source: a video, a folder of images (30 a second) or `scenes://`; begun anew at its end.
        seconds: at the source's pace, and as many as fast as possible, of each artifact, shared
            out over the rounds.

    Raises:
        CameraError: the source cannot be opened, or ended.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`.
    """
    name = source if is_scenes(source) else Path(source).name
    each_s = seconds / ROUNDS
    runs = {path: CameraRun(name, _rate(source)) for path in dict.fromkeys(artifacts)}
    for number in steps(range(ROUNDS), "camera", ROUNDS):
        # Who goes first differs from round to round.
        for path in list(runs)[:: -1 if number % 2 else 1]:
            _round(runs[path], path, source, each_s, threads)
    return runs


def _round(run: CameraRun, artifact: Path, source: str, seconds: float, threads: int) -> None:
    ages = _Ages()
    paced = _run(artifact, _source(source, pace=True), seconds, threads, ages)
    run.paced_fps.append(paced["fps"])
    run.age_ms.append(ages.age_ms[_START:] or ages.age_ms)
    object.__setattr__(run, "dropped", run.dropped + paced["dropped"])
    fast = _run(artifact, _source(source, pace=False), seconds, threads)
    run.fps.append(fast["fps"])
