"""`edge evaluate` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.argument_types import count
from apps.shared_options import exact_option, json_option, threads_option, threshold_options

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge evaluate`."""
    parser.add_argument("artifact", metavar="ARTIFACT", help=".onnx or .engine of edge")
    parser.add_argument(
        "--data",
        default="scenes",
        metavar="DIR",
        help="folder with images/ and YOLO labels/, a VOC or KITTI folder, or a COCO json; "
        "left out: fresh scenes of the built-in world",
    )
    parser.add_argument("--images", type=count, metavar="N", help="at most so many, spread evenly")
    threshold_options(parser, 0.005)
    parser.add_argument(
        "--best-class", action="store_true", help="only the best class of a box, as a camera shows"
    )
    parser.add_argument(
        "--against",
        metavar="B",
        help="compare with another artifact on the same images: by size, by class, scores",
    )
    parser.add_argument(
        "--try-contracts", action="store_true", help="letterbox and stretch, and which of them fits"
    )
    parser.add_argument(
        "--allow-overlap",
        action="store_true",
        help="go on though the artifact was calibrated on these images",
    )
    threads_option(parser)
    exact_option(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge evaluate`: always 0; errors are raised."""
    app = import_module("apps.evaluation")
    result = app.evaluate(
        args.artifact,
        args.data,
        images=args.images,
        score=args.score,
        iou=args.iou,
        multi_label=not args.best_class,
        threads=args.threads,
        exact=not args.fast_int8,
        against=args.against,
        try_contracts=args.try_contracts,
        allow_overlap=args.allow_overlap,
        json_path=args.json,
    )
    app.print_evaluation(result)
    return 0
