"""`edge compress` on the command line."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from apps.commands.options import count, json_option, model_options, target
from apps.commands.prune import fine_tuning, tuning_arguments
from apps.commands.terminal import show
from edge.errors import CompressionError
from edge.reporting import say

__all__ = [
    "arguments",
    "bits",
    "coding_options",
    "given_options",
    "print_compression",
    "print_noise",
    "run",
    "source_options",
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


def bits(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 12:
        raise argparse.ArgumentTypeError(f"{text} is not a number of bits, 1 to 12")
    return value


def _mean_bits(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 12:
        raise argparse.ArgumentTypeError(f"{text} is not a number of bits, 1 to 12")
    return value


def source_options(parser: argparse.ArgumentParser) -> None:
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


def coding_options(parser: argparse.ArgumentParser, default: str) -> None:
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
    source_options(parser)
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
    coding_options(parser, "auto")
    tuning_arguments(parser)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def given_options(args: argparse.Namespace) -> dict[str, Any]:
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
    from export.compress.deep import compress
    from export.compress.deep_stages import RECIPES
    from export.compress.noise import compress_to_noise

    _check(args)
    options = given_options(args)
    if args.noise_db is not None:
        result = compress_to_noise(
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
        print_noise(result)
        return 0
    recipe = replace(
        RECIPES[args.recipe],
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
    result = compress(
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
    print_compression(result)
    return 0


def print_noise(result: dict[str, Any]) -> None:
    """Layers as a table on stdout, and the file."""
    rows = [
        (name, str(size), f"{zeros / size:.1%}", str(levels))
        for name, size, zeros, levels in result["layers"]
    ]
    show(result["model"], ("layer", "weights", "zero", "values"), rows)
    say(
        f"{result['file']}: {result['file_bytes']} bytes, {result['ratio']:.2f}x at "
        f"{result['noise_db']:.2f} dB on {result['data']} "
        f"(entropy of single codes: {result['bound_bytes']:.0f})"
    )


def print_compression(result: dict[str, Any]) -> None:
    """The table of Deep Compression on stdout."""
    first = result["stages"][0]["bytes"]
    rows = [
        (
            stage["name"],
            f"{stage['bytes']}",
            f"{first / stage['bytes']:.2f}x",
            "" if stage["map50"] is None else f"{stage['map50'] * 100:.2f}",
        )
        for stage in result["stages"]
    ]
    name = ", ".join([result["model"], *result["labels"]])
    show(f"{name}: Deep Compression", ("stage", "bytes", "ratio", "mAP@.5 %"), rows)
    sections = ", ".join(f"{name} {size}" for name, size in result["sections"].items())
    say(
        f"{result['file']}: {sections} bytes; weights in {result['coding']} "
        f"(entropy of single codes: {result['bound_bytes']:.0f})"
    )
