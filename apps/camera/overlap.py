"""The engine in threads of its own, so that it need not wait for what comes before and after it.

While it runs frame n, the caller's thread finishes frame n-1 and prepares frame n+1. The tensor of
n+1 lies ready before n is through, so between two runs there is nothing but the engine's own call.

A camera's frame shall be young, so all cores work on one. Of a file only the total counts: there
each core takes a frame of its own (a lane), nobody waits for the other half of a layer, and what
one core spends on preparing frames holds up no other.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from edge.detections import Detections
from edge.runtime.backend import Prepared, Raw
from edge.runtime.detector import Detector
from edge.video.frame import Frame

__all__ = ["Found", "Overlap"]

_REMEMBERED = 16
# A thread does not wake up to the microsecond.
_MARGIN_S = 1e-3


@dataclass(frozen=True)
class Found:
    """What came of one frame; `stages_ms` as of a `Detector`."""

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
    """A detector for frames that come one after another; a context manager, for one thread.

    Args:
        detector: not to be called meanwhile.
        lanes: so many frames are in the engine at once; more than one needs a backend that several
            threads may run (onnxruntime's).
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
        """Frames that were given and not yet taken back."""
        return len(self._jobs)

    @property
    def full(self) -> bool:
        """Whether one has to be taken back first: one in each lane, and the next."""
        return len(self._jobs) == self._jobs.maxlen

    @property
    def ready(self) -> bool:
        """Whether the engine is through with the oldest frame."""
        return bool(self._jobs) and self._jobs[0].done.done()

    def give(self, source: int, frame: Frame) -> None:
        """Prepare a frame and leave it for the engine.

        Raises:
            ValueError: as `Preprocessor`, or as many as can are waiting already.
        """
        if self.full:
            raise ValueError(f"{self.waiting} frames are waiting; take one first")
        prepared = self._detector.prepare(frame.image)
        self._prepare_s.append(prepared.ms / 1e3)
        if not self.waiting:
            self._began = time.monotonic()
        done = self._engine.submit(_run, self._detector, prepared)
        self._jobs.append(_Job(source, frame, done))

    def until_next_s(self) -> float:
        """How long to wait before the next frame is prepared, so that it is ready and no older.

        By the engine's last runs, the lower quartile of them: a frame that is ready too early is
        a little older, one that is late makes the engine wait.
        """
        if not self._engine_s or not self.waiting:
            return 0.0
        usual = sorted(self._engine_s)[len(self._engine_s) // 4]
        lead = max(self._prepare_s) + _MARGIN_S
        return max(0.0, self._began + usual - lead - time.monotonic())

    def take(self, timeout_s: float | None = None) -> Found | None:
        """The oldest frame, as soon as the engine is through with it; None: not within the time.

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
        return Found(job.source, job.frame, detections, dict(self._detector.stages_ms))


def _run(detector: Detector, prepared: Prepared) -> tuple[Raw, float]:
    start = time.perf_counter()
    raw = detector.run(prepared)
    return raw, time.perf_counter() - start
