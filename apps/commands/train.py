"""`edge train` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from apps.commands.options import add_options, count, json_option, read_options
from apps.commands.qat import print_qat
from apps.commands.terminal import show
from edge.errors import DataError
from edge.files import write_json
from edge.optional import require
from edge.reporting import say
from edge.train.options import TrainOptions
from edge.train.results import OVERFIT_MAP50, EpochRecord, TrainResult
from export.qat.options import QatOptions, QatResult

__all__ = ["arguments", "print_training", "run"]

_SHOWN_EPOCHS = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge train`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="built-in or zoo name, .cfg (random weights if none are beside it), .safetensors, "
        ".npz, or the .json of a SqueezeDet",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="labelled pictures to learn from: VOC, COCO, YOLO or KITTI folder, a COCO json, a VOC "
        "split, obj.data, data.yaml, a list of pictures, or scenes://?seed=S",
    )
    add_options(parser, TrainOptions)
    parser.add_argument(
        "--qat",
        type=count,
        default=0,
        metavar="N",
        help="afterwards train N steps with INT8 convolutions, as edge qat --labels does; needs "
        "--val",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Train and print; return 1 when `--overfit` fails or `--qat` gains nothing."""
    options = read_options(args, TrainOptions)
    if args.qat and options.val is None:
        raise DataError("--qat changes the heads; to judge it give --val FOLDER")
    require("torch")
    from edge.train.training import train

    result = train(args.model, args.data, options, command=shlex.join(("edge", *sys.argv[1:])))
    if result.rank:
        return 0
    print_training(result)
    facts, failed = result.to_json(), result.overfits is False
    try:
        if args.qat and not failed:
            quantized = _quantized(args.data, args.qat, options, result)
            print_qat(quantized)
            facts["qat"], failed = quantized, not quantized.better
    finally:
        write_json(facts, args.json)
    return int(failed)


def _quantized(data: str, steps: int, options: TrainOptions, result: TrainResult) -> QatResult:
    from export.qat.run import qat

    trained = Path(options.output) / f"{result.model}.safetensors"
    chosen = QatOptions(
        steps=steps,
        labels=True,
        val=options.val,
        allow_overlap=options.allow_overlap,
        seed=options.seed,
        output=options.output,
    )
    return qat(trained, data, chosen)


def print_training(result: TrainResult) -> None:
    """Print the last and the best epochs, the files, and the verdict of `--overfit`."""
    shown = list(result.history[-_SHOWN_EPOCHS:])
    if result.best is not None and result.best not in shown:
        shown = [result.best, *shown]
    names = list(shown[0].loss) if shown else []
    title = f"{result.model}: {result.steps} steps; {result.ended}"
    rows = [_row(record, names, record == result.best) for record in shown]
    show(title, ("epoch (* best)", "step", *names, "mAP@.5 %"), rows)
    say("written: " + ", ".join(result.files))
    if result.overfits is not None:
        verdict = (
            "learns its pictures by heart"
            if result.overfits
            else (
                f"stays under {OVERFIT_MAP50:.0%} mAP@.5 on the pictures it learns: look at "
                "labels, anchors and learning rate before training on more, or give it more --steps"
            )
        )
        say(f"overfit check: {verdict}")


def _row(record: EpochRecord, names: list[str], best: bool) -> tuple[str, ...]:
    return (
        f"{record.epoch}{' *' if best else ''}",
        str(record.step),
        *(f"{record.loss[name]:.4f}" for name in names),
        "-" if record.map50 is None else f"{100 * record.map50:.2f}",
    )
