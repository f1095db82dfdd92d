"""Options as frozen dataclasses: one definition for Python, the command line and the manifest.

Each field has a line in its class's docstring under `Attributes:`; that line is its help text.
`option` says what the type alone does not: another flag, a range, what the value is called.
`apps.commands.options.add_options` makes the flags and `read_options` the object.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["count", "described", "height_width", "inner_share", "option", "positive", "share"]

Number = TypeVar("Number", int, float)


def option(
    default: Any = dataclasses.MISSING,
    *,
    flag: str | None = None,
    aliases: tuple[str, ...] = (),
    metavar: str | None = None,
    check: Callable[[str], Any] | None = None,
    hidden: bool = False,
) -> Any:
    """Declare a field of an options dataclass.

    Args:
        default: value where nothing is given; without one the option is required.
        flag: in place of `--field-name` (or `--no-field-name` of a bool that is True by default).
            A name without dashes makes it a positional argument.
        aliases: older names of the flag, which still work and are not shown.
        metavar: what the help calls the value.
        check: turns the text into the value, in place of the type; raises ValueError with what the
            text should be.
        hidden: the field has no flag.
    """
    metadata = {
        "flag": flag,
        "aliases": aliases,
        "metavar": metavar,
        "check": check,
        "hidden": hidden,
    }
    return dataclasses.field(default=default, metadata={"option": metadata})


def described(kind: type[Any]) -> dict[str, str]:
    """Return the text of each attribute in a class's docstring, by name.

    A line such as `mean, scale: per channel` describes both. Attributes that a class inherits are
    described where they are declared, unless it describes them anew.
    """
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        found |= _described(inspect.cleandoc(one.__doc__ or ""))
    return found


def _described(text: str) -> dict[str, str]:
    _, _, rest = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        begun = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if begun:
            names = begun[1].split(", ")
            found |= dict.fromkeys(names, begun[2].strip())
        elif line.startswith("     ") and names:
            for name in names:
                found[name] += " " + line.strip()
        elif line and not line.startswith(" "):
            break
    return found


def count(text: str) -> int:
    """A whole number of at least 1."""
    value = _number(int, text, "a whole number")
    if value < 1:
        raise ValueError(f"{text} is not a positive number")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(float, text, "a number")
    if not 0 < value < math.inf:
        raise ValueError(f"{text} is not a positive number")
    return value


def share(text: str) -> float:
    """A number from 0 to 1, both included."""
    value = _number(float, text, "a number")
    if not 0 <= value <= 1:
        raise ValueError(f"{text} is not between 0 and 1")
    return value


def inner_share(text: str) -> float:
    """A number between 0 and 1, neither included."""
    value = _number(float, text, "a number")
    if not 0 < value < 1:
        raise ValueError(f"{text} is not between 0 and 1")
    return value


def height_width(text: str) -> tuple[int, int]:
    """Height and width in pixels, such as `288x512`."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH, such as 288x512") from None
    return height, width


def _number(kind: Callable[[str], Number], text: str, what: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {what}") from None
