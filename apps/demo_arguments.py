"""`edge demo` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.argument_types import count
from apps.shared_options import threads_option

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge demo`."""
    parser.add_argument(
        "-o",
        "--output",
        default="out/demo",
        metavar="DIR",
        help="folder of the files (%(default)s)",
    )
    parser.add_argument(
        "--images", type=count, default=200, metavar="N", help="scenes to evaluate (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, metavar="N", help="of timing each (%(default)s)"
    )
    threads_option(parser, 2)


def run(args: argparse.Namespace) -> int:
    """`edge demo`: always 0; errors are raised."""
    import_module("apps.demo").demo(
        args.output, images=args.images, seconds=args.seconds, threads=args.threads
    )
    return 0
