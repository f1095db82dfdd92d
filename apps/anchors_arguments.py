"""`edge anchors` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.argument_types import count, size, target, words
from apps.shared_options import json_option

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge anchors`."""
    parser.add_argument(
        "--data", required=True, metavar="D", help="VOC, COCO, YOLO or KITTI folder, or scenes"
    )
    parser.add_argument("--k", type=count, default=6, metavar="N", help="anchors (%(default)s)")
    parser.add_argument(
        "--size", type=size, default=(416, 416), metavar="HxW", help="of the input (416x416)"
    )
    parser.add_argument(
        "--resize",
        choices=("letterbox", "stretch"),
        default="letterbox",
        help="how frames are fitted into the input (%(default)s)",
    )
    parser.add_argument(
        "--distance",
        choices=("iou", "euclidean"),
        default="iou",
        help="between a box and an anchor (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the first centres (%(default)s)"
    )
    parser.add_argument("--classes", type=words, default=[], metavar="NAMES", help="only these")
    parser.add_argument("--images", type=count, metavar="N", help="at most so many, spread evenly")
    parser.add_argument(
        "--curve", type=target(), metavar="F.svg", help="plot of the mean IoU over their number"
    )
    parser.add_argument("--largest", type=count, metavar="N", help="up to which it goes (15)")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Cluster and print."""
    app = import_module("apps.anchors")
    result = app.anchors(
        args.data,
        args.k,
        hw=args.size,
        resize=args.resize,
        distance=args.distance,
        seed=args.seed,
        classes=args.classes,
        images=args.images,
        curve=args.curve,
        largest=args.largest,
        json_path=args.json,
    )
    app.print_anchors(result)
    return 0
