"""`edge qat` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apps.commands.options import count, json_option, positive, words
from apps.commands.terminal import show
from edge.reporting import say

__all__ = ["arguments", "print_qat", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge qat`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="NAME.fp32.onnx, or what export-engine takes: a zoo name, .cfg, .npz, .safetensors",
    )
    parser.add_argument("--data", metavar="DIR", required=True, help="pictures to learn from")
    parser.add_argument(
        "--images",
        type=count,
        default=256,
        metavar="N",
        help="at most so many, spread evenly; one in eight is held back to judge by (%(default)s)",
    )
    parser.add_argument(
        "--table",
        metavar="F",
        help="start from this NAME.calib.json; left out: calibrate on the pictures",
    )
    parser.add_argument(
        "--steps", type=count, default=1000, metavar="N", help="of training (%(default)s)"
    )
    parser.add_argument(
        "--batch", type=count, default=4, metavar="N", help="pictures of a step (%(default)s)"
    )
    parser.add_argument(
        "--rate",
        type=positive,
        default=0.01,
        metavar="R",
        help="highest learning rate, in steps of a weight's INT8 scale (%(default)s)",
    )
    parser.add_argument(
        "--calibrated-scales",
        action="store_true",
        help="only weights and biases learn; scales stay as the table has them",
    )
    parser.add_argument(
        "--labels",
        action="store_true",
        help="learn from the pictures' boxes, as edge train does, in place of the FP32 network",
    )
    parser.add_argument(
        "--val", metavar="DIR", help="labelled pictures: mAP of FP32, INT8 before and INT8 now"
    )
    parser.add_argument(
        "--keep",
        type=words,
        default=[],
        metavar="NAMES",
        help="convolutions that stay out of INT8, with commas between",
    )
    parser.add_argument("--resize", choices=("letterbox", "stretch"), help="of a model's training")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures' order (%(default)s)")
    parser.add_argument(
        "-o", "--output", default="out", metavar="DIR", help="folder of the files (%(default)s)"
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge qat`: 0 where INT8 gained, 1 where it did not."""
    from export.qat.run import qat

    result = qat(
        args.model,
        args.data,
        images=args.images,
        table=args.table,
        steps=args.steps,
        batch=args.batch,
        rate=args.rate,
        learn_scales=not args.calibrated_scales,
        labels=args.labels,
        val=args.val,
        keep=args.keep,
        resize=args.resize,
        seed=args.seed,
        output=args.output,
        json_path=args.json,
    )
    print_qat(result)
    return 0 if result["better"] else 1


def print_qat(result: dict[str, Any]) -> None:
    """The files, and what was gained."""
    rows = [
        (kind, path, f"{Path(path).stat().st_size / 1e6:.2f}")
        for kind, path in result["files"].items()
    ]
    title = f"{result['model']}: {result['steps']} steps on {result['images']} images"
    show(title, ("file", "path", "MB"), rows)
    before, after = result["ptq_db"], result["qat_db"]
    say(
        f"signal to noise of the heads on {result['held']} images held back: "
        f"{before:.1f} dB before, {after:.1f} dB now"
    )
    if result["map50"]:
        fp32, ptq, qat = (f"{result['map50'][kind]:.3f}" for kind in ("fp32", "ptq", "qat"))
        say(f"mAP@.5 on --val: FP32 {fp32}, INT8 before {ptq}, now {qat}")
    if not result["better"]:
        say("INT8 did not gain: keep the file from before, or give more images and a lower --rate")
