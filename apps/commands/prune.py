"""`edge prune`: remove channels until a time, size or accuracy target is met."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from apps.commands.options import add_options, inner_share, json_option, positive, read_options
from apps.commands.terminal import show
from edge.compress.options import PruneOptions, PruneTarget, milliseconds
from edge.files import write_json
from edge.reporting import say

if TYPE_CHECKING:
    from export.compress.prune import PruneResult

__all__ = ["arguments", "model_and_data", "print_files", "print_stages", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge prune`."""
    model_and_data(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    for flag, metavar, check, text in (
        (
            "--target-ms",
            "MS",
            _milliseconds,
            "reach this many milliseconds of a frame in onnxruntime on this machine, or this part "
            "of the present time, such as 50%%",
        ),
        (
            "--target-fps",
            "FPS",
            lambda text: PruneTarget("ms", 1000 / positive(text)),
            "reach this many frames a second, measured in the same way",
        ),
        (
            "--target-mb",
            "MB",
            lambda text: PruneTarget("mb", positive(text)),
            "reach this size of the FP32 ONNX file",
        ),
        (
            "--ratio",
            "R",
            lambda text: PruneTarget("ratio", inner_share(text)),
            "remove this share of the channels",
        ),
        (
            "--max-map-drop",
            "POINTS",
            lambda text: PruneTarget("drop", positive(text)),
            "prune as far as possible while losing at most POINTS of mAP@.5, such as 1 for a "
            "hundredth; each trial is fine-tuned",
        ),
    ):
        target.add_argument(flag, dest="target", type=check, metavar=metavar, help=text)
    add_options(target, PruneOptions, only=("plan",))
    add_options(parser, PruneOptions, leave_out=("plan",))
    json_option(parser)


def _milliseconds(text: str) -> PruneTarget:
    try:
        return milliseconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def model_and_data(parser: argparse.ArgumentParser) -> None:
    """Add the model and the images that it is judged on."""
    parser.add_argument(
        "model", metavar="MODEL", help="built-in or zoo name, .cfg, .npz or .safetensors"
    )
    parser.add_argument(
        "--data",
        metavar="D",
        help="labelled images to judge by (scenes of the built-in world for a built-in model)",
    )


def run(args: argparse.Namespace) -> int:
    """Run `edge prune`."""
    from export.compress.prune import prune

    result = prune(args.model, args.data, read_options(args, PruneOptions))
    write_json(result, args.json)
    print_stages(result, f"{result.name} on {result.images} images of {result.data}")
    print_files(result)
    return 0


def print_stages(result: PruneResult, title: str) -> None:
    """Print the plan and the stages as tables."""
    show("channels", ("convolution", "before", "after"), result.plan)
    columns = ("stage", "mAP@.5 %", "mAP@.5:.95 %", "false / image", "MB", "ms")
    rows = [
        (
            stage.name,
            f"{stage.facts.map50 * 100:.2f}",
            f"{stage.facts.map50_95 * 100:.2f}",
            f"{stage.facts.false_positives:.3f}",
            f"{stage.facts.megabytes:.3f}",
            f"{stage.ms:.2f}",
        )
        for stage in result.stages
    ]
    show(title, columns, rows)
    last, before = result.stages[-1], result.stages[-2]
    if last.name == "fine-tuned" and last.facts.map50 < before.facts.map50:
        say("fine-tuning lowered mAP@.5: take a lower --peak, more steps or more images")


def print_files(result: PruneResult) -> None:
    """Print warnings and the files that were written."""
    for warning in result.warnings:
        say(warning)
    if result.train == result.data:
        say("trained and judged on the same images, so mAP is too high: give others with --train")
    say("wrote " + ", ".join(result.files.values()))
