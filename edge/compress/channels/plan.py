"""Which channels of which convolution stay: what planning writes and slicing carries out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edge.errors import CompressionError

__all__ = ["PrunePlan"]

_SCHEMA = 1


@dataclass(frozen=True)
class PrunePlan:
    """Kept output channels by the path of their convolution; pure data.

    A convolution that is not named keeps all of its channels.

    Attributes:
        model: name of the detector it was made for.
        kept: ascending channel numbers by module path.
        widths: channels of the same convolutions before pruning.
    """

    model: str
    kept: dict[str, tuple[int, ...]]
    widths: dict[str, int]

    def __post_init__(self) -> None:
        if set(self.kept) != set(self.widths):
            raise CompressionError(f"plan of {self.model}: kept and widths name other layers")
        for path, channels in self.kept.items():
            if not channels:
                raise CompressionError(
                    f"plan of {self.model}: it empties {path}; keep at least one channel of it"
                )
            inside = all(0 <= channel < self.widths[path] for channel in channels)
            if not inside or list(channels) != sorted(set(channels)):
                raise CompressionError(
                    f"plan of {self.model}: {path} takes different channels in ascending order "
                    f"from 0 to {self.widths[path] - 1}"
                )

    def rows(self) -> list[tuple[str, str, str]]:
        """Path, width before and width after of each convolution, for a table."""
        return [
            (path, str(self.widths[path]), str(len(channels)))
            for path, channels in self.kept.items()
        ]

    def to_json(self, indent: int | None = None) -> str:
        """The plan as JSON text."""
        document = {"schema": _SCHEMA, "model": self.model, "widths": self.widths}
        return json.dumps({**document, "kept": self.kept}, indent=indent)

    @staticmethod
    def from_json(text: str, source: str = "plan") -> PrunePlan:
        """Read what `to_json` wrote.

        Raises:
            CompressionError: no plan, or one that empties a layer; names `source`.
        """
        try:
            data = json.loads(text)
            if data["schema"] > _SCHEMA:
                raise ValueError(f"schema {data['schema']} is newer than {_SCHEMA}")
            kept = {str(path): _numbers(channels) for path, channels in data["kept"].items()}
            widths = {str(path): int(width) for path, width in data["widths"].items()}
            return PrunePlan(str(data["model"]), kept, widths)
        except CompressionError as error:
            raise CompressionError(f"{source}: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CompressionError(f"{source}: not a pruning plan of edge: {error}") from error


def _numbers(channels: Any) -> tuple[int, ...]:
    if not all(type(channel) is int for channel in channels):
        raise ValueError("channels are whole numbers")
    return tuple(channels)
