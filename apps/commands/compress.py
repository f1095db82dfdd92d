"""`edge compress`: prune, share and code weights into a package."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from apps.commands.options import add_options, json_option, read_options, target
from apps.commands.terminal import show
from edge.compress.options import (
    RECIPES,
    CompressOptions,
    NoiseOptions,
    PackageOptions,
    WeightRecipe,
)
from edge.errors import CompressionError
from edge.files import write_json
from edge.options import described
from edge.reporting import say

if TYPE_CHECKING:
    from export.compress.deep import CompressResult
    from export.compress.noise import NoiseResult

__all__ = ["arguments", "package_arguments", "run"]

# Flags by field of what `--noise-db` does not use.
_OF_STAGES = {
    "prune": "--prune",
    "scope": "--scope",
    "two_four": "--two-four",
    "bits": "--bits",
    "scaled": "--scales",
    "sharing": "--sharing",
    "refit": "--no-refit",
    "pruned": "--pruned",
    "begin": "--begin",
    "start": "--start",
    "half": "--full",
    "steps": "--fine-tune",
}


def package_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the images that it is judged on, and the package."""
    parser.add_argument(
        "model", metavar="MODEL", help="built-in or zoo name, .cfg, .npz, .safetensors or .edgez"
    )
    parser.add_argument("--data", metavar="D", help="labelled images to judge by")
    parser.add_argument(
        "-o",
        "--output",
        type=target(),
        required=True,
        metavar="F.edgez",
        help=described(PackageOptions)["output"],
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge compress`."""
    package_arguments(parser)
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="plain",
        dest="preset",
        help="what is done unless options say otherwise; plain: 60 %% of the weights pruned, 5 "
        "bits; deep: 86 %%, 3 bits and scales, which takes training (default: %(default)s)",
    )
    add_options(parser, WeightRecipe, leave_out=("scaled",), given_only=True)
    parser.add_argument(
        "--scales",
        action=argparse.BooleanOptionalAction,
        dest="scaled",
        default=argparse.SUPPRESS,
        help=described(WeightRecipe)["scaled"],
    )
    add_options(parser, NoiseOptions, only=("noise_db",), given_only=True)
    add_options(parser, CompressOptions, leave_out=tuple(described(WeightRecipe)))
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run `edge compress`."""
    _refuse_unused(args)
    if hasattr(args, "noise_db"):
        return _run_noise(args)
    from export.compress.deep import compress

    given = {
        field.name: getattr(args, field.name)
        for field in fields(WeightRecipe)
        if hasattr(args, field.name)
    }
    recipe = replace(RECIPES[args.preset], **given)
    result = compress(args.model, args.data, read_options(args, CompressOptions, recipe=recipe))
    write_json(result, args.json)
    _print_stages(result)
    return 0


def _run_noise(args: argparse.Namespace) -> int:
    from export.compress.noise import compress_to_noise

    result = compress_to_noise(args.model, args.data, read_options(args, NoiseOptions))
    write_json(result, args.json)
    _print_noise(result)
    return 0


def _refuse_unused(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect: the mistake would show only in the figures."""
    if hasattr(args, "noise_db"):
        why = "--noise-db chooses the values of each layer itself, without training"
        _refuse(args, tuple(_OF_STAGES), why)
    elif not args.steps:
        _refuse(args, ("sharing",), "without --fine-tune STEPS nothing is trained")
    else:
        _refuse(args, ("refit",), "with --fine-tune training takes the place of fitting")


def _refuse(args: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    unset = {"refit": True, "pruned": None, "begin": None, "steps": 0}
    given = [
        _OF_STAGES[name]
        for name in names
        if hasattr(args, name) and (name not in unset or getattr(args, name) != unset[name])
    ]
    if given:
        raise CompressionError(f"{', '.join(given)}: {why}")


def _print_noise(result: NoiseResult) -> None:
    rows = [
        (layer.name, str(layer.weights), f"{layer.zeros / layer.weights:.1%}", str(layer.values))
        for layer in result.layers
    ]
    show(result.model, ("layer", "weights", "zero", "values"), rows)
    say(
        f"{result.file}: {result.file_bytes} bytes, {result.ratio:.2f}x smaller than FP32, at "
        f"{result.noise_db:.2f} dB on {result.data} "
        f"(entropy of single codes: {result.bound_bytes:.0f} bytes)"
    )


def _print_stages(result: CompressResult) -> None:
    first = result.stages[0].bytes
    rows = [
        (
            stage.name,
            f"{stage.bytes}",
            f"{first / stage.bytes:.2f}x",
            "" if stage.map50 is None else f"{stage.map50 * 100:.2f}",
        )
        for stage in result.stages
    ]
    name = ", ".join([result.model, *result.labels])
    show(f"{name}: Deep Compression", ("stage", "bytes", "ratio", "mAP@.5 %"), rows)
    sections = ", ".join(f"{name} {size}" for name, size in result.sections.items())
    say(
        f"{result.file}: {sections} bytes; weights coded by {result.coding} "
        f"(entropy of single codes: {result.bound_bytes:.0f} bytes)"
    )
