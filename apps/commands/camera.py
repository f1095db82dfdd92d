"""`edge camera` on the command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from apps.camera.options import CameraOptions, Outputs
from apps.commands.options import Target, add_options, read_options, target
from apps.commands.terminal import show
from apps.dashboard.guard import Address, check_token, parse_address, token_of_file
from edge.errors import ArtifactError
from edge.files import write_json
from edge.options import described
from edge.reporting import say
from edge.video.address import public_name
from edge.video.frame import SourceOptions

if TYPE_CHECKING:
    from apps.camera.stats import CameraStats

__all__ = ["arguments", "print_camera", "print_cameras", "run"]

# What is typed in the place of the model where --source was forgotten.
_SOURCE = re.compile(
    r"\d+|/dev/.*|gst:.*|\w+://.*|.*\.(mp4|m4v|mov|avi|mkv|webm|jpe?g|png|bmp)", re.IGNORECASE
)

_OF_SOURCES = tuple(field.name for field in fields(SourceOptions))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of sources, detector, outputs and dashboard."""
    parser.add_argument(
        "artifact",
        nargs="?",
        type=_artifact,
        metavar="ARTIFACT",
        help=".onnx or .engine of edge (default: a built-in detector, which is named)",
    )
    sources = parser.add_argument_group("sources")
    sources.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="S",
        help="0, /dev/video0, csi://0, rtsp://, http://, a video, an image, a folder, gst:PIPELINE "
        "or scenes://?seed=1&night=0.3; repeat it for several; {env:NAME} and {file:PATH} stand "
        "for a password kept there (default: the first camera, else the built-in world)",
    )
    sources.add_argument(
        "--list", action="store_true", help="show the cameras of this machine and end"
    )
    add_options(sources, SourceOptions)
    add_options(parser.add_argument_group("detection"), CameraOptions, leave_out=_OF_SOURCES)
    outputs = parser.add_argument_group("outputs")
    _output_arguments(outputs)
    outputs.add_argument(
        "--stats",
        type=target(),
        metavar="F",
        help="write the figures to this file as JSON when the app ends (-: standard output)",
    )
    _dashboard_arguments(parser.add_argument_group("dashboard"))


def _output_arguments(parser: argparse._ArgumentGroup) -> None:
    texts = described(Outputs)
    screen = parser.add_mutually_exclusive_group()
    screen.add_argument("--headless", action="store_true", help="open no window")
    screen.add_argument(
        "--window", action="store_true", help="open a window, and fail where that is impossible"
    )
    parser.add_argument("--record", type=_video, metavar="F.mp4", help=texts["record"])
    parser.add_argument("--events", type=target(), metavar="F", help=texts["events"])
    parser.add_argument("--pictures", type=Target, metavar="DIR", help=texts["pictures"])
    add_options(parser, Outputs)


def _dashboard_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--serve",
        type=_address,
        metavar="HOST:PORT",
        help="serve a dashboard for browsers, /metrics and /healthz there, such as 127.0.0.1:8080",
    )
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--token",
        type=_token,
        metavar="T",
        help="token that visitors of the dashboard need; other users of this machine see command "
        "lines, so prefer the variable EDGE_TOKEN or --token-file (default: a random one on any "
        "address but the loopback one)",
    )
    token.add_argument(
        "--token-file", type=_token_file, metavar="F", help="read that token from this file"
    )


def run(
    args: argparse.Namespace,
    beside: Sequence[Callable[..., AbstractContextManager[object]]] = (),
) -> int:
    """Run what the flags ask for, and return the exit status."""
    from apps.camera.app import camera
    from apps.dashboard.dashboard import dashboard

    if args.list:
        print_cameras()
        return 0
    window = True if args.window else False if args.headless else None
    outputs = replace(read_options(args, Outputs), window=window)
    options = read_options(args, CameraOptions)
    with ExitStack() as stack:
        if args.serve is not None:
            token = args.token or args.token_file or _token_of_environment()
            # The address is taken first: whoever waits for a model wants to know at once.
            serve = dashboard(args.serve, token)
            beside = [*beside, stack.enter_context(serve)]
        result = camera(args.artifact, args.source, options, outputs, beside=beside)
    write_json(result, args.stats)
    if "-" not in (args.events, args.stats):
        print_camera(result)
    return 0


def _artifact(text: str) -> str:
    if _SOURCE.fullmatch(text):
        name = public_name(text)
        raise argparse.ArgumentTypeError(f"{name} is a source, not a model: --source {name}")
    return text


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


def _token_file(text: str) -> str:
    try:
        return token_of_file(Path(text))
    except (ArtifactError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _token_of_environment() -> str | None:
    """Return the token in EDGE_TOKEN.

    Raises:
        ArtifactError: it is too short, or cannot stand in an address.
    """
    found = os.environ.get("EDGE_TOKEN")
    try:
        return check_token(found) if found else None
    except ValueError as error:
        raise ArtifactError(f"EDGE_TOKEN: {error}") from error


def _video(text: str) -> str:
    if not text.lower().endswith(".mp4"):
        raise argparse.ArgumentTypeError(f"{text}: a recording is an .mp4 file")
    return target()(text)


def print_camera(result: CameraStats) -> None:
    """Print a row for each source, and what the baseline says."""
    columns = ("source", "frames", "FPS", "age p50 ms", "age p99 ms", "dropped", "reconnects")
    rows = [
        (
            one.name,
            str(one.frames),
            f"{one.fps:.1f}",
            f"{one.frame_age_ms['p50']:.1f}",
            f"{one.frame_age_ms['p99']:.1f}",
            str(one.dropped),
            str(one.reconnects),
        )
        for one in result.sources
    ]
    facts = [Path(result.artifact).name, *result.labels, result.backend]
    show(", ".join(facts), columns, rows)
    stages = ", ".join(f"{name} {spent:.2f}" for name, spent in result.stages_ms.items())
    say(f"{result.fps:.1f} FPS in all; median milliseconds: {stages}")
    if result.baseline is not None and result.baseline.frames:
        say(str(result.baseline))
    if result.tracks is not None:
        say("tracks: " + (", ".join(f"{n} {k}" for k, n in result.tracks.items()) or "none"))
    for sink in result.sinks:
        if sink.error or sink.dropped:
            say(f"{sink.name}: {sink.dropped} results dropped; {sink.error or 'too slow'}")


def print_cameras() -> None:
    """Print the cameras of this machine."""
    from edge.video.devices import list_cameras

    rows = [(one.source, one.kind, one.name) for one in list_cameras()]
    show("cameras", ("--source", "kind", "name"), rows)
    if not rows:
        say("no camera is here; --source also takes files, streams, pipelines and scenes://")
