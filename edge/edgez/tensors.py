"""The tensors of a package: their descriptions, and the numbers that are stored as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.edgez.codebook import Codebook, as_matrix
from edge.edgez.coding import Layer

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
        scaled: whether a shared tensor has a scale for each output channel.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    layer: Layer | None
    scaled: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Size of the numbers that are stored as they are: centroids and scales, or all values."""
        numbers = self.size
        if self.layer is not None:
            numbers = self.layer.levels + (self.shape[0] if self.scaled else 0)
        return numbers * _TYPES[self.type].itemsize

    def take(self, stream: memoryview) -> tuple[NDArray[Any], memoryview]:
        """Split `stream` into this tensor's stored numbers and the rest."""
        size = self.stored_bytes
        return np.frombuffer(stream[:size], _TYPES[self.type]), stream[size:]

    def book(self, numbers: NDArray[Any], code: NDArray[np.int64]) -> Codebook:
        """Make a shared tensor from its stored numbers, centroids before scales, and its codes."""
        values, levels = numbers.astype(np.float32), len(numbers)
        if self.scaled:
            levels -= self.shape[0]
        centroids, scale = values[:levels], values[levels:]
        return Codebook(centroids, code.reshape(self.shape), scale if self.scaled else None)

    def bytes_of(self, tensor: Codebook | NDArray[Any]) -> bytes:
        """Return the stored numbers of `tensor` as bytes."""
        values = _numbers(tensor)
        return np.ascontiguousarray(values, _TYPES[self.type]).tobytes()

    def to_json(self) -> list[Any]:
        """Return name, shape and type; of a shared tensor also K, whether pruned, 1 if scaled."""
        shared = [] if self.layer is None else [self.layer.levels, int(self.layer.pruned)]
        return [self.name, list(self.shape), self.type, *shared, *[1] * self.scaled]


def _numbers(tensor: Codebook | NDArray[Any]) -> NDArray[Any]:
    """Return the numbers of a tensor that are stored as they are."""
    if not isinstance(tensor, Codebook):
        return tensor
    if tensor.scale is None:
        return tensor.centroids
    return np.concatenate([tensor.centroids, tensor.scale])


def as_half(tensor: Codebook | NDArray[Any]) -> Codebook | NDArray[Any]:
    """Round the stored numbers of a tensor to FP16; leave it as it is where one is out of range."""
    with np.errstate(over="ignore"):
        half = _numbers(tensor).astype(np.float16)
    if not np.isfinite(half).all():
        return tensor
    if isinstance(tensor, Codebook):
        values = half.astype(np.float32)
        scale = None if tensor.scale is None else values[tensor.levels :]
        return Codebook(values[: tensor.levels], tensor.index, scale)
    return half


def entry_of(name: str, tensor: Codebook | NDArray[Any]) -> Entry:
    """Describe a tensor as a decoder needs it.

    Raises:
        ValueError: it is an array of anything but floats, or is not finite.
    """
    if _numbers(tensor).dtype.kind == "f" and not np.isfinite(_numbers(tensor)).all():
        raise ValueError(f"{name} holds NaN or infinity")
    if isinstance(tensor, Codebook):
        values = _numbers(tensor)
        with np.errstate(over="ignore"):
            exact = bool((values.astype(np.float16).astype(np.float32) == values).all())
        layer = Layer(as_matrix(tensor.index.shape), tensor.levels, tensor.pruned)
        scaled = tensor.scale is not None
        return Entry(name, tensor.index.shape, "f2" if exact else "f4", layer, scaled)
    if tensor.dtype.kind != "f":
        raise ValueError(f"{name} is {tensor.dtype}; a package holds floats")
    return Entry(name, tensor.shape, "f2" if tensor.dtype == np.float16 else "f4", None)


def parse_entries(rows: Sequence[object]) -> tuple[Entry, ...]:
    """Read what `Entry.to_json` wrote.

    Raises:
        ValueError: it is anything else.
    """
    if len(rows) > _MOST_ENTRIES:
        raise ValueError(f"a list of at most {_MOST_ENTRIES} tensors is expected")
    entries = tuple(_entry(row) for row in rows)
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("two tensors of one name")
    return entries


def _entry(row: object) -> Entry:
    if not isinstance(row, list) or not 3 <= len(row) <= 6:
        raise ValueError(f"no tensor: {str(row)[:80]}")
    name, shape, kind, *shared = row
    known = isinstance(name, str) and isinstance(kind, str) and kind in _TYPES
    if not known or not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise ValueError(f"no tensor: {str(row)[:80]}")
    sides = tuple(_whole(side, 1, 1 << 31) for side in shape)
    if not shared:
        return Entry(name, sides, kind, None)
    if len(shared) < 2 or not sides:
        raise ValueError(f"{name} is shared and has no axes or no codebook")
    levels, pruned, *scaled = shared
    if scaled not in ([], [1]):
        raise ValueError(f"{name}: nothing is known of {str(scaled)[:40]}")
    layer = Layer(as_matrix(sides), _whole(levels, 1, _MOST_LEVELS), bool(_whole(pruned, 0, 1)))
    return Entry(name, sides, kind, layer, bool(scaled))


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{str(value)[:20]} is no whole number of {low}..{high}")
    return value
