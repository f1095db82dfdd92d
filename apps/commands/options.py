"""Options that several commands have, with one meaning and one text."""

from __future__ import annotations

import argparse
import dataclasses
import os
import types
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edge import options
from edge.errors import ArtifactError, DataError
from edge.files import STDOUT, make_folder
from edge.options import described

__all__ = [
    "Target",
    "add_options",
    "count",
    "inner_share",
    "json_option",
    "positive",
    "read_options",
    "share",
    "size",
    "target",
    "words",
]


Options = TypeVar("Options")
Value = TypeVar("Value")


def _checked(check: Callable[[str], Value]) -> Callable[[str], Value]:
    def checked(text: str) -> Value:
        try:
            return check(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error

    return checked


# For argparse, which keeps the text of its own error alone.
count = _checked(options.count)
positive = _checked(options.positive)
share = _checked(options.share)
inner_share = _checked(options.inner_share)
size = _checked(options.height_width)


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    kind: type[Any],
    *,
    leave_out: tuple[str, ...] = (),
    only: tuple[str, ...] | None = None,
    given_only: bool = False,
) -> None:
    """Add the flags of an options dataclass; a field that is such a dataclass adds its own.

    See `edge.options.option` for what a field may say. Help is the field's line in the docstring,
    and names the default.

    Args:
        leave_out: names of fields that have no flag here.
        only: names of the fields that have one; None: all.
        given_only: flags that are not given leave no attribute, so that they can change a preset.
    """
    texts, hints = described(kind), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        told = field.metadata.get("option", {})
        if field.name in leave_out or told.get("hidden") or not field.init:
            continue
        if only is not None and field.name not in only:
            continue
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            add_options(
                parser,
                hint,  # type: ignore[arg-type]
                leave_out=leave_out,
                given_only=given_only,
            )
        else:
            _add_flag(parser, field, hint, texts[field.name].replace("%", "%%"), given_only)


def read_options(args: argparse.Namespace, kind: type[Options], **given: Any) -> Options:
    """Make the options that the flags of `add_options` say; `given` fields are not taken from them.

    Raises:
        DataError: a value is out of its range, or options do not go together.
    """
    hints, values = get_type_hints(kind), dict(given)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in values or not field.init:
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = read_options(args, hints[field.name])
        elif hasattr(args, field.name):
            value = getattr(args, field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except ValueError as error:
        raise DataError(str(error)) from error


def _add_flag(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    field: dataclasses.Field[Any],
    hint: Any,
    text: str,
    given_only: bool,
) -> None:
    told = field.metadata.get("option", {})
    dashed = field.name.replace("_", "-")
    if hint is bool:
        flag = told.get("flag") or (f"--no-{dashed}" if field.default else f"--{dashed}")
        action = "store_false" if field.default else "store_true"
        default = {"default": argparse.SUPPRESS} if given_only else {}
        _with_aliases(parser, flag, told, dest=field.name, action=action, help=text, **default)
        return
    flag = told.get("flag") or f"--{dashed}"
    kinds = [one for one in _kinds(hint) if one is not type(None)]
    extra: dict[str, Any] = {"help": text, "metavar": told.get("metavar")}
    if get_origin(kinds[0]) is Literal:
        extra |= {"choices": get_args(kinds[0])}
        if extra["metavar"] is None:
            del extra["metavar"]
    elif told.get("check"):
        extra |= {"type": _checked(told["check"])}
    elif get_origin(kinds[0]) is tuple:
        extra |= {"type": words}
    elif kinds[0] in (int, float):
        extra |= {"type": kinds[0]}
    if field.default is dataclasses.MISSING:
        extra |= {} if not flag.startswith("-") else {"required": True}
    else:
        extra |= {"default": field.default}
        if field.default is not None and field.default != ():
            extra["help"] = f"{text} (default: %(default)s)"
        if not flag.startswith("-"):
            extra["nargs"] = "?"
    if given_only:
        extra |= {"default": argparse.SUPPRESS, "help": text}
    if flag.startswith("-"):
        extra["dest"] = field.name
    _with_aliases(parser, flag, told, **extra)


def _with_aliases(parser: Any, flag: str, told: dict[str, Any], **extra: Any) -> None:
    parser.add_argument(*flag.split(), **extra)
    for alias in told.get("aliases", ()):
        hidden = {**extra, "help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        parser.add_argument(alias, **{k: v for k, v in hidden.items() if k != "required"})


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def json_option(parser: argparse.ArgumentParser) -> None:
    """Where to write the result as JSON."""
    parser.add_argument(
        "--json",
        type=target(),
        metavar="F",
        help="write the result to this file as JSON (-: standard output)",
    )


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


class Target(str):
    """The name of a file that a command writes, and so none of its inputs."""


def target(suffix: str = "") -> Callable[[str], Target]:
    """A file to write, with `suffix`: what cannot be written is refused before the work begins.

    A missing folder is made.
    """

    def check(text: str) -> Target:
        path = Path(text)
        if path == STDOUT:
            return Target(text)
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
        return Target(text)

    return check
