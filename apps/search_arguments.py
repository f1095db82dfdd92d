"""`edge search` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.argument_types import count, share, target
from apps.shared_options import json_option, threads_option

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge search`."""
    add = parser.add_argument
    add("onnx", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    add("--table", required=True, metavar="F", help="NAME.calib.json of the same model")
    add("--data", required=True, metavar="DIR", help="labelled images to hold the budget on")
    add(
        "--max-map-drop",
        type=share,
        default=0.005,
        metavar="D",
        help="mAP@.5 that may be lost against FP32, 0..1 (%(default)s)",
    )
    add("--images", type=count, default=200, metavar="N", help="at most so many (%(default)s)")
    add(
        "--keep-as",
        choices=("fp16", "fp32"),
        default="fp16",
        help="precision of kept layers (%(default)s; beyond its range fp32)",
    )
    add(
        "--engines",
        nargs=2,
        metavar=("INT8", "FP16"),
        help="of this GPU, to go by their layers' times and to time candidates as engines; "
        "without: onnxruntime",
    )
    threads_option(parser)
    add(
        "--precision-map",
        type=target(),
        metavar="F",
        help="where to write the map (beside the graph)",
    )
    add(
        "-o",
        "--output",
        type=target(".onnx"),
        metavar="F",
        help="the mixed graph (NAME.mixed.onnx)",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge search`: 0 where the budget holds, 1 where no mixture is sure to keep it."""
    app = import_module("apps.searching")
    result = app.search_command(
        args.onnx,
        args.table,
        args.data,
        budget=args.max_map_drop,
        images=args.images,
        keep_as=args.keep_as,
        engines=None if args.engines is None else tuple(args.engines),
        threads=args.threads,
        output=args.output,
        map_path=args.precision_map,
        json_path=args.json,
    )
    import_module("apps.search_report").print_search(result)
    return 0 if result["holds"] else 1
