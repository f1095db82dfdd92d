"""What the running app knows about itself, for any thread to read, in memory that never grows."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2

from apps.camera.baseline import Baseline
from apps.camera.capture import Capture
from apps.camera.result import Result
from apps.camera.sinks import SinkWorker
from apps.camera.stats import CameraStats, Health, SourceStats
from edge.measure.distribution import Distribution

__all__ = ["Facts", "LiveState"]

_SERIES = 600
_EVERY_S = 1.0
# A camera that gives a frame in two seconds is slow, not away.
_PATIENCE_S = 3.0
_STALL_S = 15.0
_RECENT = 60


@dataclass
class _Figures:
    """Figures of one source, or of all together."""

    age: Distribution = field(default_factory=Distribution)
    stages: dict[str, Distribution] = field(default_factory=dict)
    first: float | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def add(self, result: Result, ready: float) -> None:
        self.first = ready if self.first is None else self.first
        self.recent.append(ready)
        self.age.add(result.age_ms)
        for name, spent_ms in result.stages_ms.items():
            self.stages.setdefault(name, Distribution()).add(spent_ms)

    def fps(self) -> float:
        """Return frames a second since the first one."""
        if self.first is None or self.age.count < 2:
            return 0.0
        return (self.age.count - 1) / max(self.recent[-1] - self.first, 1e-9)

    def fps_now(self, now: float) -> float:
        """Return frames a second of the last second or more; it falls when nothing comes."""
        times = list(self.recent)
        if len(times) < 2:
            return 0.0
        late = now - times[-1] if now - times[-1] > _EVERY_S else 0.0
        return (len(times) - 1) / max(times[-1] - times[0] + late, 1e-9)


@dataclass(frozen=True)
class Facts:
    """What runs: the artifact, its precision and labels, and the backend."""

    artifact: str = ""
    precision: str = ""
    labels: tuple[str, ...] = ()
    backend: str = ""


class LiveState:
    """The running app, written by the loop and read by pages from any thread.

    Made by `apps.camera.app.camera`, which gives it to each of `beside`.

    Args:
        facts: what runs.
        classes: of the detector.
        captures: of the sources, in their order.
        workers: of the sinks.
        baseline: if one runs.
        track_counts: gives the number of tracks so far by class name; None: no tracking.
    """

    def __init__(
        self,
        facts: Facts,
        classes: tuple[str, ...],
        captures: Sequence[Capture],
        workers: Sequence[SinkWorker] = (),
        baseline: Baseline | None = None,
        track_counts: Callable[[], dict[str, int]] | None = None,
    ) -> None:
        self.classes = classes
        self._facts, self._captures, self._workers = facts, captures, workers
        self._baseline, self._track_counts = baseline, track_counts
        self._changed = threading.Condition()
        self._all = _Figures()
        self._each = [_Figures() for _ in captures]
        self._newest: list[Result | None] = [None] * len(captures)
        self._sequence = [0] * len(captures)
        self._seen: Counter[int] = Counter()
        self._series: deque[dict[str, Any]] = deque(maxlen=_SERIES)
        self._second = _Second()
        self._start = self._beat = time.monotonic()
        self._jpegs = _Jpegs()

    @property
    def source_count(self) -> int:
        """How many sources there are."""
        return len(self._captures)

    def publish(self, result: Result) -> None:
        """Take the result of a frame; called by the loop, and takes microseconds."""
        ready = time.monotonic()
        with self._changed:
            self._all.add(result, ready)
            self._each[result.source].add(result, ready)
            self._seen.update(result.detections.class_id.tolist())
            self._newest[result.source] = result
            self._sequence[result.source] += 1
            if (sample := self._second.add(result, ready)) is not None:
                self._series.append(sample)
            self._changed.notify_all()

    def beat(self) -> None:
        """Say that the loop works; called by it in every round, frames or not."""
        self._beat = time.monotonic()
        if self._second.idle(self._beat):
            with self._changed:
                self._series.append(self._second.take(self._beat))

    def wait(self, source: int = 0, after: int = 0, timeout_s: float = 1.0) -> int:
        """Wait for a frame of a source whose number is greater than `after`, and return its number.

        Numbers count up from 1; after `timeout_s` the old number is returned.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._sequence[source] > after, timeout_s)
            return self._sequence[source]

    def jpeg(
        self, source: int = 0, quality: int = 80, max_side: int | None = None
    ) -> tuple[int, bytes] | None:
        """Return the newest annotated frame of a source, number and JPEG; None before the first.

        It is encoded when asked for, once for all who ask; `max_side` limits the longer side.
        """
        with self._changed:
            number, result = self._sequence[source], self._newest[source]
        if result is None:
            return None
        return number, self._jpegs.get(source, number, result, quality, max_side)

    def series(self, after: float = 0.0) -> list[dict[str, Any]]:
        """Return an entry for each second of the last ten minutes whose `t` is above `after`.

        Each has `t` (seconds since the start), `fps`, `age_ms`, `age_max_ms` and `stages_ms`. Where
        no frame comes for more than three seconds, `fps` is 0 and the ages are None.
        """
        with self._changed:
            return [sample for sample in self._series if sample["t"] > after]

    def health(self) -> Health:
        """Return whether the app works, and what is wrong."""
        now = time.monotonic()
        lost = [
            f"{each.source.name}: {each.state}, {each.error.removeprefix(f'{each.source.name}: ')}"
            for each in self._captures
            if each.state == "lost"
        ]
        stuck = [f"{each.source.name}: no frame" for each in self._captures if _stalled(each, now)]
        if now - self._beat > _STALL_S:
            stuck.append(f"the detector has been standing still for {now - self._beat:.0f} s")
        failed = [f"{each.sink.name}: {each.error}" for each in self._workers if each.error]
        reasons = [*stuck, *lost, *failed]
        return Health(not reasons, not stuck, tuple(reasons))

    def snapshot(self) -> CameraStats:
        """Return all figures."""
        now, facts = time.monotonic(), self._facts
        with self._changed:
            frames, ages = self._all.age.count, self._all.age.summary()
            fps, fps_now = self._all.fps(), self._all.fps_now(now)
            stages, share = _medians(self._all.stages), self._engine_share()
            detections = {self.classes[k]: n for k, n in self._seen.most_common()}
            sources = tuple(self._source(index, now) for index in range(len(self._captures)))
        return CameraStats(
            artifact=facts.artifact,
            precision=facts.precision,
            labels=facts.labels,
            backend=facts.backend,
            frames=frames,
            fps=fps,
            fps_now=fps_now,
            frame_age_ms=ages,
            stages_ms=stages,
            engine_share=share,
            detections=detections,
            dropped=sum(one.dropped for one in sources),
            reconnects=sum(one.reconnects for one in sources),
            seconds=now - self._start,
            sources=sources,
            sinks=tuple(worker.stats() for worker in self._workers),
            tracks=None if self._track_counts is None else self._track_counts(),
            baseline=None if self._baseline is None else self._baseline.stats(),
            health=self.health(),
        )

    def _source(self, index: int, now: float) -> SourceStats:
        capture, figures = self._captures[index], self._each[index]
        source = capture.source
        return SourceStats(
            name=source.name,
            state=capture.state,
            live=source.live,
            hw=capture.hw,
            nominal_fps=source.fps,
            captured=capture.frames,
            dropped=capture.dropped,
            damaged=source.damaged,
            reconnects=capture.reconnects,
            error=capture.error,
            note=source.note,
            frames=figures.age.count,
            fps=figures.fps(),
            fps_now=figures.fps_now(now),
            frame_age_ms=figures.age.summary(),
        )

    def _engine_share(self) -> float | None:
        """Return the share of the time that the engine ran: what the app keeps of its FPS."""
        figures = self._all
        engine = figures.stages.get("engine")
        if engine is None or figures.first is None or engine.count < 2:
            return None
        spent = 0.0 if self._baseline is None else self._baseline.spent_s
        passed = figures.recent[-1] - figures.first - spent
        return engine.mean * (engine.count - 1) / 1e3 / max(passed, 1e-9)


def _medians(stages: dict[str, Distribution]) -> dict[str, float]:
    return {name: each.percentiles((50,))[0] for name, each in stages.items()}


def _stalled(capture: Capture, now: float) -> bool:
    """Return whether a driver hangs in a read; only a new process helps."""
    slowest = 3 / capture.source.fps if capture.source.fps else 0.0
    live = capture.source.live and capture.state == "live"
    return live and now - capture.last > max(_STALL_S, slowest)


class _Second:
    """One entry of the series while it is collected, by the loop's thread alone."""

    def __init__(self) -> None:
        self._start = self._begin = time.monotonic()
        self._patience = _PATIENCE_S
        self._empty()

    def _empty(self) -> None:
        self._count, self._age, self._oldest = 0, 0.0, 0.0
        self._stages: dict[str, float] = {}

    def idle(self, now: float) -> bool:
        """Return whether it is time to say that no frame comes."""
        return now - self._begin >= self._patience

    def add(self, result: Result, ready: float) -> dict[str, Any] | None:
        self._count += 1
        self._age += result.age_ms
        self._oldest = max(self._oldest, result.age_ms)
        for name, spent_ms in result.stages_ms.items():
            self._stages[name] = self._stages.get(name, 0.0) + spent_ms
        return self.take(ready) if ready - self._begin >= _EVERY_S else None

    def take(self, now: float) -> dict[str, Any]:
        """Return the entry that ends now, and begin the next one."""
        count = self._count
        sample = {
            "t": round(now - self._start, 3),
            "fps": count / max(now - self._begin, 1e-9),
            "age_ms": self._age / count if count else None,
            "age_max_ms": self._oldest if count else None,
            "stages_ms": {name: spent / count for name, spent in self._stages.items()},
        }
        self._patience = _PATIENCE_S if count else _EVERY_S
        self._begin = now
        self._empty()
        return sample


class _Jpegs:
    """The newest JPEG of each kind that was asked for; one is encoded at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, int, int | None], tuple[int, bytes]] = {}

    def get(
        self, source: int, number: int, result: Result, quality: int, max_side: int | None
    ) -> bytes:
        key = (source, quality, max_side)
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept[0] < number:
                if len(self._kept) > 16:
                    self._kept.clear()
                kept = (number, _encode(result, quality, max_side))
                self._kept[key] = kept
            return kept[1]


def _encode(result: Result, quality: int, max_side: int | None) -> bytes:
    image = result.picture()
    scale = 1.0 if max_side is None else min(1.0, max_side / max(image.shape[:2]))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()
