"""`edge fetch`: the published weights of a zoo model, verified."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from edge.optional import require
from edge.reporting import say

__all__ = ["fetch_command"]


def fetch_command(name: str, folder: str | Path | None = None) -> Path:
    """Download `name` unless it is there, with a progress bar; the file's path.

    Raises:
        ArtifactError: no such name, or no network: says which file to put where.
        MissingDependency: torch is not installed, which the zoo needs.
    """
    zoo = require("edge.models.zoo")
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        path: Path = zoo.fetch(
            name,
            Path(folder) if folder else None,
            lambda done, of: bar.update(task, completed=done, total=of),
        )
    record = path.with_name(path.name + ".sha256")
    say(f"{path}  sha256 {record.read_text().split()[0]}" if record.is_file() else str(path))
    return path
