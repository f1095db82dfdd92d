"""`edge unpack` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands.terminal import show

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge unpack`."""
    parser.add_argument(
        "package", metavar="F.edgez", help="package to read, of edge share or edge compress"
    )
    parser.add_argument(
        "-o",
        "--output",
        default="out",
        metavar="DIR",
        help="folder for the files (default: %(default)s)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace files in DIR that have another content"
    )


def run(args: argparse.Namespace) -> int:
    """Run `edge unpack`: always 0; errors are raised."""
    from export.compress.unpack import unpack

    _print(args.package, unpack(args.package, args.output, force=args.force))
    return 0


def _print(source: str | Path, files: dict[str, str]) -> None:
    rows = [(kind, path, f"{Path(path).stat().st_size / 1e6:.3f}") for kind, path in files.items()]
    show(f"{source}, {Path(source).stat().st_size / 1e6:.3f} MB", ("file", "path", "MB"), rows)
