"""`edge share` on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from apps.commands.compress import bits, coding_options, given_options, source_options
from apps.commands.terminal import show
from edge.reporting import say

__all__ = ["arguments", "print_sharing", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge share`."""
    source_options(parser)
    parser.add_argument(
        "--bits",
        type=bits,
        default=5,
        metavar="B",
        help="2 to the power of B values for each layer (%(default)s)",
    )
    coding_options(parser, "packed")


def run(args: argparse.Namespace) -> int:
    """`edge share`."""
    from export.compress.share import share

    result = share(
        args.model,
        args.data,
        bits=args.bits,
        start=args.start or "linear",
        coding=args.coding,
        half=not args.full,
        images=args.images,
        threads=args.threads,
        output=args.output,
        json_path=args.json,
        **given_options(args),
    )
    print_sharing(result)
    return 0


def print_sharing(result: dict[str, Any]) -> None:
    """Layers as a table on stdout, and the file."""
    rows = [
        (
            row["name"],
            str(row["weights"]),
            str(row["levels"]),
            f"{row['rate']:.2f}x",
            f"{row['noise_db']:.1f}",
        )
        for row in result["layers"]
    ]
    show(result["model"], ("layer", "weights", "values", "rate", "signal to noise, dB"), rows)
    say(f"{result['file']}: {result['file_bytes']} bytes, {result['rate']:.2f}x")
    if result["map50"]:
        before, after = result["map50"]
        say(f"mAP@.5 {before:.2%} before, {after:.2%} after")
