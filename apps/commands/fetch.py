"""`edge fetch` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from edge.files import read_file
from edge.optional import require
from edge.reporting import say

__all__ = ["arguments", "fetch_command", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge fetch`."""
    parser.add_argument("name", metavar="NAME", help="name of the model to download, see below")
    parser.add_argument(
        "--folder", metavar="DIR", help="where to put it ($EDGE_CACHE, else ~/.cache/edge)"
    )


def run(args: argparse.Namespace) -> int:
    """Run `edge fetch`: always 0; errors are raised."""
    fetch_command(args.name, args.folder)
    return 0


def fetch_command(name: str, folder: str | Path | None = None) -> Path:
    """Download `name` unless it is there, with a progress bar, and return the file's path.

    Raises:
        ArtifactError: no such name, or no network: says which file to put where.
        MissingDependency: torch is not installed, which the zoo needs.
    """
    require("torch")
    from edge.models import zoo

    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        path = zoo.fetch(
            name,
            Path(folder) if folder else None,
            lambda done, of: bar.update(task, completed=done, total=of),
        )
    record = path.with_name(path.name + ".sha256")
    sha256 = read_file(record).decode(errors="replace")[:64] if record.is_file() else ""
    say(f"{path}  sha256 {sha256}" if sha256 else str(path))
    return path
