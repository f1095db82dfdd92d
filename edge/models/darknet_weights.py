"""Darknet's `.weights` files, both ways.

Form (`load_weights_upto` in Darknet's parser.c): three int32 for the version, then the number of
pictures seen, an int32 before version 0.2 and an int64 from there on, then float32 in cfg order.
Each convolution holds its biases, with batch norm its scales, means and variances, then its kernel.
All little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge.errors import ArtifactError
from edge.files import read_file, write_file
from edge.models.parameters import fill

__all__ = ["Header", "check_length", "count_floats", "load_weights", "save_weights"]

# No network has more than 2^29 floats (`darknet_layers.MOST_FLOATS`); the header adds a little.
_LIMIT_BYTES = 4 * 2**29 + 64
_HEADER_BYTES = 20


@dataclass(frozen=True)
class Header:
    """Version and number of training pictures seen."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0

    @property
    def form(self) -> str:
        """The struct format of the header: `seen` has 64 bits from version 0.2 on."""
        long = self.major * 10 + self.minor >= 2 and self.major < 1000 and self.minor < 1000
        return "<iiiQ" if long else "<iiiI"

    def pack(self) -> bytes:
        """Return the header's 16 or 20 bytes."""
        return struct.pack(self.form, self.major, self.minor, self.revision, self.seen)


def count_floats(model: nn.Module) -> int:
    """Return how many float32 the `.weights` file of a `Darknet` holds."""
    return sum(tensor.numel() for _, tensor in _tensors(model))


def check_length(model: nn.Module, path: str | Path) -> Header:
    """Read the header of a `.weights` file and compare its length with what `model` takes.

    Args:
        model: a `Darknet`; on the meta device it costs nothing.

    Raises:
        ArtifactError: the file cannot be read, or holds another number of floats than the cfg
            takes (both are named).
    """
    try:
        with Path(path).open("rb") as file:
            data, size = file.read(_HEADER_BYTES), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = _header(data, path)
    expected = count_floats(model)
    found, rest = divmod(size - struct.calcsize(header.form), 4)
    if found != expected or rest:
        surplus = f" and {rest} bytes" if rest else ""
        cause = "cut off, or of another cfg" if found < expected else "of another cfg"
        raise ArtifactError(
            f"{path}: {model.cfg.source} takes {expected} floats and the file holds "
            f"{found}{surplus}: it is {cause}"
        )
    return header


def load_weights(model: nn.Module, path: str | Path) -> Header:
    """Fill `model`, a `Darknet`, from a `.weights` file.

    Raises:
        ArtifactError: as `check_length`, or the file holds values that no layer can compute with
            (the layer is named).
    """
    header = check_length(model, path)
    data = read_file(path, limit=_LIMIT_BYTES)
    start = struct.calcsize(header.form)
    for (number, layer), tensor in _tensors(model):
        part = torch.from_numpy(np.frombuffer(data, "<f4", tensor.numel(), start).copy())
        where = f"{path}: layer {number}"
        fill(tensor, part.view_as(tensor), where, variance=tensor is _variance(layer))
        start += 4 * tensor.numel()
    return header


def save_weights(model: nn.Module, path: str | Path, header: Header | None = None) -> None:
    """Write a `Darknet` as a `.weights` file, byte for byte as `load_weights` read it.

    Raises:
        ArtifactError: the file cannot be written.
    """
    parts = [(header or Header()).pack()]
    for _, tensor in _tensors(model):
        parts.append(tensor.detach().cpu().numpy().astype("<f4").tobytes())
    write_file(Path(path), b"".join(parts))


def _header(data: bytes, path: str | Path) -> Header:
    if len(data) < 12:
        raise ArtifactError(f"{path}: {len(data)} bytes hold no header; not a Darknet weights file")
    version = Header(*struct.unpack_from("<iii", data))
    if len(data) < struct.calcsize(version.form):
        raise ArtifactError(f"{path}: ends inside its header; download or copy it again")
    return Header(*struct.unpack_from(version.form, data))


def _variance(layer: nn.Module) -> torch.Tensor | None:
    norm = getattr(layer, "norm", None)
    return None if norm is None else norm.running_var


def _tensors(model: nn.Module) -> Iterator[tuple[tuple[str, nn.Module], torch.Tensor]]:
    """Yield every tensor in the order of the file, with its layer's number and module."""
    for name, layer in model.layers.items():
        if not hasattr(layer, "conv"):
            continue
        norm = getattr(layer, "norm", None)
        tensors = (
            (layer.conv.bias,)
            if norm is None
            else (norm.bias, norm.weight, norm.running_mean, norm.running_var)
        )
        for tensor in (*tensors, layer.conv.weight):
            yield (name, layer), tensor
