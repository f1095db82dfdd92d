"""`edge detect` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.shared_options import exact_option, json_option, threads_option, threshold_options

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge detect`."""
    parser.add_argument("artifact", metavar="ARTIFACT", help=".onnx or .engine of edge")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures or folders of them")
    threshold_options(parser, None)
    parser.add_argument(
        "--multi-label", action="store_true", help="every class of a box, not only its best"
    )
    parser.add_argument("--draw", metavar="DIR", help="write the pictures there with their boxes")
    threads_option(parser)
    exact_option(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge detect`: always 0; errors are raised."""
    import_module("apps.detect").detect(
        args.artifact,
        args.images,
        score=args.score,
        iou=args.iou,
        multi_label=args.multi_label,
        json_path=args.json,
        draw_dir=args.draw,
        threads=args.threads,
        exact=not args.fast_int8,
    )
    return 0
