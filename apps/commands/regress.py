"""`edge regress` on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from apps.commands.terminal import show
from edge.reporting import say

if TYPE_CHECKING:
    from apps.regress.measurement import Measurement
    from apps.regress.run import Outcome

__all__ = ["arguments", "moved", "print_outcome", "print_update", "run"]

# What two decimals do not show has not moved.
_SEEN = 0.00005
SliceRow = tuple[str, str, str, str, str]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge regress`."""
    parser.add_argument("--suite", required=True, metavar="F", help="TOML file of the suite")
    parser.add_argument(
        "--update",
        action="store_true",
        help="store what is measured as the new results, whatever the verdicts",
    )
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write report.html, report.md, junit.xml and measurements.jsonl to this folder",
    )
    parser.add_argument(
        "--strict", action="store_true", help="end with exit status 2 where a gate cannot tell"
    )


def run(args: argparse.Namespace) -> int:
    """Run a suite; 0 if nothing got worse, 1 if something did, 2 if --strict cannot tell."""
    from apps.regress.run import regress

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
    """Print a table for each artifact with a stored result, and a line for each new or gone."""
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
            say(f"{name}: is no longer in the suite and goes")


def moved(before: Measurement, now: Measurement) -> tuple[list[SliceRow], int]:
    """Return rows of the slices that moved, and how many did not.

    Slices are all classes together at IoU 0.5 and 0.5 to 0.95, sizes of objects, then classes, the
    greatest loss first. A slice that is only in one of both records has moved.
    """
    whole = [
        ("all", before.map50, now.map50),
        ("all, AP@.5:.95", before.map50_95, now.map50_95),
    ]
    slices: list[tuple[str, float | None, float | None]] = [*whole]
    slices += _pairs(before.by_size, now.by_size, "map50")
    classes = _pairs(before.by_class, now.by_class, "ap50")
    slices += sorted(classes, key=lambda one: (one[2] or 0.0) - (one[1] or 0.0))
    boxes = {
        name: one.get("boxes")
        for side in (before, now)
        for name, one in {**side.by_size, **side.by_class}.items()
    }
    rows = [_slice_row(each, boxes.get(each[0])) for each in slices if _differs(*each[1:])]
    return rows, len(slices) - len(rows)


def _pairs(
    before: Mapping[str, Mapping[str, float]], now: Mapping[str, Mapping[str, float]], key: str
) -> list[tuple[str, float | None, float | None]]:
    names = dict.fromkeys([*before, *now])
    return [(name, before.get(name, {}).get(key), now.get(name, {}).get(key)) for name in names]


def _differs(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) >= _SEEN


def _slice_row(slices: tuple[str, float | None, float | None], boxes: float | None) -> SliceRow:
    name, old, new = slices
    change = "-" if old is None or new is None else f"{(new - old) * 100:+.2f}"
    return name, "" if boxes is None else f"{boxes:g}", _percent(old), _percent(new), change


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.2f}"


_COLUMNS = ("mAP@.5 %", "p50 ms", "speed-up", "FPS camera", "age p99 ms", "MB")


def print_outcome(outcome: Outcome) -> None:
    """Print the figures then and now, and a line for each gate with where a loss comes from."""
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
    return (name, *(_then_and_now(a, b) for a, b in zip(old, _numbers(now), strict=True)))


def _numbers(one: Measurement) -> list[float | None]:
    return [
        one.map50 * 100,
        one.latency_ms["pipeline"]["p50"],
        one.speedup,
        one.fps.get("camera"),
        (one.frame_age_ms or {}).get("p99"),
        one.bytes / 1e6,
    ]


def _then_and_now(before: float | None, now: float | None) -> str:
    new = "-" if now is None else f"{now:.2f}"
    return new if before is None else f"{before:.2f} -> {new}"
