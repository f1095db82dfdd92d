"""The loop: the newest frame through the detector, and the result to whoever wants it.

The engine runs in threads of its own. While it runs frame n, the loop finishes frame n-1 and
prepares frame n+1, so that between two runs there is nothing but the engine's own call.

A frame of a camera must be young, so all cores work on one. Of a file only the total counts: there
each core takes a frame of its own (a lane), nobody waits for the other half of a layer, and what
one core spends on preparing frames holds up no other.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from apps.camera.baseline import Baseline
from apps.camera.capture import Capture, Slots
from apps.camera.live import LiveState
from apps.camera.result import Result
from apps.camera.sinks import SinkWorker
from apps.camera.watchdog import Watchdog
from edge.detections import Detections
from edge.runtime.backend import Prepared, Raw
from edge.runtime.detector import Detector
from edge.video.frame import Frame, Source
from edge.video.tracking import Tracker

__all__ = ["Detected", "Overlap", "Session", "detect_frames", "track_counts"]

_WAIT_S = 0.2
# A result waits at most this long for a frame that is being read.
_READING_S = 0.01
_USUAL_FPS = 30.0
_SWITCH_S = 5e-4
_REMEMBERED = 16
# A thread does not wake up to the microsecond.
_MARGIN_S = 1e-3


@dataclass(frozen=True)
class Session:
    """Everything that a run needs, open and running; lists follow the order of the sources.

    Attributes:
        lanes: as `Overlap`; more than one only where no source is live.
    """

    detector: Detector
    slots: Slots
    captures: Sequence[Capture]
    workers: Sequence[SinkWorker]
    trackers: Sequence[Tracker]
    baseline: Baseline | None
    live: LiveState
    lanes: int = 1


@dataclass(frozen=True)
class Detected:
    """What the detector found in one frame of a source; `stages_ms` as of a `Detector`."""

    source: int
    frame: Frame
    detections: Detections
    stages_ms: dict[str, float]


@dataclass(frozen=True)
class _Job:
    source: int
    frame: Frame
    done: Future[tuple[Raw, float]]


class Overlap:
    """A detector whose engine runs beside the rest; a context manager, for one thread.

    Args:
        detector: its steps are run here; nobody may call it meanwhile.
        lanes: frames in the engine at once; more than one needs a backend that several threads
            may run (onnxruntime's).
    """

    def __init__(self, detector: Detector, lanes: int = 1) -> None:
        self._detector = detector
        self._jobs: deque[_Job] = deque(maxlen=lanes + 1)
        self._began = 0.0
        self._engine_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._prepare_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._engine = ThreadPoolExecutor(lanes, "engine")

    def __enter__(self) -> Overlap:
        return self

    def __exit__(self, *args: object) -> None:
        self._engine.shutdown(cancel_futures=True)

    @property
    def waiting(self) -> int:
        """How many frames were given and not yet taken back."""
        return len(self._jobs)

    @property
    def full(self) -> bool:
        """Whether every lane has a frame, and the next one waits."""
        return len(self._jobs) == self._jobs.maxlen

    @property
    def ready(self) -> bool:
        """Whether the engine has finished the oldest frame."""
        return bool(self._jobs) and self._jobs[0].done.done()

    def give(self, source: int, frame: Frame) -> None:
        """Prepare a frame and leave it to the engine.

        Raises:
            ValueError: as `Detector.prepare`, or `full`.
        """
        if self.full:
            raise ValueError(f"{self.waiting} frames are waiting; take one first")
        prepared = self._detector.prepare(frame.image)
        self._prepare_s.append(prepared.ms / 1e3)
        if not self.waiting:
            self._began = time.monotonic()
        done = self._engine.submit(_timed, self._detector, prepared)
        self._jobs.append(_Job(source, frame, done))

    def until_next_s(self) -> float:
        """Return how long to wait with preparing the next frame, so that it is ready and no older.

        It is the lower quartile of the engine's last runs: a frame that is ready too early is a
        little older, one that is late makes the engine wait.
        """
        if not self._engine_s or not self.waiting:
            return 0.0
        usual = sorted(self._engine_s)[len(self._engine_s) // 4]
        lead = max(self._prepare_s) + _MARGIN_S
        return max(0.0, self._began + usual - lead - time.monotonic())

    def take(self, timeout_s: float | None = None) -> Detected | None:
        """Return the oldest frame once the engine has finished it; None if not within the time.

        Raises:
            Whatever the backend raised.
        """
        if not wait((self._jobs[0].done,), timeout_s or None).done:
            return None
        job = self._jobs.popleft()
        self._began = time.monotonic()
        raw, engine_s = job.done.result()
        self._engine_s.append(engine_s)
        detections = self._detector.finish(raw)
        return Detected(job.source, job.frame, detections, dict(self._detector.stages_ms))


def _timed(detector: Detector, prepared: Prepared) -> tuple[Raw, float]:
    start = time.perf_counter()
    raw = detector.run(prepared)
    return raw, time.perf_counter() - start


def detect_frames(
    session: Session, stop: threading.Event, seconds: float | None, frames: int | None
) -> None:
    """Detect until `stop`, the limits, or the end of every source.

    A frame is taken when the detector is free, or about to be, and is the newest then. So at its
    detections it is at most one inference and one interval of the camera old.
    """
    rounds = _Rounds(session, stop, seconds, frames)
    if session.baseline is None and not session.detector.backend.on_device:
        with _quick_turns(), Overlap(session.detector, session.lanes) as overlap:
            _overlapped(session, rounds, overlap)
    else:
        # Beside a baseline each has the machine to itself, or their times mean nothing.
        while (taken := rounds.next()) is not None:
            index, frame = taken
            found = session.detector(frame.image)
            _tell(session, Detected(index, frame, found, dict(session.detector.stages_ms)))


class _Rounds:
    """Says when to take the next frame, and when to end."""

    def __init__(
        self, session: Session, stop: threading.Event, seconds: float | None, frames: int | None
    ) -> None:
        self._session, self._stop = session, stop
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self._left = math.inf if frames is None else frames
        self._watchdog = Watchdog()

    def next(self) -> tuple[int, Frame] | None:
        """Wait for the next source and its frame; None at the end."""
        while not self.over:
            self.beat()
            taken = self.now(min(_WAIT_S, self._end - time.monotonic()))
            if taken is not None:
                return taken
        return None

    def now(self, wait_s: float = 0.0) -> tuple[int, Frame] | None:
        """Return a frame, if one comes within the time."""
        if self.over:
            return None
        taken = self._session.slots.take(max(0.0, wait_s))
        self._left -= taken is not None
        return taken

    def beat(self) -> None:
        """Say that the detector works."""
        self._session.live.beat()
        self._watchdog.beat(lambda: bool(self._session.live.health().alive))

    @property
    def over(self) -> bool:
        """Whether no frame will be taken any more."""
        return (
            self._stop.is_set()
            or self._left <= 0
            or time.monotonic() >= self._end
            or self._session.slots.finished
        )


def _overlapped(session: Session, rounds: _Rounds, overlap: Overlap) -> None:
    live = any(capture.source.live for capture in session.captures)
    while True:
        if not overlap.waiting:
            taken = rounds.next()
            if taken is None:
                return
            overlap.give(*taken)
        wait_s = overlap.until_next_s() if live else 0.0
        found = overlap.take(wait_s) if wait_s else None
        if found is None:
            _fill(rounds, overlap, 0.0 if live else _READING_S)
            found = overlap.take()
        rounds.beat()
        if found is not None:
            _tell(session, found)


def _fill(rounds: _Rounds, overlap: Overlap, wait_s: float) -> None:
    """Give as many frames as fit, also one that is still being read unless a result would wait."""
    while not overlap.full and not rounds.over:
        taken = rounds.now(wait_s)
        if taken is not None:
            overlap.give(*taken)
        elif not wait_s or overlap.ready:
            return


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Let the engine's thread have the interpreter at once; Python's default is to wait 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _tell(session: Session, found: Detected) -> None:
    result = _result(session, found)
    session.live.publish(result)
    for worker in session.workers:
        worker.offer(result)
    if session.baseline is not None:
        spent_ms = sum(result.stages_ms.values())
        session.baseline.consider(found.frame.image, result.detections, spent_ms)


def _result(session: Session, found: Detected) -> Result:
    source, stages_ms = session.captures[found.source].source, found.stages_ms
    track_id = None
    if session.trackers:
        start = time.perf_counter()
        seconds = _seconds(source, found.frame)
        track_id = session.trackers[found.source].update(found.detections, seconds)
        stages_ms["track"] = (time.perf_counter() - start) * 1e3
    return Result(
        source=found.source,
        name=source.name,
        frame=found.frame,
        detections=found.detections,
        classes=session.detector.spec.classes,
        track_id=track_id,
        age_ms=(time.monotonic() - found.frame.captured) * 1e3,
        stages_ms=stages_ms,
    )


def _seconds(source: Source, frame: Frame) -> float:
    """Return when the picture was taken; of a file read as fast as possible by its own clock."""
    return frame.captured if source.live else frame.index / (source.fps or _USUAL_FPS)


def track_counts(trackers: Sequence[Tracker], classes: Sequence[str]) -> dict[str, int]:
    """Return the tracks so far by class name, of all cameras together."""
    total: Counter[int] = Counter()
    for tracker in trackers:
        total.update(tracker.counts.copy())
    return {classes[label]: count for label, count in sorted(total.items())}
