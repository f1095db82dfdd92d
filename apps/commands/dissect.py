"""`edge dissect`: keep some classes of a detector, and the channels that they need."""

from __future__ import annotations

import argparse

from apps.commands.options import add_options, json_option, read_options, words
from apps.commands.prune import model_and_data, print_files, print_stages
from edge.compress.options import ChannelOptions, DissectOptions
from edge.files import write_json
from edge.reporting import say

__all__ = ["arguments", "run"]

_FIXED = ("importance", "spread", "least", "table")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge dissect`."""
    model_and_data(parser)
    parser.add_argument(
        "--classes",
        type=words,
        required=True,
        metavar="NAMES",
        help="names of the classes to keep, with commas between them",
    )
    add_options(parser, DissectOptions, leave_out=_FIXED)
    # Accepted for scripts that name it: a share of channels needs no times.
    parser.add_argument("--table", help=argparse.SUPPRESS)
    parser.set_defaults(untouched=DissectOptions().channels.untouched)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run `edge dissect`."""
    from apps.charts.dissection import page
    from export.compress.dissect import dissect

    channels = read_options(args, ChannelOptions, importance="dissection", spread="layer")
    options = read_options(args, DissectOptions, channels=channels)
    result = dissect(args.model, args.classes, args.data, options, page)
    write_json(result, args.json)
    classes = ", ".join(result.classes)
    print_stages(result, f"{result.name} ({classes}) on {result.images} images of {result.data}")
    if result.warning:
        say(result.warning)
    print_files(result)
    return 0
