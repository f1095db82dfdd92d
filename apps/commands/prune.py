"""`edge prune` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from apps.commands.options import count, inner_share, json_option, model_options, positive
from apps.commands.terminal import show
from edge.reporting import say

__all__ = [
    "arguments",
    "choice_arguments",
    "fine_tuning",
    "model_arguments",
    "print_pruning",
    "print_stages",
    "run",
    "tuning_arguments",
]


def _milliseconds(text: str) -> tuple[str, float]:
    if text.endswith("%"):
        return "share", inner_share(str(float(text[:-1]) / 100))
    return "ms", positive(text)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge prune`."""
    model_arguments(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--target-ms",
        type=_milliseconds,
        metavar="MS",
        help="milliseconds of a frame in onnxruntime here, or a part of what it takes now: 50%%",
    )
    target.add_argument("--target-fps", type=positive, metavar="FPS", help="the same, as a rate")
    target.add_argument("--target-mb", type=positive, metavar="MB", help="of the FP32 ONNX file")
    target.add_argument(
        "--ratio", type=inner_share, metavar="R", help="share of channels to remove"
    )
    target.add_argument(
        "--max-map-drop",
        type=positive,
        metavar="POINTS",
        help="as narrow as so many points of mAP@.5 allow, such as 1 for a "
        "hundredth; each trial is fine-tuned",
    )
    target.add_argument("--plan", metavar="F", help="replay the plan of an earlier run")
    parser.add_argument(
        "--begin",
        metavar="F",
        help="with --plan: its .safetensors, to train it further",
    )
    parser.add_argument(
        "--importance",
        choices=("taylor", "l1", "gamma", "dissection"),
        default="taylor",
        help="what a channel is worth (%(default)s)",
    )
    parser.add_argument(
        "--spread",
        choices=("global", "layer"),
        default="global",
        help="channels from wherever they cost least, or one share of every layer (%(default)s)",
    )
    parser.add_argument(
        "--least", type=inner_share, default=0.2, metavar="S", help="of a layer stays (%(default)s)"
    )
    choice_arguments(parser, untouched=0)
    tuning_arguments(parser)


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images and the files."""
    parser.add_argument(
        "model", metavar="MODEL", help="built-in or zoo name, .cfg, .npz or .safetensors"
    )
    model_options(parser)
    parser.add_argument(
        "--data",
        metavar="D",
        help="labelled images to judge by; built-in models have their scenes without it",
    )
    parser.add_argument(
        "--train", metavar="D", help="labelled images to learn from; else scenes, or --data"
    )
    parser.add_argument(
        "--images", type=count, metavar="N", help="judge by at most so many, spread evenly"
    )
    parser.add_argument(
        "-o", "--output", default="out", metavar="DIR", help="folder of the files (%(default)s)"
    )
    parser.add_argument("--name", metavar="NAME", help="stem of the files")
    json_option(parser)


def choice_arguments(parser: argparse.ArgumentParser, untouched: int) -> None:
    """How channels are chosen."""
    parser.add_argument(
        "--align",
        type=count,
        default=8,
        metavar="N",
        help="widths are multiples of it; 32 for INT8 tensor cores (%(default)s)",
    )
    parser.add_argument(
        "--untouched",
        type=int,
        default=untouched,
        metavar="N",
        help="the first so many convolutions stay as they are (%(default)s)",
    )
    parser.add_argument(
        "--profile-images",
        type=count,
        default=128,
        metavar="N",
        help="training images that measure importance and fit weights (%(default)s)",
    )
    parser.add_argument(
        "--no-refit",
        action="store_true",
        help="do not fit the weights that are left to the full network's outputs",
    )
    parser.add_argument(
        "--table", metavar="F", help="a latency table measured on another machine, taken as it is"
    )
    parser.add_argument(
        "--threads", type=count, default=1, metavar="N", help="of onnxruntime (%(default)s)"
    )


def tuning_arguments(parser: argparse.ArgumentParser) -> None:
    """How the small network is trained."""
    parser.add_argument(
        "--fine-tune", type=count, metavar="STEPS", help="train so long; left out: not at all"
    )
    parser.add_argument(
        "--batch", type=count, default=16, metavar="N", help="pictures of a step (%(default)s)"
    )
    parser.add_argument(
        "--peak",
        type=positive,
        metavar="R",
        help="learning rate (1e-3, without batch norms 1e-4)",
    )
    parser.add_argument(
        "--teacher",
        type=float,
        default=1.0,
        metavar="W",
        help="weight of what the full network says in the loss; 0: labels alone (%(default)s)",
    )
    parser.add_argument(
        "--no-labels", action="store_true", help="learn from the full network alone"
    )
    parser.add_argument(
        "--no-flip", action="store_true", help="no mirror images, for objects with writing on them"
    )
    parser.add_argument(
        "--augment",
        choices=("mild", "strong"),
        default="mild",
        help="how pictures are changed; strong, as edge train does, for few of them (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of pictures and their changes (%(default)s)"
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="faster training where the CPU has AMX or AVX-512 BF16",
    )


def fine_tuning(args: argparse.Namespace) -> Any:
    """The `FineTuning` of the options, None without --fine-tune."""
    from edge.compress.finetune import FineTuning

    if args.fine_tune is None:
        return None
    return FineTuning(
        args.fine_tune,
        batch=args.batch,
        peak=args.peak,
        teacher=args.teacher,
        labels=not args.no_labels,
        flip=0.0 if args.no_flip else 0.5,
        augment=args.augment,
        seed=args.seed,
        bfloat16=args.bfloat16,
    )


def run(args: argparse.Namespace) -> int:
    """`edge prune`."""
    from export.compress.channels import Choice
    from export.compress.prune import prune

    result = prune(
        args.model,
        args.data,
        target=_target(args),
        max_drop=args.max_map_drop,
        plan=args.plan,
        train=args.train,
        choice=Choice(
            importance=args.importance,
            spread=args.spread,
            align=args.align,
            least=args.least,
            untouched=args.untouched,
            images=args.profile_images,
            refit=not args.no_refit,
            threads=args.threads,
            table=args.table,
        ),
        begin=args.begin,
        tuning=fine_tuning(args),
        images=args.images,
        output=args.output,
        name=args.name,
        json_path=args.json,
        weights=args.weights,
        names=args.names,
        resize=args.resize,
    )
    print_pruning(result)
    return 0


def _target(args: argparse.Namespace) -> Any:
    from edge.compress.channels.pruner import Target

    target = Target
    if args.target_ms is not None:
        return target(*args.target_ms)
    if args.target_fps is not None:
        return target("ms", 1000 / args.target_fps)
    if args.target_mb is not None:
        return target("mb", args.target_mb)
    return target("ratio", args.ratio) if args.ratio is not None else None


def print_stages(title: str, stages: Sequence[dict[str, Any]]) -> None:
    """The table of stages on stdout."""
    columns = ("stage", "mAP@.5 %", "mAP@.5:.95 %", "false / image", "MB", "ms")
    rows = [
        (
            stage["name"],
            f"{stage['map50'] * 100:.2f}",
            f"{stage['map50_95'] * 100:.2f}",
            f"{stage['false_positives']:.3f}",
            f"{stage['megabytes']:.3f}",
            f"{stage['ms']:.2f}",
        )
        for stage in stages
    ]
    show(title, columns, rows)
    last, before = stages[-1], stages[-2]
    if last["map50"] < before["map50"] and last["name"] == "fine-tuned":
        say("fine-tuning made it worse: take a lower --peak, more steps or more images")


def print_pruning(result: dict[str, Any]) -> None:
    """Stages and plan as tables on stdout."""
    show("channels", ("convolution", "before", "after"), result["plan"])
    title = f"{result['name']} on {result['images']} images of {result['data']}"
    print_stages(title, result["stages"])
    if result["train"] == result["data"]:
        say("trained and judged on the same images: give others with --train")
    say("wrote " + ", ".join(result["files"].values()))
