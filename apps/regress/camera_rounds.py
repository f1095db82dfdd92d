"""The camera app's own loop over a suite's source, in rounds: frames a second, their age, drops."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from apps.camera.capture import Capture, Slots
from apps.camera.live import Facts, LiveState
from apps.camera.loop import Session, detect_frames
from apps.camera.result import Result
from apps.camera.sinks import SinkWorker
from apps.camera.stats import CameraStats
from apps.regress.measurement import CameraRun
from apps.regress.suite import is_scenes
from edge.errors import CameraError, DataError
from edge.reporting import say, track
from edge.runtime.detector import Detector
from edge.video.frame import Frame, Source, SourceOptions
from edge.video.sources import make_source

__all__ = ["film"]

_ROUNDS = 10
# Pictures have no pace of their own.
_FOLDER_FPS = 30.0
# The first frames of a round wait for its start.
_START = 3


class _Ages:
    """A sink that keeps the age of every frame, and when its detections were there."""

    name, pictures, newest = "ages", False, False
    # No round has more frames, so that none is ever left out.
    depth = 1_000_000

    def __init__(self) -> None:
        self.age_ms: list[float] = []
        self.ready: list[float] = []

    def write(self, result: Result) -> None:
        """See `Sink.write`."""
        self.age_ms.append(round(result.age_ms, 2))
        self.ready.append(result.frame.captured + result.age_ms / 1e3)

    def close(self) -> None:
        """See `Sink.close`."""

    def gaps_us(self) -> list[int]:
        """Return microseconds from frame to frame."""
        return [round(gap * 1e6) for gap in np.diff(self.ready).tolist()]


class _Endless(Source):
    """A source of files that begins again at its end."""

    def __init__(self, source: Source) -> None:
        self._source, self._closed = source, threading.Event()
        self.name, self.live = source.name, source.live
        self.fps: float | None = None
        self.damaged, self.note = 0, ""

    def open(self) -> None:
        """See `Source.open`."""
        self._closed.clear()
        self._source.open()
        self.fps = self._source.fps

    def read(self) -> Frame | None:
        """See `Source.read`."""
        frame = self._source.read()
        self.damaged, self.note = self._source.damaged, self._source.note
        if frame is None and not self._closed.is_set():
            self._source.close()
            self._source.open()
            frame = self._source.read()
        return frame

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
        self._source.close()


def film(detectors: Mapping[Path, Detector], source: str, seconds: float) -> dict[Path, CameraRun]:
    """Run the camera's loop, headless and without sinks, with each detector in turn.

    Args:
        source: a video, a folder of images (30 a second) or `scenes://`; it begins again at its
            end.
        seconds: of each detector at the source's pace, and as many as fast as possible; shared
            out over ten rounds.

    Raises:
        CameraError: the source cannot be opened, or no frame came.
        DataError: the source has no pace.
    """
    if not _source(source, fast=False).live:
        raise DataError(
            f"{source}: has no pace of its own; leave out fast=1, a run at full speed comes too"
        )
    name = source if is_scenes(source) else Path(source).name
    runs = {path: CameraRun(name) for path in detectors}
    for number in track(range(_ROUNDS), "camera", _ROUNDS):
        # The order changes from round to round, so that none always follows the same one.
        for path in list(detectors)[:: -1 if number % 2 else 1]:
            _round(runs[path], detectors[path], source, seconds / _ROUNDS)
    return runs


def _source(source: str, fast: bool) -> Source:
    folder = not is_scenes(source) and Path(source).is_dir()
    return make_source(source, SourceOptions(fast=fast, fps=_FOLDER_FPS if folder else None))


def _round(run: CameraRun, detector: Detector, source: str, seconds: float) -> None:
    ages = _Ages()
    paced = _loop(detector, _source(source, fast=False), seconds, ages)
    run.nominal_fps = paced.sources[0].nominal_fps
    run.paced_gaps_us.append(ages.gaps_us())
    run.paced_fps.append(_fps(ages.gaps_us()))
    run.age_ms.append(ages.age_ms[_START:] or ages.age_ms)
    run.dropped.append(paced.dropped)
    fast = _Ages()
    _loop(detector, _source(source, fast=True), seconds, fast)
    run.gaps_us.append(fast.gaps_us())
    run.fps.append(_fps(fast.gaps_us()))


def _fps(gaps_us: list[int]) -> float:
    return 1e6 * len(gaps_us) / max(1, sum(gaps_us))


def _loop(detector: Detector, source: Source, seconds: float, ages: _Ages) -> CameraStats:
    """Run the loop for some seconds, and return its figures."""
    slots = Slots(1)
    capture = Capture(0, _Endless(source), slots, say)
    worker = SinkWorker(ages, say)
    try:
        capture.open()
        live = LiveState(Facts(), detector.spec.classes, [capture], [worker])
        session = Session(detector, slots, [capture], [worker], [], None, live)
        detect_frames(session, threading.Event(), seconds, None)
        result = live.snapshot()
    finally:
        capture.close()
        worker.close()
    if result.frames < 2:
        raise CameraError(
            f"{source.name}: {result.frames} frames in a round of {seconds:.1f} s; "
            "raise camera_seconds"
        )
    return result
