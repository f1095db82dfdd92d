"""Class names as Darknet keeps them: a `.names` file, one on a line."""

from __future__ import annotations

from pathlib import Path

from edge.errors import DataError

__all__ = ["read_names"]


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one a line; empty lines at the end do not count.

    Raises:
        DataError: the file is missing, is not text, has no names, or an empty line between them,
            which would move every class after it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of class names: {error}") from error
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not names:
        raise DataError(f"{path}: no class names in it; it takes one a line")
    if "" in names:
        raise DataError(f"{path}:{names.index('') + 1}: an empty line among the names; delete it")
    return names
