"""`edge dissect` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from typing import Any

from apps.commands.options import inner_share, words
from apps.commands.prune import (
    choice_arguments,
    fine_tuning,
    model_arguments,
    print_stages,
    tuning_arguments,
)
from apps.commands.terminal import show
from edge.reporting import say

__all__ = ["arguments", "print_dissection", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge dissect`."""
    model_arguments(parser)
    parser.add_argument(
        "--classes", type=words, required=True, metavar="NAMES", help="with commas between"
    )
    parser.add_argument(
        "--keep",
        type=inner_share,
        default=0.5,
        metavar="S",
        help="share of the channels that stay, in no layer less than the classes' (%(default)s)",
    )
    choice_arguments(parser, untouched=2)
    tuning_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """`edge dissect`."""
    from apps.charts.dissection import page
    from edge.compress.channels.pruner import Target
    from export.compress.channels import Choice
    from export.compress.dissect import dissect

    result = dissect(
        args.model,
        args.classes,
        args.data,
        target=Target("ratio", 1 - args.keep),
        train=args.train,
        choice=Choice(
            importance="dissection",
            spread="layer",
            align=args.align,
            untouched=args.untouched,
            images=args.profile_images,
            refit=not args.no_refit,
            threads=args.threads,
            table=args.table,
        ),
        tuning=fine_tuning(args),
        images=args.images,
        output=args.output,
        name=args.name,
        draw=page,
        json_path=args.json,
        weights=args.weights,
        names=args.names,
        resize=args.resize,
    )
    print_dissection(result)
    return 0


def print_dissection(result: dict[str, Any]) -> None:
    """Stages and channels as tables on stdout."""
    show("channels", ("convolution", "before", "after"), result["plan"])
    classes = ", ".join(result["classes"])
    title = f"{result['name']} ({classes}) on {result['images']} images of {result['data']}"
    print_stages(title, result["stages"])
    if result["warning"]:
        say(result["warning"])
    if result["train"] == result["data"]:
        say("trained and judged on the same images: give others with --train")
    say("wrote " + ", ".join(result["files"].values()))
