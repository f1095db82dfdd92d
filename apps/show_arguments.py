"""`edge show` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.shared_options import json_option

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge show`."""
    parser.add_argument(
        "artifact", metavar="ARTIFACT", help=".onnx, .engine, .calib.json or .edgez"
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge show`: always 0; errors are raised."""
    import_module("apps.show").show_artifact(args.artifact, json_path=args.json)
    return 0
