"""The loop: the newest frame through the detector, and the result to whoever wants it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from apps.agreement import Baseline
from apps.capture import Capture
from apps.live import LiveState
from apps.result import Result
from apps.sinks import SinkWorker
from apps.slot import Slots
from apps.source_frame import Frame
from apps.tracking import Tracker
from apps.watchdog import Watchdog
from edge.runtime.detector import Detector

__all__ = ["detect_frames", "track_counts"]

_WAIT_S = 0.2


def detect_frames(
    detector: Detector,
    slots: Slots,
    captures: Sequence[Capture],
    live: LiveState,
    *,
    workers: Sequence[SinkWorker],
    baseline: Baseline | None,
    trackers: Sequence[Tracker],
    seconds: float | None,
    frames: int | None,
    stop: threading.Event,
) -> None:
    """Until `stop`, the limits, or the end of every source.

    A frame is taken when the detector is free and is the newest then, so at its detections it
    is one inference and one interval of the camera old at most.
    """
    watchdog = Watchdog()
    end = None if seconds is None else time.monotonic() + seconds
    done = 0
    while not stop.is_set() and (frames is None or done < frames):
        live.beat()
        watchdog.beat(live.health()["alive"] if done % 16 == 0 else True)
        left_s = _WAIT_S if end is None else min(_WAIT_S, end - time.monotonic())
        if left_s <= 0:
            break
        taken = slots.take(left_s)
        if taken is None:
            if slots.finished:
                break
            continue
        source, frame = taken
        result = _detect(detector, source, captures[source].source.name, frame, trackers)
        done += 1
        live.publish(result)
        for worker in workers:
            worker.offer(result)
        if baseline is not None:
            baseline.consider(frame.image, result.detections, sum(result.stages_ms.values()))


def _detect(
    detector: Detector, source: int, name: str, frame: Frame, trackers: Sequence[Tracker]
) -> Result:
    found = detector(frame.image)
    stages_ms = dict(detector.stages_ms)
    track_id = None
    if trackers:
        start = time.perf_counter()
        track_id = trackers[source].update(found, frame.captured)
        stages_ms["track"] = (time.perf_counter() - start) * 1e3
    return Result(
        source=source,
        name=name,
        frame=frame,
        detections=found,
        classes=detector.spec.classes,
        track_id=track_id,
        age_ms=(time.monotonic() - frame.captured) * 1e3,
        stages_ms=stages_ms,
    )


def track_counts(trackers: Sequence[Tracker], classes: Sequence[str]) -> dict[str, int]:
    """Tracks so far by class name, of all cameras together."""
    total: Counter[int] = Counter()
    for tracker in trackers:
        total.update(tracker.counts.copy())
    return {classes[label]: count for label, count in sorted(total.items())}
