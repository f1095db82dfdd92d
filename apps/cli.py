"""The command line: from a command's name to a function in another file, imported when it runs."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import edge
from apps import (
    anchors_arguments,
    bench_arguments,
    calibrate_arguments,
    camera_arguments,
    compress_arguments,
    dissect_arguments,
    prune_arguments,
    qat_arguments,
    regression_arguments,
    search_arguments,
    sensitivity_arguments,
    train_arguments,
    verify_arguments,
)
from apps.argument_types import count, share, size, words
from edge.errors import EdgeError

__all__ = ["export_engine", "main"]

Arguments = argparse.ArgumentParser


def _json(parser: Arguments) -> None:
    parser.add_argument("--json", metavar="F", help="write the result there as JSON too")


def _thresholds(parser: Arguments, score: float | None) -> None:
    parser.add_argument(
        "--score",
        type=share,
        default=score,
        metavar="S",
        help=f"leave out lower scores ({score or 'what was fitted to the artifact, or 0.25'})",
    )
    parser.add_argument(
        "--iou",
        type=share,
        default=0.45,
        metavar="I",
        help="boxes of one class that overlap more count as one (%(default)s)",
    )


def _keep(parser: Arguments) -> None:
    parser.add_argument(
        "--keep",
        type=words,
        default=[],
        metavar="NAMES",
        help="convolutions that stay out of INT8: first, heads or names, with commas between",
    )
    parser.add_argument(
        "--precision-map", metavar="F", help="keep the layers that an earlier search kept"
    )


def _guard(parser: Arguments) -> None:
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


def _threads(parser: Arguments, default: int | None = None) -> None:
    parser.add_argument(
        "--threads", type=count, default=default, metavar="N", help="CPU threads of onnxruntime"
    )


def _exact(parser: Arguments) -> None:
    parser.add_argument(
        "--fast-int8",
        action="store_true",
        help="onnxruntime's INT8 kernels, which round a little differently, in place of the Q/DQ "
        "graph as TensorRT computes it",
    )


def _export_arguments(parser: Arguments) -> None:
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
    parser.add_argument("--weights", metavar="F", help="Darknet weights, if not beside the cfg")
    parser.add_argument("--names", metavar="F", help="class names, one on a line")
    parser.add_argument(
        "--resize",
        choices=("letterbox", "stretch"),
        help="how the model was trained: pjreddie's Darknet letterbox, AlexeyAB's stretch",
    )
    parser.add_argument(
        "--calib",
        metavar="DIR",
        help="calibration images, or a .calib.json of this model; left out: built-in scenes",
    )
    calibrate_arguments.recipe_options(parser)
    _keep(parser)
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
    _json(parser)


def _export(args: argparse.Namespace) -> int:
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


def _detect_arguments(parser: Arguments) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help=".onnx or .engine of edge")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures or folders of them")
    _thresholds(parser, None)
    parser.add_argument(
        "--multi-label", action="store_true", help="every class of a box, not only its best"
    )
    parser.add_argument("--draw", metavar="DIR", help="write the pictures there with their boxes")
    _threads(parser)
    _exact(parser)
    _json(parser)


def _detect(args: argparse.Namespace) -> int:
    import_module("apps.detect").detect(
        args.artifact,
        args.images,
        score=args.score,
        iou=args.iou,
        multi_label=args.multi_label,
        json_path=args.json,
        draw_dir=args.draw,
        threads=args.threads,
        exact=not args.fast_int8,
    )
    return 0


def _evaluate_arguments(parser: Arguments) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help=".onnx or .engine of edge")
    parser.add_argument(
        "--data",
        default="scenes",
        metavar="DIR",
        help="folder with images/ and YOLO labels/, a VOC or KITTI folder, or a COCO json; "
        "left out: fresh scenes of the built-in world",
    )
    parser.add_argument("--images", type=count, metavar="N", help="at most so many, spread evenly")
    _thresholds(parser, 0.005)
    parser.add_argument(
        "--best-class", action="store_true", help="only the best class of a box, as a camera shows"
    )
    parser.add_argument(
        "--against",
        metavar="B",
        help="compare with another artifact on the same images: by size, by class, scores",
    )
    parser.add_argument(
        "--try-contracts", action="store_true", help="letterbox and stretch, and which of them fits"
    )
    parser.add_argument(
        "--allow-overlap",
        action="store_true",
        help="go on though the artifact was calibrated on these images",
    )
    _threads(parser)
    _exact(parser)
    _json(parser)


def _evaluate(args: argparse.Namespace) -> int:
    app = import_module("apps.evaluation")
    result = app.evaluate(
        args.artifact,
        args.data,
        images=args.images,
        score=args.score,
        iou=args.iou,
        multi_label=not args.best_class,
        threads=args.threads,
        exact=not args.fast_int8,
        against=args.against,
        try_contracts=args.try_contracts,
        allow_overlap=args.allow_overlap,
        json_path=args.json,
    )
    app.print_evaluation(result)
    return 0


def _quantize_arguments(parser: Arguments) -> None:
    parser.add_argument("onnx", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    parser.add_argument("table", metavar="TABLE", help="NAME.calib.json of edge calibrate")
    _keep(parser)
    parser.add_argument("-o", "--output", metavar="F", help="the INT8 graph (NAME.int8.onnx)")


def _quantize(args: argparse.Namespace) -> int:
    import_module("apps.exporting").quantize_command(
        args.onnx,
        args.table,
        keep=args.keep,
        precision_map=args.precision_map,
        output=args.output,
    )
    return 0


def _show_arguments(parser: Arguments) -> None:
    parser.add_argument(
        "artifact", metavar="ARTIFACT", help=".onnx, .engine, .calib.json or .edgez"
    )
    _json(parser)


def _show(args: argparse.Namespace) -> int:
    import_module("apps.show").show_artifact(args.artifact, json_path=args.json)
    return 0


def _fetch_arguments(parser: Arguments) -> None:
    parser.add_argument("name", metavar="NAME", help="zoo name, such as yolov3-tiny")
    parser.add_argument("--folder", metavar="DIR", help="in place of $EDGE_CACHE or ~/.cache/edge")


def _fetch(args: argparse.Namespace) -> int:
    import_module("apps.fetch").fetch_command(args.name, args.folder)
    return 0


def _demo_arguments(parser: Arguments) -> None:
    parser.add_argument(
        "-o",
        "--output",
        default="out/demo",
        metavar="DIR",
        help="folder of the files (%(default)s)",
    )
    parser.add_argument(
        "--images", type=count, default=200, metavar="N", help="scenes to evaluate (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, metavar="N", help="of timing each (%(default)s)"
    )
    _threads(parser, 2)


def _demo(args: argparse.Namespace) -> int:
    import_module("apps.demo").demo(
        args.output, images=args.images, seconds=args.seconds, threads=args.threads
    )
    return 0


def _doctor(args: argparse.Namespace) -> int:
    app = import_module("apps.doctor")
    app.print_doctor(app.doctor(json_path=args.json))
    return 0


_COMMANDS: dict[
    str, tuple[str, Callable[[Arguments], None], Callable[[argparse.Namespace], int]]
] = {
    "export-engine": ("weights to an engine, with all files between", _export_arguments, _export),
    "detect": ("boxes in pictures", _detect_arguments, _detect),
    "evaluate": ("average precision over labelled pictures", _evaluate_arguments, _evaluate),
    "bench": (
        "FPS and latency, beside a baseline in the same run",
        bench_arguments.arguments,
        bench_arguments.run,
    ),
    "regress": (
        "fail where a suite's artifacts got slower or blinder",
        regression_arguments.arguments,
        regression_arguments.run,
    ),
    "dissect": (
        "keep some classes, and the channels that they need",
        dissect_arguments.arguments,
        dissect_arguments.run,
    ),
    "prune": (
        "fewer channels, to milliseconds, megabytes or points",
        prune_arguments.arguments,
        prune_arguments.run,
    ),
    "verify": (
        "are two artifacts one detector, and from which layer not",
        verify_arguments.arguments,
        verify_arguments.run,
    ),
    "camera": (
        "live detection from a camera, a video or scenes",
        camera_arguments.add_camera_arguments,
        camera_arguments.run_camera,
    ),
    "anchors": (
        "anchor sizes that fit labelled pictures",
        anchors_arguments.arguments,
        anchors_arguments.run,
    ),
    "train": (
        "train a detector on labelled pictures",
        train_arguments.arguments,
        train_arguments.run,
    ),
    "calibrate": (
        "measure the scales of an FP32 graph",
        calibrate_arguments.arguments,
        calibrate_arguments.run,
    ),
    "quantize": ("INT8 graph from an FP32 graph and a table", _quantize_arguments, _quantize),
    "qat": (
        "fine-tune a network for INT8, on pictures with or without labels",
        qat_arguments.arguments,
        qat_arguments.run,
    ),
    "sensitivity": (
        "what each layer's quantization costs",
        sensitivity_arguments.arguments,
        sensitivity_arguments.run,
    ),
    "search": (
        "keep out of INT8 what an accuracy budget takes",
        search_arguments.arguments,
        search_arguments.run,
    ),
    "share": (
        "few values for each layer's weights, in a package",
        compress_arguments.share_arguments,
        compress_arguments.run_share,
    ),
    "compress": (
        "prune, share and code: Deep Compression to a package",
        compress_arguments.arguments,
        compress_arguments.run,
    ),
    "unpack": (
        "a package to ONNX, safetensors, cfg and weights",
        compress_arguments.unpack_arguments,
        compress_arguments.run_unpack,
    ),
    "show": ("what an artifact is and where it comes from", _show_arguments, _show),
    "fetch": ("download the published weights of a model", _fetch_arguments, _fetch),
    "demo": ("the whole way on the built-in world, and one table", _demo_arguments, _demo),
    "doctor": ("what is installed, what works and why not", _json, _doctor),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`edge COMMAND`; the exit status: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    parser = Arguments(prog="edge", description=edge.__doc__)
    parser.add_argument("--version", action="version", version=f"edge {edge.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (text, arguments, run) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        arguments(command)
        command.set_defaults(run=run)
    return _run(parser, argv)


def export_engine(argv: Sequence[str] | None = None) -> int:
    """`export-engine`, the same as `edge export-engine`."""
    text, arguments, run = _COMMANDS["export-engine"]
    parser = Arguments(prog="export-engine", description=text)
    arguments(parser)
    parser.set_defaults(run=run)
    return _run(parser, argv)


def _run(parser: Arguments, argv: Sequence[str] | None) -> int:
    args: Any = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding does not have must not cost the figures beside it.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return int(args.run(args))
    except EdgeError as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"{parser.prog}: out of memory: {error or 'close other programs'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: cancelled", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output, such as `head`, has gone; nobody is left to tell.
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
