"""`edge bench` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from apps.shared_options import json_option
from edge.artifact import write_atomic
from edge.errors import DataError

__all__ = ["arguments", "run"]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word.strip()]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge bench`."""
    add = parser.add_argument
    add("artifacts", nargs="+", metavar="ARTIFACT", help=".onnx or .engine of edge")
    add("--baseline", metavar="ARTIFACT", help="what speed-ups are relative to")
    add("--source", metavar="S", help="video or folder; left out: scenes held in memory")
    add("--seconds", type=float, default=5.0, metavar="N", help="of each artifact (%(default)s)")
    add("--rounds", type=int, default=10, metavar="N", help="turns of each (%(default)s)")
    add("--score", type=float, default=0.25, metavar="S", help="leave out lower (%(default)s)")
    add("--iou", type=float, default=0.45, metavar="I", help="of suppression (%(default)s)")
    add("--threads", type=int, default=2, metavar="N", help="CPU threads (%(default)s)")
    add("--cores", type=_numbers, default=[], metavar="0,1", help="stay on these CPU cores")
    add("--layers", action="store_true", help="show which layers take the time")
    add("--compare", metavar="F", help="--json of an earlier run to hold this one against")
    add(
        "--rebuilds",
        type=int,
        default=0,
        metavar="N",
        help="build the engine of ARTIFACT (.onnx) N times: spread of its latency and mAP",
    )
    add("--data", metavar="DIR", help="labelled images for the mAP of --rebuilds")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge bench`; 1 where `--compare` found something worse."""
    if args.seconds <= 0 or args.rounds < 2 or args.threads < 1:
        raise DataError("--seconds and --threads take positive numbers, --rounds at least 2")
    options: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("source", "seconds", "rounds", "score", "iou", "threads", "cores")
    }
    if args.rebuilds:
        return _rebuild(args, options)
    app = import_module("apps.benchmark")
    result = app.bench(
        args.artifacts,
        args.baseline,
        compare=args.compare,
        layers=args.layers,
        json_path=args.json,
        **options,
    )
    app.print_bench(result)
    return int(any(line["verdict"] == "worse" for line in result.get("comparison", ())))


def _rebuild(args: argparse.Namespace, options: dict[str, Any]) -> int:
    if len(args.artifacts) > 1 or args.baseline or args.compare or args.layers:
        raise DataError("--rebuilds takes one .onnx, without --baseline, --compare and --layers")
    app = import_module("apps.rebuilds")
    result = app.rebuild(args.artifacts[0], args.rebuilds, data=args.data, **options)
    app.print_rebuilds(result)
    if args.json:
        write_atomic(Path(args.json), json.dumps(result, indent=1).encode())
    return 0
