"""`edge quantize` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse

from apps.commands.options import keep_options, target

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge quantize`."""
    parser.add_argument("onnx", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    parser.add_argument("table", metavar="TABLE", help="NAME.calib.json of edge calibrate")
    keep_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=target(".onnx"),
        metavar="F",
        help="the INT8 graph (NAME.int8.onnx)",
    )


def run(args: argparse.Namespace) -> int:
    """`edge quantize`: always 0; errors are raised."""
    from export.int8.kept_layers import quantize_command

    quantize_command(
        args.onnx,
        args.table,
        keep=args.keep,
        precision_map=args.precision_map,
        output=args.output,
    )
    return 0
