"""`edge fetch` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from edge.optional import require
from edge.reporting import say

__all__ = ["arguments", "fetch_command", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge fetch`."""
    parser.add_argument("name", metavar="NAME", help="zoo name, see below")
    parser.add_argument("--folder", metavar="DIR", help="in place of $EDGE_CACHE or ~/.cache/edge")


def run(args: argparse.Namespace) -> int:
    """`edge fetch`: always 0; errors are raised."""
    fetch_command(args.name, args.folder)
    return 0


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
