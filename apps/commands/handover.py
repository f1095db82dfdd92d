"""`edge handover` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands.options import add_options, json_option, read_options
from apps.commands.terminal import show
from edge.files import write_json
from edge.reporting import say
from export.handover.triton import HandoverResult, TritonOptions, handover_triton

__all__ = ["arguments", "print_handover", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge handover`."""
    parser.add_argument("kind", choices=("triton",), help="what the folder is for")
    parser.add_argument("artifact", metavar="ARTIFACT", help=".onnx or .engine of edge")
    parser.add_argument(
        "-o", "--output", default="handover", metavar="DIR", help="folder to write (%(default)s)"
    )
    add_options(parser, TritonOptions)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run `edge handover`: 0; errors are raised."""
    result = handover_triton(args.artifact, args.output, read_options(args, TritonOptions))
    write_json(result, args.json)
    print_handover(result, Path(args.output))
    return 0


def print_handover(result: HandoverResult, folder: Path) -> None:
    """Print the files as a table on stdout, and what the reader must know."""
    rows = [(name, f"{(folder / name).stat().st_size / 1e6:.3f}") for name in result.files]
    show(f"{folder}, for {result.kind}", ("file", "MB"), rows)
    for note in result.notes:
        say(note)
