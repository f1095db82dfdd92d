"""`edge detect` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from apps.commands.options import add_options, json_option, read_options
from apps.commands.terminal import listing
from edge.files import write_json
from edge.measure.detect import DetectOptions, DetectResult, detect_pictures

__all__ = ["arguments", "print_detections", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge detect`."""
    parser.add_argument("artifact", metavar="ARTIFACT", help=".onnx or .engine of edge")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures or folders of them")
    add_options(parser, DetectOptions)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge detect`: always 0; errors are raised."""
    result = detect_pictures(args.artifact, args.images, read_options(args, DetectOptions))
    write_json(result, args.json)
    print_detections(result)
    return 0


def print_detections(result: DetectResult, classes: int = 4) -> None:
    """Print a table: by picture the number of detections and the most frequent classes."""
    rows = [
        (one.image, str(len(one.detections)), _most(one.detections, classes))
        for one in result.pictures
    ]
    total = sum(len(one.detections) for one in result.pictures)
    title = f"{total} detections in {len(result.pictures)} images"
    listing(title, ("image", "found", "classes"), rows)


def _most(detections: Sequence[dict[str, Any]], count: int) -> str:
    found = Counter(one["class"] for one in detections)
    # Highest scores come first, so `setdefault` keeps each class's best.
    best: dict[str, float] = {}
    for one in detections:
        best.setdefault(one["class"], one["score"])
    parts = [f"{number} {name} ({best[name]:.2f})" for name, number in found.most_common(count)]
    return ", ".join([*parts, *(["..."] if len(found) > count else [])])
