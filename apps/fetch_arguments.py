"""`edge fetch` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge fetch`."""
    parser.add_argument("name", metavar="NAME", help="zoo name, see below")
    parser.add_argument("--folder", metavar="DIR", help="in place of $EDGE_CACHE or ~/.cache/edge")


def run(args: argparse.Namespace) -> int:
    """`edge fetch`: always 0; errors are raised."""
    import_module("apps.fetch").fetch_command(args.name, args.folder)
    return 0
