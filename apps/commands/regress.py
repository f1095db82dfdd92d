"""`edge regress` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from apps.commands.terminal import show
from apps.regress.measurement import Measurement
from apps.regress.run import Outcome, regress
from apps.regress.update_diff import moved
from edge.reporting import say

__all__ = ["arguments", "print_outcome", "print_update", "run"]


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
    outcome = regress(args.suite, update=args.update, report=args.report)
    print_outcome(outcome)
    if args.update:
        print_update(outcome.gathered.measurements, outcome.before)
        say(f"wrote {outcome.suite.results}")
        return 0
    if outcome.worse:
        fell = ", ".join(f"{gate.artifact} {gate.name}" for gate in outcome.worse)
        say(f"got worse: {fell}; if it is meant to: edge regress --suite {args.suite} --update")
        return 1
    return 2 if args.strict and outcome.unsure else 0


_UPDATE_COLUMNS = ("slice", "objects", "stored AP@.5 %", "now", "change, points")


def print_update(now: Mapping[str, Measurement], before: Mapping[str, Measurement]) -> None:
    """A table for each artifact with a stored result, and a line for each that comes or goes."""
    for name, one in now.items():
        if name not in before:
            say(f"{name}: new")
            continue
        rows, still = moved(before[name], one)
        if rows:
            show(f"{name}: what moves; {still} slices do not", _UPDATE_COLUMNS, rows)
        else:
            say(f"{name}: accuracy of all {still} slices is the same")
    for name in before:
        if name not in now:
            say(f"{name}: no longer in the suite, goes")


_COLUMNS = ("mAP@.5 %", "p50 ms", "speed-up", "FPS camera", "age p99 ms", "MB")


def print_outcome(outcome: Outcome) -> None:
    """Figures then and now, a line for each gate, and below it where a loss comes from."""
    rows = [
        _row(name, one, outcome.before.get(name))
        for name, one in outcome.gathered.measurements.items()
    ]
    columns = ("artifact", *_COLUMNS)
    data = outcome.gathered.dataset
    show(f"{len(data)} images of {data.name}; stored -> now", columns, rows)
    for gate in outcome.gates:
        say(f"{gate.verdict.upper():>12}  {gate.artifact}, {gate.name}: {gate.said}")
        for line in gate.where:
            say(f"{'':14}{line}")
    warnings = next(iter(outcome.gathered.measurements.values())).warnings
    for text in warnings:
        say(f"warning: {text}")


def _row(name: str, now: Measurement, before: Measurement | None) -> tuple[str, ...]:
    old: list[float | None] = [None] * len(_COLUMNS) if before is None else _numbers(before)
    return (name, *(_moved(a, b) for a, b in zip(old, _numbers(now), strict=True)))


def _numbers(one: Measurement) -> list[float | None]:
    return [
        one.map50 * 100,
        one.latency_ms["pipeline"]["p50"],
        one.speedup,
        one.fps.get("camera"),
        (one.frame_age_ms or {}).get("p99"),
        one.bytes / 1e6,
    ]


def _moved(before: float | None, now: float | None) -> str:
    new = "-" if now is None else f"{now:.2f}"
    return new if before is None else f"{before:.2f} -> {new}"
