"""`edge unpack` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands.terminal import show

__all__ = ["arguments", "print_unpacked", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge unpack`."""
    parser.add_argument("package", metavar="F.edgez", help="a package of edge share or compress")
    parser.add_argument(
        "-o", "--output", default="out", metavar="DIR", help="folder of the files (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """`edge unpack`."""
    from export.compress.pack import unpack

    print_unpacked(args.package, unpack(args.package, args.output))
    return 0


def print_unpacked(source: str | Path, files: dict[str, str]) -> None:
    """The files as a table on stdout."""
    rows = [(kind, path, f"{Path(path).stat().st_size / 1e6:.3f}") for kind, path in files.items()]
    show(f"{source}, {Path(source).stat().st_size / 1e6:.3f} MB", ("file", "path", "MB"), rows)
