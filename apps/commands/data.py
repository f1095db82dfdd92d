"""`edge data` on the command line."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from apps.commands.options import count, json_option, share
from apps.commands.terminal import listing, show
from edge.files import make_folder, write_file, write_json
from edge.measure.dataset_report import DatasetReport
from edge.reporting import say

__all__ = ["arguments", "print_dataset", "run"]

_SHOWN = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge data`."""
    add = parser.add_argument
    add("data", metavar="DATA", help="labelled pictures: a folder, a COCO json, or scenes://")
    add("--images", type=count, metavar="N", help="look at N of the pictures, spread evenly")
    add(
        "--val",
        metavar="DATA",
        help="another split: list the pictures that both hold",
    )
    add(
        "--against",
        metavar="ARTIFACT",
        help="a detector of these classes: list boxes it is sure of and nobody labelled",
    )
    add(
        "--sure",
        type=share,
        default=0.45,
        metavar="S",
        help="score from which a box of --against counts; a higher one lists fewer (%(default)s)",
    )
    add("--report", metavar="DIR", help="write a page with plots and pictures to DIR/data.html")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run `edge data`: 0 whatever it finds; errors are raised."""
    from apps.report.dataset import dataset_page
    from edge.data.datasets import open_dataset
    from edge.measure.dataset_report import report_dataset
    from edge.measure.views import with_views
    from edge.runtime.detector import Detector

    with ExitStack() as stack:
        detector = None
        if args.against is not None:
            detector = stack.enter_context(Detector.open(args.against, score=args.sure / 2))
        classes = None if detector is None else detector.spec.classes
        dataset = open_dataset(args.data, classes, args.images)
        other = None if args.val is None else open_dataset(args.val, classes)
        found = report_dataset(
            dataset,
            detect=None if detector is None else with_views(detector, ("plain", "flip")),
            known=classes,
            sure=args.sure,
            other=other,
        )
    write_json(found, args.json)
    print_dataset(found)
    if args.report is not None:
        path = make_folder(args.report) / "data.html"
        write_file(path, dataset_page(found, [dataset, *([other] if other else [])]).encode())
        say(f"report: {path}")
    return 0


def print_dataset(found: DatasetReport) -> None:
    """Print classes and faults as tables on stdout, and the rest in lines."""
    ranked = sorted(found.classes.items(), key=lambda pair: -pair[1]["boxes"])
    rows = [(name, str(one["boxes"]), str(one["images"])) for name, one in ranked]
    title = f"{found.source}: {found.images} pictures, {found.boxes} boxes"
    show(title, ("class", "boxes", "pictures"), rows)
    sizes = ", ".join(f"{number} {name}" for name, number in found.sizes.items())
    say(
        f"sizes (COCO): {sizes}; {found.unlabelled} pictures without a box; "
        f"{found.overlapping:.0%} of the boxes overlap another by more than half"
    )
    light = found.light
    say(f"light: {light['dark']:.0%} of the pictures are dark, {light['bright']:.0%} bright")
    for what, twins in (("shared with the other split", found.leaks), ("alike", found.twins)):
        if twins:
            first = twins[0]
            say(f"{len(twins)} pictures {what}, such as {first.first} and {first.second}")
    if found.faults:
        listing(
            "labels that look wrong: " + ", ".join(f"{n} {k}" for k, n in found.counted.items()),
            ("fault", "picture", "what"),
            [
                (one.kind, Path(one.image).name, one.text + _sure(one.score))
                for one in found.faults[:_SHOWN]
            ],
        )
    for text in found.skipped[:5]:
        say(f"left out: {text}")


def _sure(score: float | None) -> str:
    return "" if score is None else f" ({score:.2f})"
