"""`edge quantize` on the command line."""

from __future__ import annotations

import argparse

from apps.commands.options import add_options, json_option, read_options, target
from edge.files import write_json
from edge.reporting import say

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge quantize`."""
    from export.int8.kept_layers import QuantizeOptions

    parser.add_argument("onnx", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    parser.add_argument("table", metavar="TABLE", help="NAME.calib.json of edge calibrate")
    add_options(parser, QuantizeOptions)
    parser.add_argument(
        "-o",
        "--output",
        type=target(".onnx"),
        metavar="F",
        help="the INT8 graph to write (NAME.int8.onnx)",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Quantize."""
    from export.int8.kept_layers import QuantizeOptions, quantize

    graph = quantize(args.onnx, args.table, read_options(args, QuantizeOptions))
    manifest = graph.manifest
    result = {"model": manifest.spec.name, "precision": manifest.precision, "file": graph.path}
    write_json(result, args.json)
    say(f"wrote {graph}")
    return 0
