"""`edge share`: reduce each layer to a few weight values, and write a package."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from apps.commands.compress import package_arguments
from apps.commands.options import add_options, json_option, read_options
from apps.commands.terminal import show
from edge.compress.options import ShareOptions
from edge.files import write_json
from edge.reporting import say

if TYPE_CHECKING:
    from export.compress.share import ShareResult

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge share`."""
    package_arguments(parser)
    add_options(parser, ShareOptions)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run `edge share`."""
    from export.compress.share import share

    result = share(args.model, args.data, read_options(args, ShareOptions))
    write_json(result, args.json)
    _print(result)
    return 0


def _print(result: ShareResult) -> None:
    rows = [
        (
            layer.name,
            str(layer.weights),
            str(layer.levels),
            f"{layer.rate:.2f}x",
            f"{layer.noise_db:.1f}",
        )
        for layer in result.layers
    ]
    show(result.model, ("layer", "weights", "values", "rate", "signal to noise, dB"), rows)
    say(f"{result.file}: {result.file_bytes} bytes, {result.rate:.2f}x smaller than FP32")
    if result.map50:
        before, after = result.map50
        say(f"mAP@.5 {before:.2%} before, {after:.2%} after")
