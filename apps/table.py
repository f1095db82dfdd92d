"""Tables on stdout, lines and progress on stderr.

A device may have no more than what runs the artifact: without rich a table is aligned columns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

__all__ = ["listing", "say", "show", "steps", "ticking"]

Thing = TypeVar("Thing")
# A file has no width to keep to, and folded cells cannot be searched.
_FILE_WIDTH = 200


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    _print(title, columns, list(rows), figures=True)


def listing(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose columns all are text, folded to the terminal's width."""
    _print(title, columns, list(rows), figures=False)


def _print(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool
) -> None:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        print(_aligned(title, columns, rows, figures=figures))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    # rich folds a table's own title to the table's width.
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(_framed(columns, rows, figures=figures), highlight=False)


def _framed(columns: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=any(columns))
    for number, column in enumerate(columns):
        right = figures and number
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _aligned(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool
) -> str:
    """The table as plain text; with `figures` all columns but the first end at the right."""
    lines = [columns, *rows] if any(columns) else [*rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            cell.rjust(width) if figures and number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([title, *texts])


def say(text: str) -> None:
    """A line on stderr; where nobody reads that any more, nothing."""
    # Capture and sink threads speak too, and must not end with the terminal they were started in.
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            # In one piece: print() writes the end of the line apart, and another thread between.
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def steps(things: Iterable[Thing], what: str, total: int) -> Iterable[Thing]:
    """Pass `things` on and show on stderr, if that is a terminal, how many of `total` are done."""
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )
    except ModuleNotFoundError:
        yield from things
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield from progress.track(things, total=total, description=what)


@contextmanager
def ticking(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A function to call, with whatever, for each of `total` that is done; `steps` shows them."""
    ticks = iter(steps(range(total + 1), what, total))

    def tick(*_: object) -> None:
        next(ticks, None)

    try:
        yield tick
    finally:
        for _ in ticks:
            pass
