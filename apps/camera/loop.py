"""The loop: the newest frame through the detector, and the result to whoever wants it."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from apps.camera.baseline import Baseline
from apps.camera.capture import Capture
from apps.camera.live import LiveState
from apps.camera.overlap import Found, Overlap
from apps.camera.result import Result
from apps.camera.sinks import SinkWorker
from apps.camera.slots import Slots
from apps.camera.watchdog import Watchdog
from edge.runtime.detector import Detector
from edge.video.frame import Frame, Source
from edge.video.tracking import Tracker

__all__ = ["Session", "detect_frames", "track_counts"]

_WAIT_S = 0.2
# So long a result may wait for a frame that is being read.
_READING_S = 0.01
_USUAL_FPS = 30.0
_SWITCH_S = 5e-4


@dataclass(frozen=True)
class Session:
    """Everything that a run needs, open and running; lists are in the order of the sources.

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


def detect_frames(
    session: Session, stop: threading.Event, seconds: float | None, frames: int | None
) -> None:
    """Until `stop`, the limits, or the end of every source.

    A frame is taken when the detector is free, or about to be, and is the newest then; so at its
    detections it is one inference and one interval of the camera old at most.
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
            _tell(session, Found(index, frame, found, dict(session.detector.stages_ms)))


class _Rounds:
    """When to take the next frame, and when to end."""

    def __init__(
        self, session: Session, stop: threading.Event, seconds: float | None, frames: int | None
    ) -> None:
        self._session, self._stop = session, stop
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self._left = math.inf if frames is None else frames
        self._watchdog = Watchdog()

    def next(self) -> tuple[int, Frame] | None:
        """Wait for the next frame and its source; None: it is over."""
        while not self.over:
            self.beat()
            taken = self.now(min(_WAIT_S, self._end - time.monotonic()))
            if taken is not None:
                return taken
        return None

    def now(self, wait_s: float = 0.0) -> tuple[int, Frame] | None:
        """A frame, if one comes within the time."""
        if self.over:
            return None
        taken = self._session.slots.take(max(0.0, wait_s))
        self._left -= taken is not None
        return taken

    def beat(self) -> None:
        """The detector works."""
        self._session.live.beat()
        self._watchdog.beat(lambda: bool(self._session.live.health()["alive"]))

    @property
    def over(self) -> bool:
        """Whether no frame shall or will come."""
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
        assert found is not None
        _tell(session, found)


def _fill(rounds: _Rounds, overlap: Overlap, wait_s: float) -> None:
    """Give what fits: a frame that is still being read, too, unless a result would wait for it."""
    while not overlap.full and not rounds.over:
        taken = rounds.now(wait_s)
        if taken is not None:
            overlap.give(*taken)
        elif not wait_s or overlap.ready:
            return


@contextmanager
def _quick_turns() -> Iterator[None]:
    """The engine's thread shall have the interpreter at once: Python's default is to wait 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _tell(session: Session, found: Found) -> None:
    result = _result(session, found)
    session.live.publish(result)
    for worker in session.workers:
        worker.offer(result)
    if session.baseline is not None:
        spent_ms = sum(result.stages_ms.values())
        session.baseline.consider(found.frame.image, result.detections, spent_ms)


def _result(session: Session, found: Found) -> Result:
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
    """When the picture was taken; of a file read as fast as possible by its own clock."""
    return frame.captured if source.live else frame.index / (source.fps or _USUAL_FPS)


def track_counts(trackers: Sequence[Tracker], classes: Sequence[str]) -> dict[str, int]:
    """Tracks so far by class name, of all cameras together."""
    total: Counter[int] = Counter()
    for tracker in trackers:
        total.update(tracker.counts.copy())
    return {classes[label]: count for label, count in sorted(total.items())}
