"""What was detected in one frame, as sinks and pages receive it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.video.draw import draw
from edge.video.frame import Frame, Image

__all__ = ["Result"]


@dataclass
class _Drawing:
    lock: threading.Lock = field(default_factory=threading.Lock)
    image: Image | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """The detections of one frame. Never changed once made, so that every thread may read it.

    Attributes:
        source: index of the source in the order of the command line.
        name: of the source.
        frame: the picture; empty (0, 0, 3) after `bare`.
        detections: in pixels of the frame, best first.
        classes: of the model.
        track_id: (N,) int64 beside the detections, 0 where there is no track; None: no tracking.
        age_ms: from capture until the detections were there.
        stages_ms: of the detector.
    """

    source: int
    name: str
    frame: Frame
    detections: Detections
    classes: tuple[str, ...]
    track_id: NDArray[np.int64] | None
    age_ms: float
    stages_ms: dict[str, float]
    _drawing: _Drawing = field(default_factory=_Drawing, repr=False)

    def picture(self) -> Image:
        """Return the frame with its boxes, read-only; it is drawn once, whoever asks."""
        with self._drawing.lock:
            if self._drawing.image is None:
                tracks = () if self.track_id is None else self.track_id.tolist()
                notes = [f"#{track}" if track else "" for track in tracks]
                image = draw(self.frame.image, self.detections, self.classes, notes)
                image.flags.writeable = False
                self._drawing.image = image
            return self._drawing.image

    def bare(self) -> Result:
        """Return the result without its picture, for sinks that keep only the numbers."""
        nothing = np.zeros((0, 0, 3), np.uint8)
        return replace(self, frame=replace(self.frame, image=nothing), _drawing=_Drawing())

    def to_json(self) -> dict[str, Any]:
        """Return one line of the events file; `docs/camera.md` has the schema."""
        found = self.detections.to_json(self.classes)
        if self.track_id is not None:
            for one, track in zip(found, self.track_id.tolist(), strict=True):
                one["track"] = track or None
        wall = time.time() - (time.monotonic() - self.frame.captured)
        return {
            "time": datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds"),
            "source": self.name,
            "frame": self.frame.index,
            "age_ms": round(self.age_ms, 2),
            "detections": found,
        }
