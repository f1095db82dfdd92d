"""Which sinks a run of the camera app has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.camera.sink_files import EventSink, PictureSink
from apps.camera.sink_video import VideoSink
from apps.camera.sink_window import WindowSink, why_no_window
from apps.camera.sinks import Sink, SinkWorker
from edge.video.frame import Source

__all__ = ["Outputs", "start_sinks"]

_USUAL_FPS = 30.0
_PICTURES_KEPT = 1000
_PICTURES_EVERY_S = 1.0


@dataclass(frozen=True)
class Outputs:
    """What to do with the results besides the figures.

    Attributes:
        window: show the frames; None: where that is possible.
        record: `NAME.mp4`; of several sources `NAME-s0.mp4` and so on.
        record_seconds, record_mib, record_total_mib: limits of a file, and of all of all sources,
            see `VideoSink`.
        events: JSON lines, one per frame; `-` is stdout.
        pictures: folder of annotated JPEG files.
        pictures_every: seconds between two of a source; None: 1, and of files every frame.
        sinks: the caller's own.
    """

    window: bool | None = False
    record: str | Path | None = None
    record_seconds: float | None = None
    record_mib: float | None = None
    record_total_mib: float | None = None
    events: str | Path | None = None
    pictures: str | Path | None = None
    pictures_every: float | None = None
    sinks: Sequence[Sink] = ()


def start_sinks(
    outputs: Outputs, sources: Sequence[Source], say: Callable[[str], None], stop: threading.Event
) -> list[SinkWorker]:
    """A running worker for each sink; `sources` are open, so that their rates are known.

    Raises:
        CameraError: a window is asked for and cannot be.
    """
    # Files that are read as fast as possible lose no frame; a camera waits for nobody.
    wait = not any(source.live for source in sources)
    wanted: list[tuple[Sink, int | None]] = [(sink, None) for sink in _shared(outputs, wait, stop)]
    if outputs.record is not None:
        wanted += [
            (_video(outputs, Path(outputs.record), index, sources), index)
            for index in range(len(sources))
        ]
    return [SinkWorker(sink, say, wait=wait and not sink.newest, only=o) for sink, o in wanted]


def _shared(outputs: Outputs, wait: bool, stop: threading.Event) -> list[Sink]:
    sinks: list[Sink] = list(outputs.sinks)
    if outputs.window or (outputs.window is None and not why_no_window()):
        sinks.append(WindowSink(stop))
    if outputs.events is not None:
        sinks.append(EventSink(outputs.events, stop))
    if outputs.pictures is not None:
        every_s = 0.0 if wait else _PICTURES_EVERY_S
        if outputs.pictures_every is not None:
            every_s = outputs.pictures_every
        sinks.append(PictureSink(outputs.pictures, every_s, None if wait else _PICTURES_KEPT))
    return sinks


def _video(outputs: Outputs, path: Path, index: int, sources: Sequence[Source]) -> VideoSink:
    if len(sources) > 1:
        path = path.with_name(f"{path.stem}-s{index}{path.suffix}")
    source, total = sources[index], outputs.record_total_mib
    return VideoSink(
        path,
        rate=None if source.live else source.fps or _USUAL_FPS,
        segment_s=outputs.record_seconds,
        segment_mib=outputs.record_mib,
        total_mib=None if total is None else total / len(sources),
    )
