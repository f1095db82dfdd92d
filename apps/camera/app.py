"""The camera app: `edge camera`. Needs NumPy, OpenCV and what runs the artifact."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from apps.camera.baseline import Baseline
from apps.camera.capture import Capture, Slots
from apps.camera.live import Facts, LiveState
from apps.camera.loop import Session, detect_frames, track_counts
from apps.camera.options import CameraOptions, Outputs
from apps.camera.sinks import Sink, SinkWorker, close_all, start_sinks
from apps.camera.stats import CameraStats
from apps.camera.watchdog import notify
from edge import assets
from edge.edgez.graph import cached_package_onnx
from edge.errors import ArtifactError
from edge.files import refuse_input
from edge.measure.host import fingerprint
from edge.reporting import say
from edge.runtime.detector import Detector
from edge.video.frame import Source, SourceOptions
from edge.video.signals import until_signal
from edge.video.sources import default_source, make_source
from edge.video.tracking import Tracker

__all__ = ["built_in", "camera"]

# What runs where no artifact is named, the first that this installation has: trained on photos for
# cameras and files, trained on the built-in world for that.
_FOR_PHOTOS: tuple[str, ...] = ("squeezedet-photo.edgez",)
_FOR_SCENES: tuple[str, ...] = ("tiny-yolo-scenes.onnx",)
# Each lane has the network's intermediate results in memory.
_MOST_LANES = 8
_REPORT_S, _REPORT_TERMINAL_S = 60.0, 5.0
# A capture that hangs is left behind.
_CAPTURES_END_S = 0.5


def camera(
    artifact: str | Path | None = None,
    sources: Sequence[str | Source] = (),
    options: CameraOptions | None = None,
    outputs: Outputs | None = None,
    *,
    sinks: Sequence[Sink] = (),
    beside: Sequence[Callable[[LiveState], AbstractContextManager[object]]] = (),
) -> CameraStats:
    """Detect in what cameras see, until the sources end, a limit, SIGINT, SIGTERM or SIGHUP.

    After a signal it returns within 2 seconds, whatever a source or a sink does; a second signal
    ends the process at once.

    Args:
        artifact: `.onnx` or `.engine` of edge; None takes `built_in`.
        sources: as `make_source` takes them, or sources themselves; none takes the first camera
            that is here, else the built-in world. Several take turns on the one detector.
        options: what to detect, and for how long.
        outputs: what to do with the results.
        sinks: the caller's own, which take the results too.
        beside: each is called with the running state and entered before the first frame, and left
            after the last one: a dashboard.

    Raises:
        CameraError: a source or the window cannot be opened at the start.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`; the baseline and the
            detector share no class.
    """
    options, outputs = options or CameraOptions(), outputs or Outputs()
    _check_outputs(outputs)
    _quiet()
    stop = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(until_signal(stop))
        chosen = _sources(sources, options.source)
        path = _artifact(artifact, chosen)
        lanes = _lanes(path, chosen, options.threads) if options.baseline is None else 1
        if lanes > 1:
            options = replace(options, threads=1)
        detector = stack.enter_context(_detector(path, chosen, options))
        beyond = None
        if options.baseline is not None:
            full = Path(options.baseline)
            second = stack.enter_context(_detector(full, (), options))
            beyond = Baseline(full, second, detector, options.baseline_share)
        session = _session(
            stack, path, detector, lanes, chosen, outputs, sinks, stop, beyond, options.track
        )
        for enter in (_reports, *beside):
            stack.enter_context(enter(session.live))
        notify("READY=1")
        detect_frames(session, stop, options.seconds, options.frames)
        notify("STOPPING=1")
        result = replace(session.live.snapshot(), host=fingerprint())
        _close(session.captures, session.workers, stop)
        return replace(result, sinks=tuple(worker.stats() for worker in session.workers))


def built_in(photos: bool = False) -> Path:
    """Return the detector that runs where none is named.

    Args:
        photos: take one that was trained on photos, if there is one, for pictures of the real
            world.

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


def _check_outputs(outputs: Outputs) -> None:
    """Refuse now what could not be written after a night's run."""
    for target in (outputs.record, outputs.events):
        if target is not None:
            refuse_input(target)


def _quiet() -> None:
    """Silence OpenCV and FFmpeg: our errors say in one line what is wrong."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def _sources(sources: Sequence[str | Source], options: SourceOptions) -> list[Source]:
    if not sources:
        word = default_source()
        say(f"no --source: {word}" + (" (no camera is here)" if "://?" in word else ""))
        sources = [word]
    return [make_source(each, options) if isinstance(each, str) else each for each in sources]


def _lanes(path: Path, sources: Sequence[Source], threads: int | None) -> int:
    """Return how many frames are in the engine at once, each on a core; see `apps.camera.loop`."""
    if path.suffix != ".onnx" or any(source.live for source in sources):
        return 1
    return min(threads or os.cpu_count() or 1, _MOST_LANES)


def _detector(path: Path, sources: Sequence[Source], options: CameraOptions) -> Detector:
    detector = Detector.open(
        path,
        score=options.score,
        iou=options.iou,
        threads=options.threads,
        exact=options.exact,
    )
    # The first run of a session is slow; no frame should wait for it.
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
    sinks: Sequence[Sink],
    stop: threading.Event,
    baseline: Baseline | None,
    track: bool,
) -> Session:
    """Open the sources and start the sinks; `stack` closes both."""
    slots, workers = Slots(len(sources)), list[SinkWorker]()
    captures = [Capture(index, each, slots, say) for index, each in enumerate(sources)]
    stack.callback(_close, captures, workers, stop)
    for capture in captures:
        capture.start()
    for capture in captures:
        capture.wait(stop)
    workers += start_sinks(outputs, sinks, sources, say, stop)
    trackers = [Tracker() for _ in sources if track]
    manifest, classes = detector.manifest, detector.spec.classes
    backend = detector.backend.name + (f", {lanes} frames at once" if lanes > 1 else "")
    facts = Facts(str(path), manifest.precision, manifest.labels, backend)
    counts = (lambda: track_counts(trackers, classes)) if track else None
    live = LiveState(facts, classes, captures, workers, baseline, counts)
    return Session(detector, slots, captures, workers, trackers, baseline, live, lanes)


def _close(
    captures: Sequence[Capture], workers: Sequence[SinkWorker], stop: threading.Event
) -> None:
    """Close everything at the same time; what hangs is left behind, and sooner after a signal."""
    closers = [
        threading.Thread(target=capture.close, name="closing", daemon=True) for capture in captures
    ]
    for closer in closers:
        closer.start()
    end = time.monotonic() + _CAPTURES_END_S
    for closer in closers:
        closer.join(max(0.0, end - time.monotonic()))
    close_all(workers, hurry=stop.is_set())


@contextmanager
def _reports(live: LiveState) -> Iterator[None]:
    """Say a line now and then: often on a terminal, seldom in a journal."""
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


def _line(now: CameraStats) -> str:
    text = (
        f"{now.fps_now:.1f} FPS, age p50 {now.frame_age_ms['p50']:.0f} "
        f"p99 {now.frame_age_ms['p99']:.0f} ms, {now.frames} frames, {now.dropped} dropped"
    )
    if now.baseline is not None and now.baseline.frames:
        text += f"; {now.baseline}"
    return "; ".join([text, *now.health.reasons])
