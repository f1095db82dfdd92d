"""`edge compress`, `edge share` and `edge unpack` on the command line, imported when they run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib import import_module
from typing import Any

from apps.argument_types import count, target
from apps.prune_arguments import fine_tuning, tuning_arguments
from apps.shared_options import json_option, model_options
from edge.errors import CompressionError

__all__ = [
    "arguments",
    "run",
    "run_share",
    "run_unpack",
    "share_arguments",
    "unpack_arguments",
]


# What `--noise-db` has no use for.
_OF_STAGES = (
    "prune",
    "scope",
    "two_four",
    "bits",
    "scales",
    "sharing",
    "no_refit",
    "pruned",
    "begin",
    "start",
    "full",
    "fine_tune",
)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 <= share < 1")
    return value


def _bits(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 12:
        raise argparse.ArgumentTypeError(f"{text} is not a number of bits, 1 to 12")
    return value


def _mean_bits(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 12:
        raise argparse.ArgumentTypeError(f"{text} is not a number of bits, 1 to 12")
    return value


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="built-in or zoo name, .cfg, .npz, .safetensors or .edgez"
    )
    model_options(parser)
    parser.add_argument("--data", metavar="D", help="labelled images to judge by")
    parser.add_argument(
        "--images", type=count, metavar="N", help="judge by at most so many, spread evenly"
    )
    parser.add_argument("--threads", type=count, default=1, metavar="N", help="of onnxruntime")
    parser.add_argument(
        "-o", "--output", type=target(), required=True, metavar="F.edgez", help="the package"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="of the detector inside, in place of the model's"
    )
    json_option(parser)


def _coding(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--coding",
        choices=("auto", "ans", "huffman", "packed"),
        default=default,
        help="of the weights; auto takes the smallest (%(default)s)",
    )
    parser.add_argument(
        "--full", action="store_true", help="centroids and biases in FP32 in place of FP16"
    )
    parser.add_argument(
        "--start",
        choices=("linear", "density", "random", "optimal"),
        help="of k-means (optimal; for edge share linear)",
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge compress`."""
    _model(parser)
    parser.add_argument(
        "--recipe",
        choices=("plain", "deep"),
        default="plain",
        help="plain: 60 %% pruned, 5 bits; deep: 86 %% and 3 with scales, which takes training "
        "(%(default)s)",
    )
    parser.add_argument("--prune", type=_share, metavar="S", help="share of weights to remove")
    parser.add_argument(
        "--scope",
        choices=("lamp", "global", "layer", "loss"),
        help="how layers share the pruning (loss: by what the loss would lose on pictures, without "
        "--fine-tune; otherwise lamp: by arXiv:2010.07611)",
    )
    parser.add_argument(
        "--two-four", action="store_true", help="two of every four, for sparse tensor cores"
    )
    parser.add_argument(
        "--bits",
        type=_mean_bits,
        metavar="B",
        help="of a codebook's index; a fraction such as 2.3: at most so many for each weight, more "
        "in those layers that need it, as pictures of --train tell",
    )
    parser.add_argument(
        "--scales",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a scale for each output channel beside the codebook of its layer",
    )
    parser.add_argument(
        "--sharing",
        type=_share,
        metavar="S",
        help="share of the steps that train shared weights (0.4); with --pruned they are all of it",
    )
    parser.add_argument(
        "--noise-db",
        type=float,
        metavar="DB",
        help="no training: the smallest package whose heads keep this signal to noise on --data",
    )
    parser.add_argument(
        "--train",
        metavar="D",
        help="images to learn from; labels are needed for --fine-tune alone",
    )
    parser.add_argument(
        "--no-refit",
        action="store_true",
        help="without --fine-tune: prune and round every weight alone",
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--pruned", metavar="F", help="F.pruned.safetensors of an earlier run: only share and code"
    )
    earlier.add_argument("--begin", metavar="F", help="the same file: prune and train it further")
    _coding(parser, "auto")
    tuning_arguments(parser)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return _given(weights=args.weights, names=args.names, resize=args.resize, name=args.name)


def _refuse(args: argparse.Namespace, options: tuple[str, ...], why: str) -> None:
    """What would have no effect is refused; a misunderstanding would show in the figures alone."""
    given = [one for one in options if getattr(args, one) not in (None, False)]
    if given:
        names = ", ".join("--" + one.replace("_", "-") for one in given)
        raise CompressionError(f"{names}: {why}")


def _check(args: argparse.Namespace) -> None:
    if args.noise_db is not None:
        _refuse(args, _OF_STAGES, "--noise-db finds the values of each layer by itself, untrained")
    elif args.fine_tune is None:
        _refuse(args, ("sharing",), "without --fine-tune STEPS nothing is trained")
    else:
        _refuse(args, ("no_refit",), "with --fine-tune training takes the place of fitting")
        if args.scope == "loss":
            raise CompressionError(
                "--scope loss is told on pictures without training; with --fine-tune take lamp, "
                "global or layer"
            )


def run(args: argparse.Namespace) -> int:
    """`edge compress`."""
    _check(args)
    options = _options(args)
    if args.noise_db is not None:
        app = import_module("apps.compress_noise")
        result = app.compress_to_noise(
            args.model,
            args.data,
            noise_db=args.noise_db,
            train=args.train,
            images=args.images,
            coding=args.coding,
            output=args.output,
            json_path=args.json,
            **options,
        )
        app.print_noise(result)
        return 0
    app = import_module("apps.compressing")
    recipe = replace(
        import_module("apps.compress_work").RECIPES[args.recipe],
        two_four=args.two_four,
        coding=args.coding,
        half=not args.full,
        **_given(
            prune=args.prune,
            scope=args.scope,
            bits=args.bits,
            start=args.start,
            scaled=args.scales,
            sharing=args.sharing,
        ),
    )
    result = app.compress(
        args.model,
        args.data,
        recipe=recipe,
        tuning=fine_tuning(args),
        train=args.train,
        pruned=args.pruned,
        begin=args.begin,
        refit=not args.no_refit,
        images=args.images,
        threads=args.threads,
        output=args.output,
        json_path=args.json,
        **options,
    )
    app.print_compression(result)
    return 0


def share_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge share`."""
    _model(parser)
    parser.add_argument(
        "--bits",
        type=_bits,
        default=5,
        metavar="B",
        help="2 to the power of B values for each layer (%(default)s)",
    )
    _coding(parser, "packed")


def run_share(args: argparse.Namespace) -> int:
    """`edge share`."""
    app = import_module("apps.sharing")
    result = app.share(
        args.model,
        args.data,
        bits=args.bits,
        start=args.start or "linear",
        coding=args.coding,
        half=not args.full,
        images=args.images,
        threads=args.threads,
        output=args.output,
        json_path=args.json,
        **_options(args),
    )
    app.print_sharing(result)
    return 0


def unpack_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge unpack`."""
    parser.add_argument("package", metavar="F.edgez", help="a package of edge share or compress")
    parser.add_argument(
        "-o", "--output", default="out", metavar="DIR", help="folder of the files (%(default)s)"
    )


def run_unpack(args: argparse.Namespace) -> int:
    """`edge unpack`."""
    app = import_module("apps.unpacking")
    app.print_unpacked(args.package, app.unpack(args.package, args.output))
    return 0
