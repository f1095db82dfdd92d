"""`edge doctor` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.shared_options import json_option

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge doctor`."""
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge doctor`: always 0; errors are raised."""
    app = import_module("apps.doctor")
    app.print_doctor(app.doctor(json_path=args.json))
    return 0
