"""`edge train` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands.options import count, json_option, size
from apps.commands.terminal import show
from edge.errors import DataError
from edge.reporting import say
from edge.train.journal import OVERFIT_MAP50

if TYPE_CHECKING:
    from edge.train.recipe import Recipe

__all__ = ["arguments", "print_training", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge train`."""
    _start(parser)
    _length(parser)
    _method(parser)
    _checks(parser)
    parser.add_argument(
        "-o", "--output", default="out", metavar="DIR", help="folder of the files (%(default)s)"
    )
    parser.add_argument("--name", metavar="N", help="of the files, in place of the model's")
    json_option(parser)


def _start(parser: argparse.ArgumentParser) -> None:
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
        help="VOC, COCO, YOLO or KITTI folder, a COCO json, a VOC split, or scenes://?seed=S",
    )
    parser.add_argument("--val", metavar="D", help="the same, for validation after each epoch")
    parser.add_argument("--images", type=count, metavar="N", help="at most so many of --data")
    parser.add_argument("--val-images", type=count, metavar="N", help="the same of --val")
    parser.add_argument(
        "--weights",
        metavar="F",
        help="begin with these from the input upwards, up to the first layer that does not fit: "
        "zoo name, .safetensors, .npz, .weights, or a SqueezeNet's .net",
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="of a built-in model, not the shipped ones"
    )
    parser.add_argument("--names", metavar="F", help="class names, one on a line")
    parser.add_argument(
        "--resize", choices=("letterbox", "stretch"), help="how frames are fitted into the input"
    )
    parser.add_argument("--size", type=size, metavar="HxW", help="input size, not the cfg's")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (%(default)s)")


def _length(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs", type=count, default=50, metavar="N", help="passes over --data (%(default)s)"
    )
    parser.add_argument("--steps", type=count, metavar="N", help="in place of epochs")
    parser.add_argument(
        "--epoch-steps", type=count, metavar="N", help="what counts as an epoch (every picture)"
    )
    parser.add_argument(
        "--batch", type=count, default=16, metavar="N", help="pictures of a step (%(default)s)"
    )
    parser.add_argument(
        "--peak", type=float, default=2e-3, metavar="R", help="highest learning rate (%(default)s)"
    )
    parser.add_argument("--warmup", type=int, metavar="N", help="steps up to it (a twentieth)")
    parser.add_argument(
        "--drops",
        metavar="E:S,...",
        help="from epoch E on the share S of the peak, such as 30:0.1,60:0.01 (half a cosine)",
    )
    parser.add_argument(
        "--epoch-rate", action="store_true", help="hold the learning rate through each epoch"
    )
    parser.add_argument(
        "--patience",
        type=count,
        default=0,
        metavar="N",
        help="stop after N epochs without a better mAP@.5 on --val",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in the output folder"
    )


def _method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--loss",
        choices=("ciou", "published"),
        default="ciou",
        help="complete IoU, or as the papers have it (%(default)s)",
    )
    parser.add_argument(
        "--optimizer",
        choices=("adamw", "sgd"),
        default="adamw",
        help="what moves the weights (%(default)s; sgd: momentum 0.9)",
    )
    parser.add_argument(
        "--decay", type=float, default=1e-4, metavar="D", help="of weights (%(default)s)"
    )
    parser.add_argument(
        "--average", type=float, default=0.998, metavar="A", help="of weights (%(default)s)"
    )
    parser.add_argument(
        "--balance", action="store_true", help="weigh classes by their rarity in --data"
    )
    parser.add_argument("--multi-scale", action="store_true", help="another size every ten steps")
    parser.add_argument(
        "--augment",
        metavar="K=V,...",
        help="such as mosaic=0,degrees=10,scale=0.8:1.2; none: resize only",
    )
    parser.add_argument(
        "--freeze", type=count, default=0, metavar="N", help="keep the first N layers as they are"
    )
    parser.add_argument("--freeze-norm", action="store_true", help="keep every batch norm as it is")
    parser.add_argument(
        "--qat",
        type=count,
        default=0,
        metavar="N",
        help="and then N steps with INT8 convolutions, as edge qat --labels; needs --val",
    )


def _checks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overfit",
        type=count,
        default=0,
        metavar="N",
        help="learn N pictures by heart, a check of labels and anchors; status 1 if it cannot",
    )
    parser.add_argument("--tensorboard", metavar="DIR", help="write event files there")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="what trains (%(default)s: a GPU where there is one)",
    )
    parser.add_argument("--threads", type=count, metavar="N", help="of torch on the CPU")
    parser.add_argument("--bfloat16", action="store_true", help="forward pass under autocast")
    parser.add_argument(
        "--keep-mib",
        type=count,
        default=4096,
        metavar="M",
        help="memory for pictures; the rest is read each time (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Train and print; 1 when `--overfit` fails or `--qat` gains nothing."""
    from edge.train.training import train

    if args.qat and args.val is None:
        raise DataError("--qat moves the heads; to judge it give --val FOLDER")
    result = train(
        args.model,
        args.data,
        val=args.val,
        recipe=_recipe(args),
        output=args.output,
        name=args.name,
        weights=args.weights,
        names=args.names,
        resize=args.resize,
        hw=args.size,
        random_weights=args.random_weights,
        images=args.images,
        val_images=args.val_images,
        overfit=args.overfit,
        patience=args.patience,
        resume=args.resume,
        tensorboard=args.tensorboard,
        device=args.device,
        threads=args.threads,
        keep_mib=args.keep_mib,
        command=shlex.join(("edge", *sys.argv[1:])),
        json_path=args.json,
    )
    if result["rank"] == 0:
        print_training(result)
    failed = result.get("overfits") is False
    if args.qat and result["rank"] == 0 and not failed:
        failed = not _quantized(args, _trained(result))
    return int(failed)


def _trained(result: dict[str, Any]) -> str:
    wanted = f"{result['model']}.safetensors"
    files: list[str] = result["files"]
    return next(file for file in files if Path(file).name == wanted)


def _quantized(args: argparse.Namespace, trained: str) -> bool:
    from apps.commands.qat import print_qat
    from export.qat.run import qat

    result = qat(
        trained,
        args.data,
        steps=args.qat,
        labels=True,
        val=args.val,
        seed=args.seed,
        output=args.output,
    )
    print_qat(result)
    return bool(result["better"])


def _recipe(args: argparse.Namespace) -> Recipe:
    from edge.train.augment import Augmentation
    from edge.train.recipe import Recipe, changed
    from edge.train.schedule import read_drops

    augmentation: Augmentation | None = Augmentation()
    try:
        drops = read_drops(args.drops) if args.drops else ()
        if args.augment == "none":
            augmentation = None
        elif args.augment:
            augmentation = changed(Augmentation(), args.augment)
    except ValueError as error:
        raise DataError(f"edge train: {error}") from error
    return Recipe(
        epochs=args.epochs,
        steps=args.steps,
        epoch_steps=args.epoch_steps,
        batch=args.batch,
        seed=args.seed,
        peak=args.peak,
        warmup=args.warmup,
        decay=args.decay,
        average=args.average,
        optimizer=args.optimizer,
        drops=drops,
        epoch_rate=args.epoch_rate,
        bfloat16=args.bfloat16,
        loss=args.loss,
        balance=args.balance,
        augmentation=augmentation,
        scales=args.multi_scale,
        freeze=args.freeze,
        freeze_norm=args.freeze_norm,
    )


def print_training(result: dict[str, Any], last: int = 10) -> None:
    """The last and the best epochs as a table, the files, and the verdict of `--overfit`."""
    shown = result["history"][-last:]
    if result["best"] is not None and result["best"] not in shown:
        shown = [result["best"], *shown]
    names = list(shown[0]["loss"]) if shown else []
    rows = [
        (
            f"{entry['epoch']}{' *' if entry == result['best'] else ''}",
            str(entry["step"]),
            *(f"{entry['loss'][name]:.4f}" for name in names),
            f"{100 * entry['map50']:.2f}" if "map50" in entry else "-",
        )
        for entry in shown
    ]
    title = f"{result['model']}: {result['steps']} steps; {result['ended']}"
    show(title, ("epoch (* best)", "step", *names, "mAP@.5 %"), rows)
    say("written: " + ", ".join(result["files"]))
    if "overfits" in result:
        verdict = (
            "learns its pictures by heart"
            if result["overfits"]
            else (
                f"stays under {OVERFIT_MAP50:.0%} mAP@.5 on the pictures it learns: look at "
                "labels, anchors and learning rate before training on more, or give it more --steps"
            )
        )
        say(f"overfit check: {verdict}")
