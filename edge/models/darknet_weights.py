"""Darknet's `.weights` files, both ways.

Form (`load_weights_upto` in Darknet's parser.c): three int32 for the version, then the number of
pictures seen, an int32 before version 0.2 and an int64 from there on, then float32 in cfg order.
Each convolution holds its biases, with batch norm its scales, means and variances, then its kernel.
All little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.errors import ArtifactError
from edge.files import write_file
from edge.models.darknet_layers import BATCH_NORM_EPS

__all__ = ["Header", "count_floats", "load_weights", "save_weights"]


@dataclass(frozen=True)
class Header:
    """Version and number of training pictures seen."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0

    @property
    def form(self) -> str:
        """The header's struct format: `seen` has 64 bits from version 0.2 on."""
        long = self.major * 10 + self.minor >= 2 and self.major < 1000 and self.minor < 1000
        return "<iiiQ" if long else "<iiiI"

    def pack(self) -> bytes:
        """The header's 16 or 20 bytes."""
        return struct.pack(self.form, self.major, self.minor, self.revision, self.seen)


def count_floats(model: nn.Module) -> int:
    """How many float32 the `.weights` file of a `Darknet` holds."""
    return sum(tensor.numel() for _, tensor in _tensors(model))


def load_weights(model: nn.Module, path: str | Path) -> Header:
    """Fill `model`, a `Darknet`, from a `.weights` file.

    Raises:
        ArtifactError: the file cannot be read, holds another number of floats than the cfg takes
            (both are named), or holds values that no layer can compute with (the layer is named).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = _header(data, path)
    offset = struct.calcsize(header.form)
    _check_length(model, path, len(data) - offset)
    values = np.frombuffer(data, "<f4", offset=offset)
    for layer, tensor, part in _parts(model, values):
        _check_values(part, tensor is _variance(layer[1]), f"{path}: layer {layer[0]}")
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(part.copy()).view_as(tensor))
    return header


def save_weights(model: nn.Module, path: str | Path, header: Header | None = None) -> None:
    """Write a `Darknet` as a `.weights` file; what `load_weights` read comes out byte for byte."""
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


def _check_length(model: nn.Module, path: str | Path, size: int) -> None:
    expected, found, rest = count_floats(model), size // 4, size % 4
    if found == expected and not rest:
        return
    surplus = f" and {rest} bytes" if rest else ""
    cause = "cut off, or of another cfg" if found < expected else "of another cfg"
    raise ArtifactError(
        f"{path}: {model.cfg.source} takes {expected} floats and the file holds {found}{surplus}: "
        f"it is {cause}"
    )


def _check_values(part: NDArray[np.float32], variance: bool, where: str) -> None:
    if not np.isfinite(part).all():
        raise ArtifactError(f"{where} holds NaN or infinite weights; train or copy it again")
    # OpenCV takes the root of variance + eps too, so tiny negative variances are harmless.
    if variance and part.min() + BATCH_NORM_EPS <= 0:
        raise ArtifactError(f"{where} holds a batch norm variance of {part.min():g}, below zero")


def _variance(layer: nn.Module) -> torch.Tensor | None:
    norm = getattr(layer, "norm", None)
    return None if norm is None else norm.running_var


def _tensors(model: nn.Module) -> Iterator[tuple[tuple[str, nn.Module], torch.Tensor]]:
    """Every tensor in the file's order, with its layer's number and module."""
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


def _parts(
    model: nn.Module, values: NDArray[np.float32]
) -> Iterator[tuple[tuple[str, nn.Module], torch.Tensor, NDArray[np.float32]]]:
    start = 0
    for layer, tensor in _tensors(model):
        stop = start + tensor.numel()
        yield layer, tensor, values[start:stop]
        start = stop
