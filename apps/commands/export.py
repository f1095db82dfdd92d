"""`export-engine` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from apps.commands import calibrate as calibrate_arguments
from apps.commands.options import (
    count,
    json_option,
    keep_options,
    model_options,
    share,
    size,
    words,
)
from apps.commands.search import print_search
from apps.commands.terminal import show
from edge.reporting import say

__all__ = ["arguments", "print_dla", "print_export", "run"]


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
    from export.pipeline import export_engine

    result = export_engine(
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
    print_export(result)
    return 0 if result["search"] is None or result["search"]["holds"] else 1


_SHOWN = 6


def print_dla(facts: dict[str, Any]) -> None:
    """How much of the network the DLA takes, and the first layers that it does not."""
    left = facts["left"]
    say(
        f"DLA core {facts['core']}: {facts['layers'] - len(left)} of {facts['layers']} layers; "
        f"its scales: {facts['cache']}"
    )
    if left:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(k for _, k in left).most_common())
        names = ", ".join(name for name, _ in left[:_SHOWN])
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        say(f"left to the GPU ({kinds}): {names}{more}; each switch between the two costs a copy")
    if facts["unscaled"]:
        say(f"without an INT8 scale: {', '.join(facts['unscaled'][:_SHOWN])}")


def print_export(result: dict[str, Any]) -> None:
    """What was made, as a table on stdout."""
    title = ", ".join([f"{result['model']} {result['precision'].upper()}", *result["labels"]])
    rows = [
        (kind, path, f"{Path(path).stat().st_size / 1e6:.2f}")
        for kind, path in result["files"].items()
    ]
    show(title, ("file", "path", "MB"), rows)
    calibration = result["calibration"]
    if calibration:
        say(
            f"scales: {calibration['method']} over {calibration['images']} images, "
            f"{calibration.get('equalised_tensors', 0)} tensors equalised, "
            f"{calibration.get('corrected_biases', 0)} biases corrected"
        )
    if result["search"]:
        print_search(result["search"])
    if result["scores"]:
        _print_scores(result["scores"])
    _print_engine(result)
    if result["verdict"]:
        say(f"verdict: {result['verdict']['sentence']}")


def _print_scores(scores: dict[str, Any]) -> None:
    say(
        f"score threshold: {scores['score']} fits best (F1 {scores['f1']:.3f}); FP32's "
        f"{scores['score_before']} would give {scores['f1_unchanged']:.3f}, and gives FP32 "
        f"{scores['f1_before']:.3f}"
    )


def _print_engine(result: dict[str, Any]) -> None:
    engine = result["engine"]
    if engine is None:
        say(f"no engine: {result['reason']}")
        return
    types = ", ".join(f"{count} {kind}" for kind, count in engine["convolutions"].items())
    say(
        f"engine: {engine['builder']} {engine['version']} ({engine['reason']}), "
        f"{engine['seconds']} s, peak memory {engine['peak_rss_mib']} MiB"
    )
    if "dla" in engine:
        print_dla(engine["dla"])
        return
    say(f"convolutions: {types}; layers: {engine['layers']}, {engine['reformats']} only move data")
    if engine["float_part"]:
        say(f"outside of INT8: {engine['float_part']['precision'].upper()}")
    if engine["sparse"]:
        say(f"two of four weights are zero in {len(engine['sparse'])} convolutions")
    for line in engine["sparsity"]:
        say(line)
    if result["precision"] in ("int8", "mixed") and engine["not_int8"]:
        say(f"not in INT8: {', '.join(engine['not_int8'])}")
