"""`edge qat` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.argument_types import count, positive, words
from apps.shared_options import json_option

__all__ = ["arguments", "run"]


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
    app = import_module("apps.qat")
    result = app.qat(
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
    app.print_qat(result)
    return 0 if result["better"] else 1
