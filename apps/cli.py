"""The command line: from a command's name to a function in another file, imported when it runs."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import edge
from apps import (
    anchors_arguments,
    bench_arguments,
    calibrate_arguments,
    camera_arguments,
    compress_arguments,
    demo_arguments,
    detect_arguments,
    dissect_arguments,
    doctor_arguments,
    evaluate_arguments,
    export_arguments,
    fetch_arguments,
    prune_arguments,
    qat_arguments,
    quantize_arguments,
    regression_arguments,
    search_arguments,
    sensitivity_arguments,
    show_arguments,
    train_arguments,
    verify_arguments,
)
from apps.examples import epilog
from apps.table import Terminal
from edge.errors import EdgeError
from edge.reporting import listen

__all__ = ["export_engine", "main"]


_COMMANDS: dict[
    str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
] = {
    "export-engine": (
        "weights to an engine, with all files between",
        export_arguments.arguments,
        export_arguments.run,
    ),
    "detect": (
        "boxes in pictures",
        detect_arguments.arguments,
        detect_arguments.run,
    ),
    "evaluate": (
        "average precision over labelled pictures",
        evaluate_arguments.arguments,
        evaluate_arguments.run,
    ),
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
    "quantize": (
        "INT8 graph from an FP32 graph and a table",
        quantize_arguments.arguments,
        quantize_arguments.run,
    ),
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
    "show": (
        "what an artifact is and where it comes from",
        show_arguments.arguments,
        show_arguments.run,
    ),
    "fetch": (
        "download the published weights of a model",
        fetch_arguments.arguments,
        fetch_arguments.run,
    ),
    "demo": (
        "the whole way on the built-in world, and one table",
        demo_arguments.arguments,
        demo_arguments.run,
    ),
    "doctor": (
        "what is installed, what works and why not",
        doctor_arguments.arguments,
        doctor_arguments.run,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`edge COMMAND`; the exit status: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    parser = _parser("", prog="edge", description=edge.__doc__)
    parser.add_argument("--version", action="version", version=f"edge {edge.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (text, arguments, run) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, **_layout(name))
        arguments(command)
        command.set_defaults(run=run)
    return _run(parser, argv)


def export_engine(argv: Sequence[str] | None = None) -> int:
    """`export-engine`, the same as `edge export-engine`."""
    text, arguments, run = _COMMANDS["export-engine"]
    parser = _parser("export-engine", prog="export-engine", description=text)
    arguments(parser)
    parser.set_defaults(run=run)
    return _run(parser, argv)


def _parser(name: str, **texts: Any) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(**texts, **_layout(name))


def _layout(name: str) -> dict[str, Any]:
    """Examples keep their lines."""
    return {"epilog": epilog(name), "formatter_class": argparse.RawDescriptionHelpFormatter}


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    args: Any = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding does not have must not cost the figures beside it.
        sys.stdout.reconfigure(errors="backslashreplace")
    before = listen(Terminal())
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
    finally:
        listen(before)


if __name__ == "__main__":
    sys.exit(main())
