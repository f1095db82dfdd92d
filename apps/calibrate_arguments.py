"""`edge calibrate` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps.argument_types import count, target
from apps.shared_options import json_option
from edge.errors import CalibrationError

__all__ = ["arguments", "recipe_options", "run"]


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """How scales are made; `edge export-engine` has the same."""
    add = parser.add_argument
    add("--images", type=count, default=200, metavar="N", help="calibration images (%(default)s)")
    add(
        "--method",
        choices=("mse", "percentile", "entropy", "minmax", "best"),
        default="mse",
        help="how a tensor's clipping threshold is chosen (%(default)s); best: every way is "
        "measured on images held back, which takes minutes",
    )
    add(
        "--no-equalise",
        action="store_true",
        help="leave the channels' ranges as they are (INT8 of depthwise networks suffers)",
    )
    add(
        "--no-bias-correction",
        action="store_true",
        help="leave the mean error of rounding in the biases",
    )
    add(
        "--adaround",
        action="store_true",
        help="round each weight as its layer's output wants it; kept if the heads gain (minutes)",
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge calibrate`."""
    add = parser.add_argument
    add("onnx", nargs="?", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    add("--data", metavar="DIR", help="pictures; left out: built-in scenes")
    recipe_options(parser)
    add("-o", "--output", type=target(".json"), metavar="F", help="the table (NAME.calib.json)")
    add("--fresh", action="store_true", help="measure even if the table there is up to date")
    add(
        "--choose",
        type=count,
        metavar="N",
        help="choose N pictures of --data, which may be a video or a camera here, by the ranges "
        "and classes they reach, and calibrate on them",
    )
    add("--pictures", metavar="DIR", help="where --choose puts them (NAME.calib)")
    add("--not-in", metavar="DIR", help="evaluation set, of which no picture may be used")
    add("--allow-overlap", action="store_true", help="use them all the same")
    add("--stability", action="store_true", help="how far the scales depend on the pictures")
    add("--svg", type=target(), metavar="F", help="draw that there")
    add("--diff", nargs=2, metavar=("A", "B"), help="what differs between two tables; no ONNX")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge calibrate`: 0; 2 on what the user can mend."""
    app = import_module("apps.calibrating")
    if args.diff:
        app.diff_command(*args.diff, json_path=args.json)
        return 0
    if args.onnx is None:
        raise CalibrationError("edge calibrate takes NAME.fp32.onnx, or --diff A B")
    recipe = app.Recipe(
        args.images,
        args.method,
        not args.no_equalise,
        not args.no_bias_correction,
        args.adaround,
    )
    app.calibrate_command(
        args.onnx,
        args.data,
        recipe=recipe,
        output=args.output,
        choose=args.choose,
        folder=args.pictures,
        not_in=args.not_in,
        allow_overlap=args.allow_overlap,
        stability=args.stability,
        svg=args.svg,
        fresh=args.fresh,
        json_path=args.json,
    )
    return 0
