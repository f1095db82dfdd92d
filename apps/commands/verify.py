"""`edge verify` on the command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from apps.commands.options import add_options, json_option, read_options
from apps.commands.terminal import show
from edge.files import write_json
from edge.reporting import say

if TYPE_CHECKING:
    from export.compare import Verification

__all__ = ["arguments", "print_verification", "run"]

_SHOWN = 12


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge verify`."""
    from export.compare import VerifyOptions

    parser.add_argument(
        "first",
        metavar="A",
        help=".onnx, .engine, .edgez, a built-in name, or a model that torch runs",
    )
    parser.add_argument("second", metavar="B", help="the network to compare with A")
    add_options(parser, VerifyOptions)
    parser.add_argument("--every", action="store_true", help="show every tensor, in order")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; 0 where the two agree, 1 where B departs."""
    from export.compare import VerifyOptions, verify

    result = verify(args.first, args.second, read_options(args, VerifyOptions))
    write_json(result, args.json)
    print_verification(result, args.every)
    return 0 if result.ok else 1


def print_verification(result: Verification, every: bool = False) -> None:
    """Print the noisiest steps, where the second network departs, and how alike the boxes are."""
    tensors = result.tensors
    shown = tensors if every else sorted(tensors, key=lambda one: one.own_db)[:_SHOWN]
    rows = [(one.name, f"{one.db:.1f}", f"{one.own_db:.1f}") for one in shown]
    title = f"{result.second} against {result.first}, {result.images} images"
    what = "every tensor" if every else f"where most noise arises, {len(shown)} of {len(tensors)}"
    show(f"{title}: {what}", ("tensor", "signal/noise dB", "own noise dB"), rows)
    same = result.agreement
    iou = "-" if same.iou != same.iou else f"{same.iou:.3f}"
    say(f"boxes that agree: {same.share * 100:.1f} % of {list(same.boxes)}, mean IoU {iou}")
    if result.departs is not None:
        say(f"departs at {result.departs}: below {result.limit_db:g} dB")
    else:
        say(f"no tensor is below {result.limit_db:g} dB")
