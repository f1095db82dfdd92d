"""`edge robustness` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands.options import add_options, json_option, read_options, target
from apps.commands.terminal import show
from edge.files import make_folder, write_file, write_json
from edge.measure.robustness import RobustnessOptions, RobustnessResult, robustness
from edge.reporting import say

__all__ = ["arguments", "print_robustness", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge robustness`."""
    parser.add_argument(
        "artifacts",
        nargs="+",
        metavar="ARTIFACT",
        help="forms of one detector (.onnx or .engine); the others are compared with the first",
    )
    parser.add_argument(
        "--data",
        default="scenes",
        metavar="DATA",
        help="labelled pictures (default: fresh scenes of the built-in world)",
    )
    add_options(parser, RobustnessOptions)
    parser.add_argument(
        "--journal",
        type=target(),
        metavar="F",
        help="keep each condition as it is measured; a run that was stopped goes on from there",
    )
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write a page with curves and examples to DIR/robustness.html",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run `edge robustness`: 0; 1 where an artifact breaks earlier than the first."""
    options = read_options(args, RobustnessOptions)
    result = robustness(args.artifacts, args.data, options, journal=args.journal)
    write_json(result, args.json)
    print_robustness(result)
    if args.report is not None:
        from apps.report.robustness import robustness_page

        path = make_folder(args.report) / "robustness.html"
        write_file(path, robustness_page(result).encode())
        say(f"report: {path}")
    return int(any(verdict.breaks_earlier for verdict in result.verdicts))


def print_robustness(result: RobustnessResult) -> None:
    """Print mAP by corruption as a table on stdout, and the verdicts as lines."""
    columns = ["mAP@.5 %, mean over severities", *(Path(a.artifact).name for a in result.artifacts)]
    rows = [("clean", *(f"{one.clean.map50 * 100:.1f}" for one in result.artifacts))]
    for name in result.corruptions:
        means = []
        for one in result.artifacts:
            values = [each.map50 for each in one.conditions if each.corruption == name]
            means.append(f"{sum(values) / len(values) * 100:.1f}")
        rows.append((name, *means))
    every = result.artifacts
    rows.append(("mean under corruption", *(f"{a.mean_under_corruption * 100:.1f}" for a in every)))
    rows.append(
        ("of clean, %", *("–" if a.relative is None else f"{a.relative * 100:.1f}" for a in every))
    )
    views = f", {len(result.tta)} views joined" if len(result.tta) > 1 else ""
    show(f"{result.images} pictures of {result.data}{views}", columns, rows)
    for one in every:
        clean = one.clean
        small = "–" if clean.small_recall is None else f"{clean.small_recall:.1%}"
        say(
            f"{Path(one.artifact).name}: recall {clean.recall:.1%} at score {one.score:g} "
            f"({small} of small objects), calibration error of scores "
            f"{(clean.calibration_error or 0) * 100:.1f} points, on clean pictures"
        )
    for text in result.sentences:
        say(text)
