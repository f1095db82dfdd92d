"""`edge qat` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands.options import add_options, json_option, read_options
from apps.commands.terminal import show
from edge.files import write_json
from edge.optional import require
from edge.reporting import say
from export.qat.options import QatOptions, QatResult

__all__ = ["arguments", "print_qat", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge qat`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="NAME.fp32.onnx, or what export-engine takes: a zoo name, .cfg, .npz, .safetensors",
    )
    parser.add_argument("--data", metavar="DIR", required=True, help="pictures to learn from")
    add_options(parser, QatOptions)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Train and print; return 0 where INT8 gained, 1 where it did not."""
    options = read_options(args, QatOptions)
    require("torch")
    from export.qat.run import qat

    result = qat(args.model, args.data, options)
    write_json(result, args.json)
    print_qat(result)
    return 0 if result.better else 1


def print_qat(result: QatResult) -> None:
    """Print the files, and what was gained."""
    rows = [
        (kind, path, f"{Path(path).stat().st_size / 1e6:.2f}")
        for kind, path in result.files.items()
    ]
    title = f"{result.model}: {result.steps} steps on {result.images} images"
    show(title, ("file", "path", "MB"), rows)
    say(
        f"signal to noise of the heads on {result.held} images held back: "
        f"{result.ptq_db:.1f} dB before, {result.qat_db:.1f} dB now"
    )
    if result.map50:
        fp32, ptq, qat = (f"{result.map50[kind]:.3f}" for kind in ("fp32", "ptq", "qat"))
        say(f"mAP@.5 on --val: FP32 {fp32}, INT8 before {ptq}, now {qat}")
    if not result.better:
        say("INT8 did not gain: keep the file from before, or give more images and a lower --rate")
