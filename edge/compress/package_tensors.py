"""The tensors of a package: what is said of each beforehand, and its plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.compress.codebook import Codebook, as_matrix
from edge.compress.coding import Layer

__all__ = ["Entry", "as_half", "entry_of", "parse_entries"]

_TYPES: dict[str, np.dtype[Any]] = {"f2": np.dtype("<f2"), "f4": np.dtype("<f4")}
_MOST_LEVELS = 1 << 12
_MOST_ENTRIES = 1 << 12
_MOST_AXES = 4


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
        name: in the state dict.
        shape: of the tensor.
        type: f2 or f4, of its stored numbers: centroids, or all of them.
        layer: of a shared tensor.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    layer: Layer | None

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Of its plain numbers."""
        numbers = self.size if self.layer is None else self.layer.levels
        return numbers * _TYPES[self.type].itemsize

    def take(self, stream: memoryview) -> tuple[NDArray[Any], memoryview]:
        """Its plain numbers from the head of `stream`, and the rest of it."""
        size = self.stored_bytes
        return np.frombuffer(stream[:size], _TYPES[self.type]), stream[size:]

    def bytes_of(self, tensor: Codebook | NDArray[Any]) -> bytes:
        """Its plain numbers as bytes."""
        values = tensor.centroids if isinstance(tensor, Codebook) else tensor
        return np.ascontiguousarray(values, _TYPES[self.type]).tobytes()

    def to_json(self) -> list[Any]:
        """Name, shape, type; for a shared tensor also K and whether it is pruned."""
        shared = [] if self.layer is None else [self.layer.levels, int(self.layer.pruned)]
        return [self.name, list(self.shape), self.type, *shared]


def as_half(tensor: Codebook | NDArray[Any]) -> Codebook | NDArray[Any]:
    """The tensor with numbers that FP16 holds; as it is where they are beyond FP16's range."""
    values = tensor.centroids if isinstance(tensor, Codebook) else tensor
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        return tensor
    if isinstance(tensor, Codebook):
        return Codebook(half.astype(np.float32), tensor.index)
    return half


def entry_of(name: str, tensor: Codebook | NDArray[Any]) -> Entry:
    """What a decoder must know of a tensor.

    Raises:
        ValueError: an array of anything but floats.
    """
    if isinstance(tensor, Codebook):
        values = tensor.centroids
        exact = bool((values.astype(np.float16).astype(np.float32) == values).all())
        layer = Layer(as_matrix(tensor.index.shape), tensor.levels, tensor.pruned)
        return Entry(name, tensor.index.shape, "f2" if exact else "f4", layer)
    if tensor.dtype.kind != "f":
        raise ValueError(f"{name} is {tensor.dtype}; a package holds floats")
    return Entry(name, tensor.shape, "f2" if tensor.dtype == np.float16 else "f4", None)


def parse_entries(rows: Any) -> tuple[Entry, ...]:
    """What `Entry.to_json` wrote.

    Raises:
        ValueError, TypeError: anything else.
    """
    if not isinstance(rows, list) or len(rows) > _MOST_ENTRIES:
        raise ValueError(f"a list of at most {_MOST_ENTRIES} tensors is expected")
    entries = tuple(_entry(row) for row in rows)
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("two tensors of one name")
    return entries


def _entry(row: Sequence[Any]) -> Entry:
    name, shape, kind, *shared = row
    if not isinstance(name, str) or kind not in _TYPES or len(shape) > _MOST_AXES:
        raise ValueError(f"no tensor: {str(row)[:80]}")
    sides = tuple(_whole(side, 1, 1 << 31) for side in shape)
    if not shared:
        return Entry(name, sides, kind, None)
    levels, pruned = shared
    if not sides:
        raise ValueError(f"{name} is shared and has no axes")
    layer = Layer(as_matrix(sides), _whole(levels, 1, _MOST_LEVELS), bool(_whole(pruned, 0, 1)))
    return Entry(name, sides, kind, layer)


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{str(value)[:20]} is no whole number of {low}..{high}")
    return value
