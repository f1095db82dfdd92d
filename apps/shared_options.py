"""Options that several commands have, with one meaning and one text."""

from __future__ import annotations

import argparse

from apps.argument_types import count, share, target, words

__all__ = [
    "exact_option",
    "json_option",
    "keep_options",
    "model_options",
    "threads_option",
    "threshold_options",
]


def json_option(parser: argparse.ArgumentParser) -> None:
    """Where to write the result as JSON."""
    parser.add_argument(
        "--json", type=target(), metavar="F", help="write the result there as JSON too"
    )


def model_options(parser: argparse.ArgumentParser) -> None:
    """What a model's own file does not say."""
    parser.add_argument("--weights", metavar="F", help="Darknet weights, if not beside the cfg")
    parser.add_argument("--names", metavar="F", help="class names, one on a line")
    parser.add_argument(
        "--resize",
        choices=("letterbox", "stretch"),
        help="how the model was trained: pjreddie's Darknet letterbox, AlexeyAB's stretch",
    )


def threshold_options(parser: argparse.ArgumentParser, score: float | None) -> None:
    """Least score and overlap of boxes; `score` None takes what was fitted."""
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


def keep_options(parser: argparse.ArgumentParser) -> None:
    """Layers that stay out of INT8."""
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


def threads_option(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Threads of onnxruntime."""
    parser.add_argument(
        "--threads",
        type=count,
        default=default,
        metavar="N",
        help=f"CPU threads of onnxruntime ({default or 'every core'})",
    )


def exact_option(parser: argparse.ArgumentParser) -> None:
    """Which of two INT8 computations a CPU does."""
    parser.add_argument(
        "--fast-int8",
        action="store_true",
        help="onnxruntime's INT8 kernels, which round a little differently, in place of the Q/DQ "
        "graph as TensorRT computes it",
    )
