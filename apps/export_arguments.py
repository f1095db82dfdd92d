"""`export-engine` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from apps import calibrate_arguments
from apps.argument_types import count, share, size, words
from apps.shared_options import json_option, keep_options, model_options

__all__ = ["arguments", "run"]


def _guard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-map-drop",
        type=share,
        metavar="D",
        help="mAP@.5 that INT8 may lose, such as 0.005: keeps in FP16 what that takes",
    )
    parser.add_argument(
        "--accuracy-data",
        metavar="DIR",
        help="labelled images for --max-map-drop, the verdict and the score threshold",
    )
    parser.add_argument("--no-verdict", action="store_true", help="do not measure INT8 beside FP16")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `export-engine`."""
    parser.add_argument(
        "model",
        nargs="?",
        default="tiny-yolo-scenes",
        metavar="MODEL",
        help="built-in or zoo name, .cfg (weights beside it), .onnx, .npz, .safetensors, .edgez; "
        "left out: the built-in Tiny-YOLO",
    )
    precision = parser.add_mutually_exclusive_group()
    for name, text in (
        ("int8", "Q/DQ graph at calibrated scales"),
        ("fp16", "half precision (default)"),
        ("fp32", "single precision"),
    ):
        precision.add_argument(
            f"--{name}", action="store_const", const=name, dest="precision", help=text
        )
    model_options(parser)
    parser.add_argument(
        "--calib",
        metavar="DIR",
        help="calibration images, or a .calib.json of this model; left out: built-in scenes",
    )
    calibrate_arguments.recipe_options(parser)
    keep_options(parser)
    _guard(parser)
    parser.add_argument(
        "--builder",
        choices=("auto", "tensorrt", "rtx", "none"),
        default="auto",
        help="what builds the engine (%(default)s: what is there)",
    )
    parser.add_argument(
        "--workspace", type=count, metavar="MIB", help="scratch memory of the builder, MiB"
    )
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="sparse kernels where two of every four weights are zero: edge compress --two-four",
    )
    parser.add_argument(
        "--int8-float",
        choices=("fp16", "fp32"),
        default="fp16",
        help="what an INT8 engine computes outside of INT8 (%(default)s)",
    )
    parser.add_argument(
        "--dla",
        type=int,
        metavar="CORE",
        help="build for this core of a Jetson's DLA (TensorRT 10.7 or older; JetPack 6 has 10.3)",
    )
    parser.add_argument(
        "--targets", type=words, default=[], metavar="SM", help="for rtx: SM86,SM89; default all"
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="no weights needed: honest for speed, labelled so everywhere",
    )
    parser.add_argument("--seed", type=int, default=0, help="of random weights (%(default)s)")
    parser.add_argument(
        "--size", type=size, metavar="HxW", help="input size, in place of the cfg's"
    )
    parser.add_argument(
        "-o", "--output", default="out", metavar="DIR", help="folder of the files (%(default)s)"
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`export-engine`: 1 where a budget was asked for and does not hold, else 0."""
    app = import_module("apps.exporting")
    result = app.export_engine(
        args.model,
        precision=args.precision,
        weights=args.weights,
        names=args.names,
        resize=args.resize,
        calib=args.calib,
        images=args.images,
        method=args.method,
        equalise=not args.no_equalise,
        bias_correction=not args.no_bias_correction,
        adaround=args.adaround,
        keep=args.keep,
        max_map_drop=args.max_map_drop,
        accuracy_data=args.accuracy_data,
        precision_map=args.precision_map,
        verdict=not args.no_verdict,
        builder=args.builder,
        workspace_mib=args.workspace,
        targets=args.targets,
        sparse=args.sparse,
        int8_float=args.int8_float,
        dla=args.dla,
        random_weights=args.random_weights,
        seed=args.seed,
        hw=args.size,
        output=args.output,
        json_path=args.json,
    )
    app.print_export(result)
    return 0 if result["search"] is None or result["search"]["holds"] else 1
