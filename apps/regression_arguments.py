"""`edge regress` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from edge.reporting import say

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge regress`."""
    parser.add_argument("--suite", required=True, metavar="F", help="the suite's TOML file")
    parser.add_argument(
        "--update", action="store_true", help="store what is measured as the new results"
    )
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write report.html, report.md, junit.xml, measurements.jsonl",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit status 2 where a gate cannot tell"
    )


def run(args: argparse.Namespace) -> int:
    """`edge regress`: 0 where nothing got worse, 1 where it did, 2 where it cannot be told."""
    app = import_module("apps.regression")
    outcome = app.regress(args.suite, update=args.update, report=args.report)
    app.print_outcome(outcome)
    if args.update:
        diff = import_module("apps.update_diff")
        diff.print_update(outcome.gathered.measurements, outcome.before)
        say(f"wrote {outcome.suite.results}")
        return 0
    if outcome.worse:
        fell = ", ".join(f"{gate.artifact} {gate.name}" for gate in outcome.worse)
        say(f"got worse: {fell}; if it is meant to: edge regress --suite {args.suite} --update")
        return 1
    return 2 if args.strict and outcome.unsure else 0
