"""`edge doctor` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from typing import Any

from apps.commands.options import json_option
from apps.commands.terminal import listing

__all__ = ["arguments", "print_doctor", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge doctor`."""
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge doctor`: always 0; errors are raised."""
    from apps.doctor.doctor import doctor

    print_doctor(doctor(json_path=args.json))
    return 0


def print_doctor(result: dict[str, Any]) -> None:
    """The checks as a table on stdout, and in one line what this machine can do."""
    rows = [(c["name"], c["status"], c["found"], c["advice"]) for c in result["checks"]]
    able = [
        f"{what}: {'yes' if result[key] else 'no'}"
        for key, what in (
            ("can_run_onnx", "runs .onnx"),
            ("can_build_engines", "builds engines"),
            ("can_run_engines", "runs engines"),
        )
    ]
    listing(", ".join(able), ("what", "", "found", "what to do"), rows)
