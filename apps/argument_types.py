"""What argparse makes of a word on the command line, and what it says of one that does not fit."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from edge.artifact import make_folder
from edge.errors import ArtifactError

__all__ = ["count", "inner_share", "positive", "share", "size", "target", "words"]


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
