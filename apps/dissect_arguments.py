"""`edge dissect` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.argument_types import inner_share, words
from apps.prune_arguments import choice_arguments, fine_tuning, model_arguments, tuning_arguments

__all__ = ["arguments", "run"]


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
    app = import_module("apps.dissecting")
    result = app.dissect(
        args.model,
        args.classes,
        args.data,
        target=import_module("apps.prune_target").Target("ratio", 1 - args.keep),
        train=args.train,
        choice=import_module("apps.prune_work").Choice(
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
        json_path=args.json,
        weights=args.weights,
        names=args.names,
        resize=args.resize,
    )
    app.print_dissection(result)
    return 0
