"""`edge verify` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from typing import Any

from apps.commands.options import count, json_option, threads_option
from apps.commands.terminal import show
from edge.reporting import say

__all__ = ["arguments", "print_verification", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge verify`."""
    parser.add_argument("first", metavar="A", help=".onnx, .engine, or a model that torch runs")
    parser.add_argument("second", metavar="B", help="the same; compared with A")
    parser.add_argument(
        "--data", default="scenes", metavar="DIR", help="pictures; left out: built-in scenes"
    )
    parser.add_argument(
        "--images", type=count, default=8, metavar="N", help="pictures to compare on (%(default)s)"
    )
    parser.add_argument(
        "--limit-db",
        type=float,
        metavar="DB",
        help="a tensor below it departs; by default 12 for INT8, 30 for FP16, 80 for FP32",
    )
    parser.add_argument("--names", metavar="F", help="class names of a torch model")
    parser.add_argument("--resize", choices=("letterbox", "stretch"), help="of a torch model")
    threads_option(parser)
    parser.add_argument("--every", action="store_true", help="show every tensor, in order")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge verify`: 0 where the two agree, 1 where B departs."""
    from export.compare import verify

    result = verify(
        args.first,
        args.second,
        args.data,
        images=args.images,
        limit_db=args.limit_db,
        names=args.names,
        resize=args.resize,
        threads=args.threads,
        json_path=args.json,
    )
    print_verification(result, args.every)
    return 0 if result["ok"] else 1


_SHOWN = 12


def print_verification(result: dict[str, Any], every: bool = False) -> None:
    """The noisiest steps, where it departs, and how alike the boxes are."""
    tensors = result["tensors"]
    shown = tensors if every else sorted(tensors, key=lambda one: one["own_db"])[:_SHOWN]
    rows = [(one["name"], f"{one['db']:.1f}", f"{one['own_db']:.1f}") for one in shown]
    title = f"{result['second']} against {result['first']}, {result['images']} images"
    what = "every tensor" if every else f"where most noise arises, {len(shown)} of {len(tensors)}"
    show(f"{title}: {what}", ("tensor", "signal/noise dB", "own noise dB"), rows)
    same = result["agreement"]
    iou = "-" if same["iou"] is None else f"{same['iou']:.3f}"
    say(f"boxes that agree: {same['share'] * 100:.1f} % of {same['boxes']}, mean IoU {iou}")
    limit = result["limit_db"]
    if result["departs"]:
        say(f"departs at {result['departs']}: below {limit:g} dB")
    else:
        say(f"no tensor is below {limit:g} dB")
