"""The loop: the newest frame through the detector, and the result to whoever wants it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from apps.agreement import Baseline
from apps.capture import Capture
from apps.live import LiveState
from apps.result import Result
from apps.sinks import SinkWorker
from apps.slot import Slots
from apps.source_frame import Frame, Source
from apps.tracking import Tracker
from apps.watchdog import Watchdog
from edge.runtime.detector import Detector

__all__ = ["Session", "detect_frames", "track_counts"]

_WAIT_S = 0.2
_USUAL_FPS = 30.0


@dataclass(frozen=True)
class Session:
    """Everything that a run needs, open and running; lists are in the order of the sources."""

    detector: Detector
    slots: Slots
    captures: Sequence[Capture]
    workers: Sequence[SinkWorker]
    trackers: Sequence[Tracker]
    baseline: Baseline | None
    live: LiveState


def detect_frames(
    session: Session, stop: threading.Event, seconds: float | None, frames: int | None
) -> None:
    """Until `stop`, the limits, or the end of every source.

    A frame is taken when the detector is free and is the newest then, so at its detections it
    is one inference and one interval of the camera old at most.
    """
    watchdog = Watchdog()
    end = None if seconds is None else time.monotonic() + seconds
    done = 0
    while not stop.is_set() and (frames is None or done < frames):
        session.live.beat()
        watchdog.beat(lambda: bool(session.live.health()["alive"]))
        left_s = _WAIT_S if end is None else min(_WAIT_S, end - time.monotonic())
        if left_s <= 0:
            break
        taken = session.slots.take(left_s)
        if taken is not None:
            _step(session, *taken)
            done += 1
        elif session.slots.finished:
            break


def _step(session: Session, source: int, frame: Frame) -> None:
    result = _detect(session, source, frame)
    session.live.publish(result)
    for worker in session.workers:
        worker.offer(result)
    if session.baseline is not None:
        spent_ms = sum(result.stages_ms.values())
        session.baseline.consider(frame.image, result.detections, spent_ms)


def _detect(session: Session, index: int, frame: Frame) -> Result:
    detector, source = session.detector, session.captures[index].source
    found = detector(frame.image)
    stages_ms = dict(detector.stages_ms)
    track_id = None
    if session.trackers:
        start = time.perf_counter()
        track_id = session.trackers[index].update(found, _seconds(source, frame))
        stages_ms["track"] = (time.perf_counter() - start) * 1e3
    return Result(
        source=index,
        name=source.name,
        frame=frame,
        detections=found,
        classes=detector.spec.classes,
        track_id=track_id,
        age_ms=(time.monotonic() - frame.captured) * 1e3,
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
