"""The flags of `edge camera` and their way into `apps.camera.app.camera`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from apps.camera.baseline import baseline_line
from apps.commands.options import count, positive, size, target, threads_option
from apps.commands.terminal import show
from apps.dashboard.guard import Address, check_token, parse_address
from edge.reporting import say
from edge.video.address import public_name
from edge.video.frame import MAX_SIDE
from edge.video.sources import list_cameras

__all__ = ["arguments", "print_camera", "print_cameras", "run"]

# What is typed where the model belongs, by who forgets --source.
_SOURCE = re.compile(
    r"\d+|/dev/.*|gst:.*|\w+://.*|.*\.(mp4|m4v|mov|avi|mkv|webm|jpe?g|png|bmp)", re.IGNORECASE
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Sources, detector, sinks and limits."""
    parser.add_argument(
        "artifact",
        nargs="?",
        type=_artifact,
        metavar="ARTIFACT",
        help=".onnx or .engine of edge; left out: a built-in detector, which is named",
    )
    _source_arguments(parser)
    _detector_arguments(parser)
    _sink_arguments(parser)
    _dashboard_arguments(parser)
    parser.add_argument("--seconds", type=positive, metavar="N", help="end after so long")
    parser.add_argument("--frames", type=count, metavar="N", help="end after so many frames")
    parser.add_argument(
        "--stats", type=target(), metavar="F", help="write the figures there as JSON"
    )


def _source_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--source",
        action="append",
        default=[],
        metavar="S",
        help="0, /dev/video0, csi://0, rtsp://, http://, a video, an image, a folder, gst:PIPELINE "
        "or scenes://?seed=1&night=0.3; repeat for several; left out: the first camera, else the "
        "built-in world",
    )
    add("--list", action="store_true", help="show the cameras of this machine and end")
    add("--size", type=_size, metavar="HxW", help="ask the camera for this size")
    add("--fps", type=positive, metavar="N", help="ask the camera for this rate; of a file: pace")
    add("--format", metavar="FOUR", help="pixel format of a V4L2 camera, such as MJPG or YUYV")
    add("--fast", action="store_true", help="files as fast as possible, every frame")


def _detector_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--baseline", metavar="ARTIFACT", help="full-size detector to run beside: speed, agreement")
    add(
        "--baseline-share",
        type=_share,
        default=0.2,
        metavar="S",
        help="of the time for the baseline; 1: on every frame (%(default)s)",
    )
    add("--score", type=_share, metavar="S", help="leave out lower (the artifact's own, or 0.25)")
    add(
        "--iou",
        type=_share,
        metavar="I",
        help="IoU above which two boxes of one class count as one object (0.45, or what an "
        "imported network was made for)",
    )
    threads_option(parser)
    add("--exact-int8", action="store_true", help="Q/DQ graphs as TensorRT computes them")
    add("--track", action="store_true", help="number the objects and count them")


def _sink_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    screen = parser.add_mutually_exclusive_group()
    screen.add_argument("--headless", action="store_true", help="no window")
    screen.add_argument("--window", action="store_true", help="a window, or an error why not")
    add("--record", type=_mp4, metavar="F.mp4", help="annotated video")
    add("--record-seconds", type=positive, metavar="N", help="begin a new file after so long")
    add("--record-mib", type=positive, metavar="N", help="begin a new file at this size")
    add("--record-total-mib", type=positive, metavar="N", help="delete the oldest beyond this")
    add("--events", metavar="F", help="JSON lines of detections, one per frame; - is stdout")
    add("--pictures", metavar="DIR", help="annotated JPEG pictures")
    add("--pictures-every", type=_interval, metavar="N", help="seconds between two (1; of files 0)")


def _dashboard_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--serve",
        type=_address,
        metavar="HOST:PORT",
        help="a dashboard for browsers, /metrics and /healthz there, such as 127.0.0.1:8080",
    )
    add(
        "--token",
        type=_token,
        default=os.environ.get("EDGE_TOKEN") or None,
        metavar="T",
        help="that visitors of the dashboard need; beyond this machine a random one by default "
        "(from EDGE_TOKEN, where that is set: other users of this machine see command lines)",
    )


def run(
    args: argparse.Namespace,
    beside: Sequence[Callable[..., AbstractContextManager[object]]] = (),
) -> int:
    """Run what the flags ask for; the exit status."""
    from apps.camera.app import camera
    from apps.camera.outputs import Outputs
    from apps.dashboard.dashboard import dashboard
    from edge.video.frame import SourceOptions

    if args.list:
        print_cameras()
        return 0
    window = True if args.window else False if args.headless else None
    outputs = Outputs(
        window=window,
        record=args.record,
        record_seconds=args.record_seconds,
        record_mib=args.record_mib,
        record_total_mib=args.record_total_mib,
        events=args.events,
        pictures=args.pictures,
        pictures_every=args.pictures_every,
    )
    with ExitStack() as stack:
        if args.serve is not None:
            # The address is taken first: who has to wait for a model wants to know at once.
            serve = dashboard(args.serve, args.token)
            beside = [*beside, stack.enter_context(serve)]
        result = camera(
            args.artifact,
            args.source,
            options=SourceOptions(args.size, args.fps, args.format, args.fast),
            outputs=outputs,
            baseline=args.baseline,
            baseline_share=args.baseline_share,
            score=args.score,
            iou=args.iou,
            threads=args.threads,
            exact=args.exact_int8,
            track=args.track,
            seconds=args.seconds,
            frames=args.frames,
            stats=args.stats,
            beside=beside,
        )
    if args.events != "-":
        print_camera(result)
    return 0


def _artifact(text: str) -> str:
    if _SOURCE.fullmatch(text):
        name = public_name(text)
        raise argparse.ArgumentTypeError(f"{name} is a source, not a model: --source {name}")
    return text


def _size(text: str) -> tuple[int, int]:
    height, width = size(text)
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r}: a side has 1 to {MAX_SIDE} pixels")
    return height, width


def _interval(text: str) -> float:
    return 0.0 if float(text) == 0 else positive(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to 1")
    return value


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _token(text: str) -> str:
    try:
        return check_token(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _mp4(text: str) -> str:
    if not text.lower().endswith(".mp4"):
        raise argparse.ArgumentTypeError(f"{text}: a recording is an .mp4 file")
    return text


def print_camera(result: dict[str, Any]) -> None:
    """The result as a table on stdout: one row per source, and what the baseline says."""
    columns = ("source", "frames", "FPS", "age p50 ms", "age p99 ms", "dropped", "reconnects")
    rows = [
        (
            one["name"],
            str(one["frames"]),
            f"{one['fps']:.1f}",
            f"{one['frame_age_ms']['p50']:.1f}",
            f"{one['frame_age_ms']['p99']:.1f}",
            str(one["dropped"]),
            str(one["reconnects"]),
        )
        for one in result["sources"]
    ]
    facts = [Path(result["artifact"]).name, *result["labels"], result["backend"]]
    show(", ".join(facts), columns, rows)
    stages = ", ".join(f"{name} {spent:.2f}" for name, spent in result["stages_ms"].items())
    say(f"{result['fps']:.1f} FPS in all; medians in ms: {stages}")
    if result["baseline"] is not None and result["baseline"]["frames"]:
        say(baseline_line(result["baseline"]))
    if result["tracks"] is not None:
        say("tracks: " + (", ".join(f"{n} {k}" for k, n in result["tracks"].items()) or "none"))
    for sink in result["sinks"]:
        if sink["error"] or sink["dropped"]:
            say(f"{sink['name']}: {sink['dropped']} results dropped; {sink['error'] or 'too slow'}")


def print_cameras() -> None:
    """The cameras of this machine as a table on stdout."""
    rows = [(one.source, one.kind, one.name) for one in list_cameras()]
    show("cameras", ("--source", "kind", "name"), rows)
    if not rows:
        say("no camera is here; --source also takes files, streams, pipelines and scenes://")
