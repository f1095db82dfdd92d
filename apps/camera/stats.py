"""The figures of a run, as `--stats` writes them and pages show them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["BaselineStats", "CameraStats", "Health", "SinkStats", "SourceStats"]


@dataclass(frozen=True)
class Health:
    """Whether the app works.

    Attributes:
        ok: all is well.
        alive: the app works, though a camera may be away.
        reasons: what is not well.
    """

    ok: bool
    alive: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class SourceStats:
    """One source.

    Attributes:
        name, state, live, hw: see `Source` and `Capture`; `hw` is of the last frame.
        nominal_fps: what the source says of itself.
        captured: frames read; `dropped` of them were replaced by newer ones.
        damaged: frames that could not be decoded.
        reconnects, error, note: see `Capture` and `Source`.
        frames: frames that the detector saw.
        fps, fps_now: frames a second since the first one, and of the last moment.
        frame_age_ms: `p50`, `p95`, `p99`, `mean`, `max` from capture to detections.
    """

    name: str
    state: str
    live: bool
    hw: tuple[int, int] | None
    nominal_fps: float | None
    captured: int
    dropped: int
    damaged: int
    reconnects: int
    error: str
    note: str
    frames: int
    fps: float
    fps_now: float
    frame_age_ms: dict[str, float]


@dataclass(frozen=True)
class SinkStats:
    """One sink: results written and dropped, and why it fails; empty where it works."""

    name: str
    written: int
    dropped: int
    error: str


@dataclass(frozen=True)
class BaselineStats:
    """The baseline beside the detector, on the frames that both saw.

    Attributes:
        artifact, labels, backend: of the baseline.
        frames: compared.
        share: of the time that it may take.
        fps, fps_edge: frames a second of the baseline and of the detector, by the median frame.
        speedup: the ratio of both; None before the first frame.
        agreement: share of the baseline's boxes that the detector finds; None without boxes.
        boxes: of the baseline.
        iou: overlap above which two boxes agree.
        by_class: `boxes` and `agreement` by class.
        left_out: boxes of classes that the detector does not have.
    """

    artifact: str
    labels: tuple[str, ...]
    backend: str
    frames: int
    share: float
    fps: float
    fps_edge: float
    speedup: float | None
    agreement: float | None
    boxes: int
    iou: float
    by_class: dict[str, dict[str, float]]
    left_out: dict[str, int]

    def __str__(self) -> str:
        found = "no boxes yet"
        if self.agreement is not None:
            found = f"finds {self.agreement:.0%} of {self.boxes} boxes"
        return f"baseline {self.fps:.1f} FPS, {self.speedup or 0:.2f}x as fast, {found}"


@dataclass(frozen=True)
class CameraStats:
    """All figures of a run, or of a running app.

    Attributes:
        artifact, precision, labels, backend: what runs.
        frames: that the detector saw; `fps` and `fps_now` as in `SourceStats`.
        frame_age_ms: `p50`, `p95`, `p99`, `mean`, `max` from capture to detections.
        stages_ms: median milliseconds of each stage.
        engine_share: share of the time that the engine ran; None where nobody can tell.
        detections: boxes by class.
        dropped, reconnects: of all sources together.
        seconds: since the start.
        sources, sinks, baseline, health: see there.
        tracks: objects by class; None without tracking.
        host: the machine, once the run is over; see `edge.measure.host.fingerprint`.
    """

    artifact: str
    precision: str
    labels: tuple[str, ...]
    backend: str
    frames: int
    fps: float
    fps_now: float
    frame_age_ms: dict[str, float]
    stages_ms: dict[str, float]
    engine_share: float | None
    detections: dict[str, int]
    dropped: int
    reconnects: int
    seconds: float
    sources: tuple[SourceStats, ...]
    sinks: tuple[SinkStats, ...]
    tracks: dict[str, int] | None
    baseline: BaselineStats | None
    health: Health
    host: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, without a host that is not known yet."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return found if self.host is not None else {k: v for k, v in found.items() if k != "host"}
