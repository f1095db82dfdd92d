"""`edge doctor` on the command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from apps.commands.options import json_option
from apps.commands.terminal import listing
from edge.files import write_json

if TYPE_CHECKING:
    from apps.doctor.doctor import Diagnosis

__all__ = ["arguments", "print_doctor", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge doctor`."""
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run `edge doctor`: 0 whatever it finds; errors are raised."""
    from apps.doctor.doctor import doctor

    found = doctor()
    write_json(found, args.json)
    print_doctor(found)
    return 0


def print_doctor(found: Diagnosis) -> None:
    """Print the checks as a table on stdout, under one line that says what this machine can do."""
    rows = [(check.name, check.status, check.found, check.advice) for check in found.checks]
    able = (
        ("runs .onnx", found.can_run_onnx),
        ("builds engines", found.can_build_engines),
        ("runs engines", found.can_run_engines),
    )
    title = ", ".join(f"{what}: {'yes' if yes else 'no'}" for what, yes in able)
    listing(title, ("what", "", "found", "what to do"), rows)
