"""Progress of long work, on stderr and only on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

__all__ = ["bar", "phases"]


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows `what`; the function given takes (done, of)."""
    with _shown(what) as (progress, task):

        def advance(done: int, of: int) -> None:
            progress.update(task, completed=done, total=of)

        yield advance


@contextmanager
def phases(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """The same for work in phases; the function given takes (phase, step, of)."""
    with _shown(what) as (progress, task):

        def on_step(phase: str, step: int, of: int) -> None:
            progress.update(task, description=f"{what}: {phase}", completed=step, total=of)

        yield on_step


@contextmanager
def _shown(what: str) -> Iterator[tuple[Progress, TaskID]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield progress, progress.add_task(what, total=None)
