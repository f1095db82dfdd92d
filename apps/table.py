"""Tables on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["listing", "say", "show", "steps"]

Thing = TypeVar("Thing")


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    _print(title, table, rows)


def listing(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose columns all are text, folded to the terminal's width."""
    table = Table(show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    _print(title, table, rows)


def _print(title: str, table: Table, rows: Iterable[Sequence[str]]) -> None:
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        # A file has no width to keep to, and folded cells cannot be searched.
        console = Console(width=200)
    # rich folds a table's own title to the table's width.
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table, highlight=False)


def say(text: str) -> None:
    """A line on stderr."""
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


def steps(things: Iterable[Thing], what: str, total: int) -> Iterable[Thing]:
    """Pass `things` on and show on stderr, if that is a terminal, how many of `total` are done."""
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
