"""The engine in a thread of its own, so that it need not wait for what comes before and after it.

While it runs frame n, the caller's thread finishes frame n-1 and prepares frame n+1. The tensor of
n+1 lies ready before n is through, so between two runs there is nothing but the engine's own call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.source_frame import Frame
from edge.detections import Detections
from edge.letterbox import Letterbox
from edge.runtime.backend import Backend
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import Preprocessor

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


@dataclass
class _Job:
    source: int
    frame: Frame
    tensor: NDArray[np.float32]
    fit: Letterbox
    preprocess_s: float
    engine_s: float = 0.0
    raw: list[NDArray[np.float32]] | BaseException | None = None


class Overlap:
    """A detector for frames that come one after another; a context manager, for one thread.

    Args:
        detector: gives its backend and thresholds; not to be called meanwhile.

    Attributes:
        waiting: frames that were given and not yet taken back: 2 at most.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector, self.waiting = detector, 0
        # One tensor is read by the engine while the other is written.
        self._preprocessors = deque(Preprocessor(detector.contract) for _ in range(2))
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: SimpleQueue[_Job] = SimpleQueue()
        self._began = 0.0
        self._engine_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._prepare_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._thread = threading.Thread(
            target=_run, args=(detector.backend, self._jobs, self._done), name="engine", daemon=True
        )

    def __enter__(self) -> Overlap:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._jobs.put(None)
        self._thread.join()

    def give(self, source: int, frame: Frame) -> None:
        """Prepare a frame and leave it for the engine.

        Raises:
            ValueError: as `Preprocessor`, or two are waiting already.
        """
        if self.waiting == 2:
            raise ValueError("two frames are waiting; take one first")
        start = time.perf_counter()
        tensor, fit = self._preprocessors[0](frame.image)
        self._preprocessors.rotate()
        spent = time.perf_counter() - start
        self._prepare_s.append(spent)
        if not self.waiting:
            self._began = time.monotonic()
        self._jobs.put(_Job(source, frame, tensor, fit, spent))
        self.waiting += 1

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
        try:
            job = self._done.get(timeout=timeout_s) if timeout_s else self._done.get()
        except Empty:
            return None
        self.waiting -= 1
        self._began = time.monotonic()
        if isinstance(job.raw, BaseException):
            raise job.raw
        self._engine_s.append(job.engine_s)
        return self._finish(job)

    def _finish(self, job: _Job) -> Found:
        raw: Any = job.raw
        settings = self._detector
        found, after_ms = settings.pipeline.finish(
            raw, settings.score, settings.iou, settings.limit
        )
        boxes: Any = job.fit.to_source(found.xyxy)
        stages_ms = {
            "preprocess": job.preprocess_s * 1e3,
            "engine": job.engine_s * 1e3,
            **after_ms,
        }
        return Found(
            job.source, job.frame, Detections(boxes, found.score, found.class_id), stages_ms
        )


def _run(backend: Backend, jobs: SimpleQueue[_Job | None], done: SimpleQueue[_Job]) -> None:
    while (job := jobs.get()) is not None:
        start = time.perf_counter()
        try:
            job.raw = backend.run(job.tensor)
        except BaseException as error:  # it is the caller's to handle, in its own thread
            job.raw = error
        job.engine_s = time.perf_counter() - start
        done.put(job)
