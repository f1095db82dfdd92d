"""The terminal: tables on stdout, lines and progress on stderr, without control characters.

A camera needs NumPy, OpenCV and onnxruntime alone: without rich a table is aligned columns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TextIO

from edge.files import plain_text
from edge.reporting import Update

__all__ = ["Terminal", "listing", "output", "show", "tables_on_stderr"]

# A file has no width to keep to, and folded cells cannot be searched.
_FILE_WIDTH = 200


# Where tables go: None is standard output, whatever that is when they are printed.
_output: TextIO | None = None


def output() -> TextIO:
    """Return the stream that tables are printed on."""
    return _output or sys.stdout


@contextmanager
def tables_on_stderr(wanted: bool) -> Iterator[None]:
    """Print tables on stderr while the context lasts, because standard output carries JSON."""
    global _output
    before, _output = _output, sys.stderr if wanted else None
    try:
        yield
    finally:
        _output = before


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose other columns are figures."""
    _print(title, columns, list(rows), figures=True)


def listing(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose columns all are text, folded to the terminal's width."""
    _print(title, columns, list(rows), figures=False)


def _print(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool
) -> None:
    # Names come from files of others and must not steer the terminal.
    title, rows = plain_text(title), [[plain_text(cell) for cell in row] for row in rows]
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ModuleNotFoundError:
        print(_aligned(title, columns, rows, figures=figures), file=output())
        return
    table = Table(show_header=any(columns))
    for number, column in enumerate(columns):
        right = figures and number
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console(file=output())
    if not console.is_terminal:
        console = Console(file=output(), width=_FILE_WIDTH)
    # rich folds a table's own title to the table's width.
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table, highlight=False)


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


class Terminal:
    """Shows on stderr what the library reports; progress only where stderr is a terminal."""

    def say(self, text: str) -> None:
        """Write one line, or nothing where nobody reads stderr any more."""
        # Capture and sink threads speak too, and go on when their terminal has gone.
        with suppress(OSError, ValueError):
            if sys.stderr is not None:
                # In one piece: print() writes the line end by itself, and another thread between.
                sys.stderr.write("\n".join(map(plain_text, text.splitlines())) + "\n")
                sys.stderr.flush()

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Update]:
        """Draw a bar that goes away when the context ends."""
        if sys.stderr is None or not sys.stderr.isatty() or find_spec("rich") is None:
            yield lambda done, total, text: None
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(escape(plain_text(what)), total=total)

            def update(done: int, total: int | None, text: str | None) -> None:
                shown = None if text is None else escape(plain_text(text))
                progress.update(task, completed=done, total=total, description=shown)

            yield update
