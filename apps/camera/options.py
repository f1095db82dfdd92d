"""What `edge camera` can be asked for; the flags of the command are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge.options import count, option, positive, share
from edge.video.frame import SourceOptions

__all__ = ["CameraOptions", "Outputs"]


def _part(text: str) -> float:
    value = share(text)
    if value == 0:
        raise ValueError(f"{text} is not above 0")
    return value


def _interval(text: str) -> float:
    return 0.0 if text.strip("0.") == "" and "0" in text else positive(text)


@dataclass(frozen=True)
class CameraOptions:
    """What to detect, in what, and for how long.

    Attributes:
        source: what is asked of the sources
        baseline: detector to run beside the first one, to measure speed and agreement
        baseline_share: share of the time that the baseline may take; 1 runs it on every frame
        score: detections below this score are left out; by default what was fitted to the
            artifact, or 0.25
        iou: IoU above which two boxes of one class count as one object; by default what the network
            was made for, or 0.45
        threads: CPU threads of onnxruntime; by default one for each core
        exact: compute INT8 graphs on the CPU as TensorRT does, in place of onnxruntime's kernels
        track: number the objects, and count them by class
        seconds: end after this time
        frames: end after this many frames of all sources together
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    baseline: str | Path | None = option(None, metavar="ARTIFACT")
    baseline_share: float = option(0.2, metavar="S", check=_part)
    score: float | None = option(None, metavar="S", check=_part)
    iou: float | None = option(None, metavar="I", check=_part)
    threads: int | None = option(None, metavar="N", check=count)
    exact: bool = option(False, flag="--exact-int8")
    track: bool = False
    seconds: float | None = option(None, metavar="N", check=positive)
    frames: int | None = option(None, metavar="N", check=count)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a limit is not positive, or a share not between 0 and 1.
        """
        for name in ("seconds", "frames", "threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be positive")
        for name in ("baseline_share", "score", "iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be between 0 and 1")
        if not self.baseline_share:
            raise ValueError("baseline_share is 0; it must be above 0")


@dataclass(frozen=True)
class Outputs:
    """What to do with the results besides the figures.

    Attributes:
        window: show the frames in a window; None: where that is possible
        record: write an annotated video, F.mp4; of several sources F-s0.mp4 and so on
        record_seconds: begin a new video file after this time
        record_mib: begin a new video file at this size, in MiB
        record_total_mib: delete the oldest video files beyond this size of all together, in MiB
        events: append one JSON line of detections a frame to this file (-: standard output)
        pictures: write annotated JPEG pictures to this folder
        pictures_every: seconds between two pictures of a source (default: 1; of files 0)
    """

    window: bool | None = option(False, hidden=True)
    record: str | Path | None = option(None, hidden=True)
    record_seconds: float | None = option(None, metavar="N", check=positive)
    record_mib: float | None = option(None, metavar="N", check=positive)
    record_total_mib: float | None = option(None, metavar="N", check=positive)
    events: str | Path | None = option(None, hidden=True)
    pictures: str | Path | None = option(None, hidden=True)
    pictures_every: float | None = option(None, metavar="N", check=_interval)
