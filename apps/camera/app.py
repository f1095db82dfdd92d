"""The camera app: `edge camera`. Needs numpy, OpenCV and what runs the artifact."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from apps.camera.baseline import Baseline, baseline_line
from apps.camera.capture import Capture
from apps.camera.live import LiveState
from apps.camera.loop import Session, detect_frames, track_counts
from apps.camera.outputs import Outputs, start_sinks
from apps.camera.sinks import SinkWorker
from apps.camera.slots import Slots
from apps.camera.watchdog import notify
from edge import assets
from edge.edgez.graph import cached_package_onnx
from edge.errors import ArtifactError
from edge.files import write_json
from edge.measure.host import fingerprint
from edge.reporting import say
from edge.runtime.detector import Detector
from edge.video.frame import Source, SourceOptions
from edge.video.signals import on_end
from edge.video.sources import default_source, make_source
from edge.video.tracking import Tracker

__all__ = ["built_in", "camera"]

# What runs where none is named, the first that this installation has: trained on photos, for
# cameras and files; trained on the built-in world, for that.
_FOR_PHOTOS: tuple[str, ...] = ("squeezedet-photo.edgez",)
_FOR_SCENES: tuple[str, ...] = ("tiny-yolo-scenes.onnx",)
# Each lane has the network's intermediate results in memory.
_MOST_LANES = 8
_REPORT_S, _REPORT_TERMINAL_S = 60.0, 5.0


def camera(
    artifact: str | Path | None = None,
    sources: Sequence[str | Source] = (),
    *,
    options: SourceOptions | None = None,
    outputs: Outputs | None = None,
    baseline: str | Path | None = None,
    baseline_share: float = 0.2,
    score: float | None = None,
    iou: float | None = None,
    threads: int | None = None,
    exact: bool = False,
    track: bool = False,
    seconds: float | None = None,
    frames: int | None = None,
    stats: str | Path | None = None,
    beside: Sequence[Callable[[LiveState], AbstractContextManager[object]]] = (),
) -> dict[str, Any]:
    """Detect in what cameras see, until the sources end, a limit, SIGINT, SIGTERM or SIGHUP.

    Args:
        artifact: `.onnx` or `.engine` of edge; None: see `built_in`.
        sources: as `make_source` takes them, or sources themselves; none: the first camera that
            is here, else the built-in world. Several take turns on the one detector.
        options: asked of the sources.
        outputs: the sinks.
        baseline: a second artifact, run beside on `baseline_share` (0..1) of the time.
        score, iou, threads, exact: of the detectors.
        track: number the objects.
        seconds, frames: limits; frames of all sources together.
        stats: where to write the result too.
        beside: called with the running state and entered before the first frame, left after the
            last: a dashboard.

    Returns:
        `frames`, `dropped`, `fps`, `frame_age_ms`, `stages_ms`, `reconnects`, `backend` and all
        else of `LiveState.snapshot`, and `host`.

    Raises:
        CameraError: a source or the window cannot be opened at the start.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`; `stats` cannot be
            written; baseline and detector share no class.
    """
    _check(seconds, frames, baseline_share, stats)
    _quiet()
    chosen = _sources(sources, options or SourceOptions())
    path, stop = _artifact(artifact, chosen), threading.Event()
    lanes = _lanes(path, chosen, threads) if baseline is None else 1
    settings: dict[str, Any] = {
        "score": score,
        "iou": iou,
        "threads": threads if lanes == 1 else 1,
        "exact": exact,
    }
    with ExitStack() as stack:
        stack.enter_context(_signals(stop))
        detector = stack.enter_context(_detector(path, chosen, **settings))
        beyond = None
        if baseline is not None:
            second = stack.enter_context(_detector(Path(baseline), (), **settings))
            beyond = Baseline(Path(baseline), second, detector, baseline_share)
        session = _session(
            stack, path, detector, lanes, chosen, outputs or Outputs(), stop, beyond, track
        )
        for enter in (_reports, *beside):
            stack.enter_context(enter(session.live))
        notify("READY=1")
        detect_frames(session, stop, seconds, frames)
        notify("STOPPING=1")
        result = {**session.live.snapshot(), "host": fingerprint()}
        _close(session.captures, session.workers)
        result["sinks"] = [worker.facts() for worker in session.workers]
    if stats is not None:
        write_json(result, Path(stats))
    return result


def built_in(photos: bool = False) -> Path:
    """The detector that runs where none is named.

    Args:
        photos: for pictures of the real world: one that was trained on photos, if there is one.

    Raises:
        ArtifactError: this installation was made without any.
    """
    folder = Path(str(assets.__file__)).parent
    for name in (*_FOR_PHOTOS, *_FOR_SCENES) if photos else _FOR_SCENES:
        path = folder / name
        if path.is_file():
            return cached_package_onnx(path) if path.suffix == ".edgez" else path
    raise ArtifactError(f"{folder}: no detector is built in; name an artifact of export-engine")


def _artifact(named: str | Path | None, sources: Sequence[Source]) -> Path:
    if named is not None:
        return Path(named)
    real = any(not source.name.startswith("scenes://") for source in sources)
    path = built_in(real)
    unfit = " (trained on the built-in world: few real things look like it)"
    say(
        f"no ARTIFACT: {path.name.split('.')[0]}"
        + (unfit if real and path.name in _FOR_SCENES else "")
    )
    return path


def _check(
    seconds: float | None, frames: int | None, share: float, stats: str | Path | None
) -> None:
    if (seconds is not None and seconds <= 0) or (frames is not None and frames < 1):
        raise ValueError(f"seconds {seconds} and frames {frames} must be positive")
    if not 0 < share <= 1:
        raise ValueError(f"baseline_share {share} is not in 0..1")
    # Better now than after a night's run.
    if stats is None:
        return
    if Path(stats).is_dir():
        raise ArtifactError(f"{stats}: is a folder; name a file, such as {Path(stats) / 's.json'}")
    if not os.access(Path(stats).absolute().parent, os.W_OK):
        raise ArtifactError(f"{stats}: its folder is missing or cannot be written")


def _quiet() -> None:
    """Our errors name what is wrong in one line; OpenCV's and FFmpeg's own would only hide it."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def _sources(sources: Sequence[str | Source], options: SourceOptions) -> list[Source]:
    if not sources:
        word = default_source()
        say(f"no --source: {word}" + (" (no camera is here)" if "://?" in word else ""))
        sources = [word]
    return [make_source(each, options) if isinstance(each, str) else each for each in sources]


def _lanes(path: Path, sources: Sequence[Source], threads: int | None) -> int:
    """How many frames are in the engine at once, each on one core: see `apps.camera.overlap`."""
    if path.suffix != ".onnx" or any(source.live for source in sources):
        return 1
    return min(threads or os.cpu_count() or 1, _MOST_LANES)


def _detector(
    path: Path, sources: Sequence[Source], *, score: float | None, iou: float | None, **cpu: Any
) -> Detector:
    detector = Detector.open(path, score=score, iou=iou, **cpu)
    # The first run of a session is slow; no frame shall wait for it.
    detector(np.zeros((*detector.contract.hw, 3), np.uint8))
    labels = detector.manifest.labels
    say(", ".join([path.name, *labels, detector.backend.name, *(each.name for each in sources)]))
    return detector


def _session(
    stack: ExitStack,
    path: Path,
    detector: Detector,
    lanes: int,
    sources: Sequence[Source],
    outputs: Outputs,
    stop: threading.Event,
    baseline: Baseline | None,
    track: bool,
) -> Session:
    """Open the sources and start the sinks; `stack` closes both."""
    slots, workers = Slots(len(sources)), list[SinkWorker]()
    captures = [Capture(index, each, slots, say) for index, each in enumerate(sources)]
    stack.callback(_close, captures, workers)
    for capture in captures:
        capture.open()
    workers += start_sinks(outputs, sources, say, stop)
    trackers = [Tracker() for _ in sources if track]
    manifest, classes = detector.manifest, detector.spec.classes
    facts = {
        "artifact": str(path),
        "precision": manifest.precision,
        "labels": list(manifest.labels),
        "backend": detector.backend.name + (f", {lanes} frames at once" if lanes > 1 else ""),
    }
    counts = (lambda: track_counts(trackers, classes)) if track else None
    live = LiveState(facts, classes, captures, workers, baseline, counts)
    return Session(detector, slots, captures, workers, trackers, baseline, live, lanes)


def _close(captures: Sequence[Capture], workers: Sequence[SinkWorker]) -> None:
    # A stream that has gone holds its reader for seconds: all are waited for at once.
    closers = [threading.Thread(target=capture.close, name="closing") for capture in captures]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    for worker in workers:
        worker.ask_to_close()
    for worker in workers:
        worker.close()


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP ends the loop, a second one everything."""

    def handle() -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    with on_end(handle):
        yield


@contextmanager
def _reports(live: LiveState) -> Iterator[None]:
    """A line on stderr now and then: often on a terminal, seldom in a journal."""
    done = threading.Event()
    every_s = _REPORT_TERMINAL_S if sys.stderr.isatty() else _REPORT_S

    def report() -> None:
        while not done.wait(every_s):
            say(_line(live.snapshot()))

    thread = threading.Thread(target=report, name="reports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(1)


def _line(now: dict[str, Any]) -> str:
    text = (
        f"{now['fps_now']:.1f} FPS, age p50 {now['frame_age_ms']['p50']:.0f} "
        f"p99 {now['frame_age_ms']['p99']:.0f} ms, {now['frames']} frames, "
        f"{now['dropped']} dropped"
    )
    beside = now["baseline"]
    if beside is not None and beside["frames"]:
        text += f"; {baseline_line(beside)}"
    return "; ".join([text, *now["health"]["reasons"]])
