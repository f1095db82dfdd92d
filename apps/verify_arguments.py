"""`edge verify` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.argument_types import count
from apps.shared_options import json_option, threads_option

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge verify`."""
    parser.add_argument("first", metavar="A", help=".onnx, .engine, or a model that torch runs")
    parser.add_argument("second", metavar="B", help="the same; compared with A")
    parser.add_argument(
        "--data", default="scenes", metavar="DIR", help="pictures; left out: built-in scenes"
    )
    parser.add_argument(
        "--images", type=count, default=8, metavar="N", help="pictures to compare on (%(default)s)"
    )
    parser.add_argument(
        "--limit-db",
        type=float,
        metavar="DB",
        help="a tensor below it departs; by default 12 for INT8, 30 for FP16, 80 for FP32",
    )
    parser.add_argument("--names", metavar="F", help="class names of a torch model")
    parser.add_argument("--resize", choices=("letterbox", "stretch"), help="of a torch model")
    threads_option(parser)
    parser.add_argument("--every", action="store_true", help="show every tensor, in order")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge verify`: 0 where the two agree, 1 where B departs."""
    app = import_module("apps.verify")
    result = app.verify(
        args.first,
        args.second,
        args.data,
        images=args.images,
        limit_db=args.limit_db,
        names=args.names,
        resize=args.resize,
        threads=args.threads,
        json_path=args.json,
    )
    app.print_verification(result, args.every)
    return 0 if result["ok"] else 1
