"""Options that several commands have, with one meaning and one text."""

from __future__ import annotations

import argparse
import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from edge.artifact import make_folder
from edge.errors import ArtifactError

__all__ = [
    "count",
    "exact_option",
    "inner_share",
    "json_option",
    "keep_options",
    "model_options",
    "positive",
    "share",
    "size",
    "target",
    "threads_option",
    "threshold_options",
    "words",
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


def count(text: str) -> int:
    """A whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"{text} is not a positive number")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text} is not a positive number")
    return value


def share(text: str) -> float:
    """0 to 1, both ends included."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def inner_share(text: str) -> float:
    """0 to 1, neither end included."""
    value = float(text)
    if not 0 < value < 1:
        raise ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def size(text: str) -> tuple[int, int]:
    """Height and width of `288x512`."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 288x512") from None
    return height, width


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def target(suffix: str = "") -> Callable[[str], str]:
    """A file to write, with `suffix`: what cannot be written is refused before the work begins.

    A missing folder is made.
    """

    def check(text: str) -> str:
        path = Path(text)
        if not path.name.endswith(suffix):
            raise ArgumentTypeError(f"{text} does not end in {suffix}")
        if path.is_dir():
            raise ArgumentTypeError(f"{text} is a folder; name a file in it")
        try:
            folder = make_folder(path.parent)
        except ArtifactError as error:
            raise ArgumentTypeError(str(error)) from error
        if not os.access(folder, os.W_OK):
            raise ArgumentTypeError(f"{text} cannot be written: {folder} takes no files")
        return text

    return check
