"""The facts behind the estimate: boards, published rows and the kernels of their networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edge.errors import ArtifactError
from export.estimate.kernels import Kernel
from export.estimate.times import Board, Constants, KernelTable

__all__ = ["Facts", "Fit", "Published", "board_named", "read_facts", "read_fit"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """A figure that somebody published.

    Attributes:
        network, size: its name, and height and width of the input in pixels.
        board, precision: on which, in which.
        ms: of the network alone, batch 1, as printed.
        source: key of `Facts.sources`.
    """

    network: str
    size: int
    board: str
    precision: str
    ms: float
    source: str

    @property
    def model(self) -> str:
        """Name with the size."""
        return f"{self.network}-{self.size}"


@dataclass(frozen=True)
class Facts:
    """Boards by name, published rows, their sources, and kernels by network and size."""

    boards: Mapping[str, Board]
    rows: tuple[Published, ...]
    sources: Mapping[str, str]
    networks: Mapping[tuple[str, int], KernelTable]


@dataclass(frozen=True)
class Fit:
    """What `tools/estimate/fit.py` found.

    Attributes:
        constants: of the model.
        spread: half width of the 80 % interval, as a logarithm, where the network is new; from
            cross-validation over networks.
        new_board: the same where the board is new as well.
        new_precision: the same where the board is known and the precision is not, by family.
        operations: least and most of a fitted row, of one frame.
        extrapolation: half width that is added, in squares, per factor e outside that range.
        errors: the table that the fit printed.
        date: of the fit.
    """

    constants: Constants
    spread: float
    new_board: float
    new_precision: Mapping[str, float]
    operations: tuple[int, int]
    extrapolation: float
    errors: Mapping[str, Mapping[str, float]]
    date: str


@cache
def read_facts() -> Facts:
    """Return the facts of `facts.json`."""
    data = json.loads((_FOLDER / "facts.json").read_text("utf-8"))
    boards = {one["name"]: Board(**one) for one in data["boards"]}
    rows = tuple(Published(*row) for row in data["published"])
    bases = {
        name: (int(one["size"]), _kernels(data["columns"], one["kernels"]))
        for name, one in data["networks"].items()
    }
    wanted = {(row.network, row.size) for row in rows} | {
        (n, size) for n, (size, _) in bases.items()
    }
    networks = {}
    for name, size in sorted(wanted):
        base, (kernels, counts) = bases[name]
        scaled = [one.scaled((size / base) ** 2) for one in kernels]
        networks[name, size] = KernelTable(scaled, counts)
    return Facts(boards, rows, data["sources"], networks)


def _kernels(columns: list[str], rows: list[list[Any]]) -> tuple[list[Kernel], list[int]]:
    kernels = []
    for row in rows:
        values = dict(zip(columns, row, strict=True))
        count = values.pop("count")
        for flag in ("swish", "quantizable", "boundary"):
            values[flag] = bool(values[flag])
        kernels.append((Kernel(name="", **values), int(count)))
    return [kernel for kernel, _ in kernels], [count for _, count in kernels]


def read_fit(path: str | Path | None = None) -> Fit:
    """Return the constants of `constants.json`, or of another file that the fit wrote.

    Raises:
        ArtifactError: the file is missing or is none of the fit's.
    """
    target = Path(path) if path else _FOLDER / "constants.json"
    try:
        data = json.loads(target.read_text("utf-8"))
        return Fit(**{**data, "constants": Constants(**data["constants"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{target}: not what tools/estimate/fit.py writes: {error}; run it again"
        ) from error


def board_named(name: str) -> Board:
    """Return a board by its name.

    Raises:
        ArtifactError: it is unknown; the text lists those that are known.
    """
    boards = read_facts().boards
    if name not in boards:
        raise ArtifactError(f"{name}: no such board; known are {', '.join(boards)}, or all")
    return boards[name]
