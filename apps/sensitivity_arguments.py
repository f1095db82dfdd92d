"""`edge sensitivity` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.argument_types import count, target
from apps.shared_options import json_option, threads_option

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge sensitivity`."""
    add = parser.add_argument
    add("onnx", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    add("--table", required=True, metavar="F", help="NAME.calib.json of the same model")
    add("--data", required=True, metavar="DIR", help="pictures; with labels mAP is measured too")
    add("--images", type=count, default=50, metavar="N", help="for mAP, at most (%(default)s)")
    add("--no-map", action="store_true", help="noise only, which takes seconds")
    add("--plot", type=target(), metavar="F.svg", help="draw the layers' noise there")
    threads_option(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge sensitivity`."""
    app = import_module("apps.sensitivity")
    result = app.sensitivity(
        args.onnx,
        args.table,
        args.data,
        images=args.images,
        with_map=not args.no_map,
        threads=args.threads,
        plot=args.plot,
        json_path=args.json,
    )
    app.print_sensitivity(result)
    return 0
