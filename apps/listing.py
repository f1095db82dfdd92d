"""Tables of words on stdout, where `apps.table` prints figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["listing"]


def listing(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose columns all are text, folded to the terminal's width."""
    table = Table(show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table, highlight=False)
