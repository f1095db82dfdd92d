"""Class names as Darknet keeps them: a `.names` file, one on a line."""

from __future__ import annotations

from pathlib import Path

from edge.errors import DataError
from edge.files import plain_text, read_file

__all__ = ["check_class_name", "read_names"]

_LIMIT_BYTES = 4 << 20
_LONGEST = 200


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one a line; empty lines at the end do not count.

    Raises:
        DataError: the file is missing, is not text, has no names, or an empty line between them,
            which would move every class after it.
    """
    try:
        text = read_file(path, limit=_LIMIT_BYTES, error=DataError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as a list of class names: {error}") from error
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not names:
        raise DataError(f"{path}: no class names in it; it takes one a line")
    if "" in names:
        raise DataError(f"{path}:{names.index('') + 1}: an empty line among the names; delete it")
    for number, name in enumerate(names, 1):
        check_class_name(name, f"{path}:{number}")
    return names


def check_class_name(name: str, where: str) -> str:
    """Return a class's name if it is one: some text, not too long, that steers no terminal.

    Raises:
        DataError: it is none; names `where`.
    """
    if not name or len(name) > _LONGEST or plain_text(name) != name:
        raise DataError(
            f"{where}: {plain_text(name)[:40]!r} is no class name; it takes 1 to {_LONGEST} "
            "characters, none of them a control character"
        )
    return name
