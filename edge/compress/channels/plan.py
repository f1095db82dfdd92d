"""Which channels of which convolution stay: planning writes it, slicing carries it out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edge.decoding import decode, parse_json
from edge.errors import CompressionError
from edge.files import read_file

__all__ = ["PrunePlan", "read_plan"]

_SCHEMA = 1
_MOST_CHANNELS = 1 << 16
_WHAT = "a pruning plan of edge"
_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class PrunePlan:
    """The kept output channels of each convolution, by its path.

    A convolution that is not named keeps all of its channels.

    Attributes:
        model: name of the detector that the plan was made for.
        kept: ascending channel numbers by module path.
        widths: number of channels of the same convolutions before pruning.

    Raises:
        CompressionError: a layer is emptied, or a channel is out of its range or out of order.
    """

    model: str
    kept: dict[str, tuple[int, ...]]
    widths: dict[str, int]

    def __post_init__(self) -> None:
        if set(self.kept) != set(self.widths):
            raise CompressionError(f"plan of {self.model}: kept and widths name other layers")
        for path, channels in self.kept.items():
            width = self.widths[path]
            if not 0 < width <= _MOST_CHANNELS:
                raise CompressionError(
                    f"plan of {self.model}: widths.{path} is {width}; it takes 1 to "
                    f"{_MOST_CHANNELS}"
                )
            if not channels:
                raise CompressionError(
                    f"plan of {self.model}: it empties {path}; keep at least one channel of it"
                )
            inside = all(0 <= channel < width for channel in channels)
            if not inside or list(channels) != sorted(set(channels)):
                raise CompressionError(
                    f"plan of {self.model}: kept.{path} takes different channels in ascending "
                    f"order from 0 to {width - 1}"
                )

    def rows(self) -> tuple[tuple[str, str, str], ...]:
        """Path, width before and width after of each convolution, for a table."""
        return tuple(
            (path, str(self.widths[path]), str(len(channels)))
            for path, channels in self.kept.items()
        )

    def to_json_text(self, indent: int | None = None) -> str:
        """Return the plan as JSON text."""
        document = {"schema": _SCHEMA, "model": self.model, "widths": self.widths}
        return json.dumps({**document, "kept": self.kept}, indent=indent)


@dataclass(frozen=True)
class _Header:
    schema: int

    def __post_init__(self) -> None:
        if not 1 <= self.schema <= _SCHEMA:
            raise ValueError(f"schema is {self.schema}; this version reads {_SCHEMA}")


def read_plan(path: str | Path) -> PrunePlan:
    """Read a plan that an earlier run wrote.

    Raises:
        CompressionError: the file is missing, damaged, or not a plan; names the file and the field.
    """
    text = read_file(path, limit=_LIMIT_BYTES, error=CompressionError)
    document = parse_json(text, str(path), _WHAT, CompressionError)
    decode(document, _Header, str(path), _WHAT, CompressionError)
    return decode(document, PrunePlan, str(path), _WHAT, CompressionError)
