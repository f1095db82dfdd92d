"""`edge search` on the command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from apps.commands.options import add_options, json_option, read_options, target
from apps.commands.terminal import show
from edge.files import write_json
from edge.reporting import say

if TYPE_CHECKING:
    from export.search.mixed import SearchResult

__all__ = ["arguments", "print_search", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge search`."""
    from export.search.mixed import SearchOptions

    add = parser.add_argument
    add("onnx", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    add("--table", required=True, metavar="F", help="NAME.calib.json of the same model")
    add("--data", required=True, metavar="DIR", help="labelled pictures to hold the budget on")
    add_options(parser, SearchOptions)
    add(
        "--engines",
        nargs=2,
        metavar=("INT8", "FP16"),
        help="engines of this GPU whose layer times order the layers; candidates are then timed "
        "as engines too, else on onnxruntime",
    )
    add(
        "--precision-map",
        type=target(),
        metavar="F",
        help="the map to write (NAME.precision.json beside the mixed graph)",
    )
    add(
        "-o",
        "--output",
        type=target(".onnx"),
        metavar="F",
        help="the mixed graph to write (NAME.mixed.onnx)",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Search; 0 where the budget holds, 1 where no mixture is sure to keep it."""
    from export.search.mixed import SearchOptions, search_layers

    options = read_options(args, SearchOptions)
    result = search_layers(args.onnx, args.table, args.data, options)
    write_json(result, args.json)
    print_search(result)
    return 0 if result.holds else 1


def print_search(result: SearchResult) -> None:
    """Print the Pareto table on stdout, the choice on stderr."""
    chosen = result.chosen
    front = [*result.pareto] if chosen in result.pareto else [chosen, *result.pareto]
    rows = [
        (
            f"{one.kept} of {result.all_layers}" + (" <" if one == chosen else ""),
            f"{one.map50 * 100:.2f}",
            f"{one.drop * 100:+.2f}",
            f"{one.drop_upper * 100:.2f}",
            f"{one.head_db:.1f}",
            f"{one.ms:.2f}",
            f"{one.mb:.2f}",
            str(one.pictures),
        )
        for one in front
    ]
    columns = (
        "kept layers",
        "mAP@.5 %",
        "lost",
        "lost at most",
        "heads dB",
        "ms",
        "MB",
        "pictures",
    )
    show(f"mixed precision on {result.images} images of {result.data}", columns, rows)
    if len({one.pictures for one in result.pareto}) > 1:
        say(
            "mAP@.5 is measured on different numbers of pictures, moved copies among them: compare "
            "what is lost, not mAP@.5 itself"
        )
    if not result.holds:
        say(
            f"no mixture is certain to lose at most {result.budget * 100:g} points on these "
            f"{result.images} images; more labelled images give a narrower bound"
        )
    if chosen.kept == result.all_layers:
        say("no mixture that fits is better than keeping every layer: ship the FP16 graph instead")
    for line in result.disturbed:
        say(line)
    kept = ", ".join(result.layers) or "none"
    say(f"kept out of INT8 (<): {kept}; chosen by {result.costs}; {result.tried} graphs tried")
