"""`edge detect` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from apps.commands.options import add_options, json_option, read_options
from apps.commands.terminal import listing
from edge.files import write_json
from edge.measure.detect import (
    DetectOptions,
    DetectResult,
    PictureDetections,
    detect_pictures,
)
from edge.reporting import say

__all__ = ["arguments", "print_detections", "run"]

_NAMED = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge detect`."""
    parser.add_argument("artifact", metavar="ARTIFACT", help=".onnx or .engine of edge")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="pictures, folders of them, or videos"
    )
    add_options(parser, DetectOptions)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge detect`: always 0; errors are raised."""
    result = detect_pictures(args.artifact, args.images, read_options(args, DetectOptions))
    write_json(result, args.json)
    print_detections(result)
    return 0


def print_detections(result: DetectResult, classes: int = 4) -> None:
    """Print a table: by picture or video the number of detections and the most frequent classes."""
    by_file: dict[str, list[PictureDetections]] = {}
    for one in result.pictures:
        by_file.setdefault(one.image, []).append(one)
    rows = []
    for name, ones in by_file.items():
        found = [each for one in ones for each in one.detections]
        frames = f" ({len(ones)} frames)" if ones[0].frame is not None else ""
        text = "cannot be read" if ones[0].error else _most(found, classes)
        rows.append((f"{name}{frames}", str(len(found)), text))
    total = sum(len(one.detections) for one in result.pictures)
    title = f"{total} detections in {len(result.pictures) - len(result.skipped)} images"
    listing(title, ("image", "found", "classes"), rows)
    for text in result.skipped[:_NAMED]:
        say(f"skipped: {text}")
    if len(result.skipped) > _NAMED:
        say(f"skipped: {len(result.skipped) - _NAMED} more")


def _most(detections: Sequence[dict[str, Any]], count: int) -> str:
    found = Counter(one["class"] for one in detections)
    best: dict[str, float] = {}
    for one in detections:
        best[one["class"]] = max(one["score"], best.get(one["class"], 0.0))
    parts = [f"{number} {name} ({best[name]:.2f})" for name, number in found.most_common(count)]
    return ", ".join([*parts, *(["..."] if len(found) > count else [])])
