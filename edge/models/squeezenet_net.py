"""SqueezeNet 1.0 as Deep Compression publishes it: `compressed_SqueezeNet.net`, little endian.

Layout (songhan/SqueezeNet-Deep-Compression, decode.py), each of 26 convolutions from the input up:

    26 x uint32           stored weights of each layer, fillers included
    then for each layer:
    256 x float32         codebook; entry 0 is zero
    filters x float32     bias
    stored x uint8        codebook index of each stored weight
    ceil(stored/2) bytes  relative index, 4 bits each, low half first: the zeros to skip before
                          the stored weight; where more than 15 follow each other, a filler of
                          value zero is stored
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge.errors import ArtifactError
from edge.models.parameters import check_weights
from edge.models.squeezedet import Fire, SqueezeDet

__all__ = ["SQUEEZENET_1_0", "load_body", "read_squeezenet_net"]

_CODES = 256
_FIRES = (
    (96, 16, 64),
    (128, 16, 64),
    (128, 32, 128),
    (256, 32, 128),
    (256, 48, 192),
    (384, 48, 192),
    (384, 64, 256),
    (512, 64, 256),
)


def _layers() -> dict[str, tuple[int, int, int, int]]:
    shapes = {"conv1": (96, 3, 7, 7)}
    for number, (channels, squeeze, expand) in enumerate(_FIRES, start=2):
        shapes[f"fire{number}/conv1x1_1"] = (squeeze, channels, 1, 1)
        shapes[f"fire{number}/conv1x1_2"] = (expand, squeeze, 1, 1)
        shapes[f"fire{number}/conv3x3_2"] = (expand, squeeze, 3, 3)
    return shapes | {"conv_final": (1000, 512, 1, 1)}


# Caffe's layer names and OIHW shapes, in the order of the file (SqueezeNet_deploy.prototxt).
SQUEEZENET_1_0: dict[str, tuple[int, int, int, int]] = _layers()


@dataclass
class _Reader:
    data: bytes
    path: Path
    at: int = 0

    def take(self, count: int, dtype: str, what: str) -> NDArray[Any]:
        """Return the next `count` numbers; a file that is too short is refused first."""
        size = count * np.dtype(dtype).itemsize
        left = len(self.data) - self.at
        if size > left:
            raise ArtifactError(
                f"{self.path}: cut off: {what} takes {size} bytes, {left} are left; copy it again"
            )
        array = np.frombuffer(self.data, dtype, count, self.at)
        self.at += size
        return array


def read_squeezenet_net(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """Return `LAYER.weight` (OIHW) and `LAYER.bias` of each layer of `SQUEEZENET_1_0`, float32.

    Raises:
        ArtifactError: the file cannot be read, is cut off or too long, places weights behind a
            layer's end, or holds numbers that are not finite.
    """
    reader = _Reader(_bytes(Path(path)), Path(path))
    stored = reader.take(len(SQUEEZENET_1_0), "<u4", "the table of layers").tolist()
    arrays: dict[str, NDArray[np.float32]] = {}
    for (name, shape), count in zip(SQUEEZENET_1_0.items(), stored, strict=True):
        weight, bias = _layer(reader, name, shape, count)
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = weight, bias
    if reader.at != len(reader.data):
        surplus = len(reader.data) - reader.at
        raise ArtifactError(f"{path}: {surplus} bytes after the last layer; not this format")
    return arrays


def _bytes(path: Path) -> bytes:
    # No layer can store more than all of its weights: a byte and a half each.
    most = sum(int(np.prod(shape)) * 2 + (shape[0] + _CODES) * 4 + 4 for shape in _shapes())
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > most:
        raise ArtifactError(f"{path}: over {most} bytes; SqueezeNet 1.0 never takes so many")
    return data


def _shapes() -> list[tuple[int, int, int, int]]:
    return list(SQUEEZENET_1_0.values())


def _layer(
    reader: _Reader, name: str, shape: tuple[int, int, int, int], stored: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    size = int(np.prod(shape))
    if stored > size:
        raise ArtifactError(
            f"{reader.path}: {name} stores {stored} of its {size} weights; not this format"
        )
    codebook = _finite(reader, _CODES, f"{name}'s codebook")
    bias = _finite(reader, shape[0], f"{name}'s bias")
    code = reader.take(stored, "u1", f"{name}'s codes")
    packed = reader.take((stored + 1) // 2, "u1", f"{name}'s indices")
    skips = np.stack((packed & 15, packed >> 4), axis=1).reshape(-1)[:stored]
    at = np.cumsum(skips.astype(np.int64) + 1) - 1
    if stored and at[-1] >= size:
        raise ArtifactError(f"{reader.path}: {name} places weight {at[-1]} of {size}; damaged")
    weight = np.full(size, codebook[0], np.float32)
    weight[at] = codebook[code]
    return weight.reshape(shape), bias.astype(np.float32)


def _finite(reader: _Reader, count: int, what: str) -> NDArray[Any]:
    values = reader.take(count, "<f4", what)
    check_weights(torch.from_numpy(values.astype(np.float32)), f"{reader.path}: {what}")
    return values


def load_body(model: SqueezeDet, arrays: dict[str, NDArray[np.float32]]) -> tuple[str, ...]:
    """Copy conv1 and every fire of SqueezeNet 1.0 into `model`, and return their names.

    Raises:
        ArtifactError: `model` has another body; the first layer that does not fit is named.
    """
    filled = []
    for name, module in model.body.named_children():
        if name == "conv1" or f"{name}/conv1x1_1" in SQUEEZENET_1_0:
            for layer, conv in _convolutions(name, module).items():
                _copy(conv, layer, arrays)
            filled.append(name)
    return tuple(filled)


def _convolutions(name: str, module: torch.nn.Module) -> dict[str, Any]:
    if not isinstance(module, Fire):
        return {name: module.conv}
    parts = (module.squeeze.conv, module.expand1.conv, module.expand3.conv)
    kinds = ("1x1_1", "1x1_2", "3x3_2")
    return {f"{name}/conv{kind}": conv for kind, conv in zip(kinds, parts, strict=True)}


def _copy(conv: Any, layer: str, arrays: dict[str, NDArray[np.float32]]) -> None:
    weight, bias = arrays[f"{layer}.weight"], arrays[f"{layer}.bias"]
    if tuple(conv.weight.shape) != weight.shape or conv.bias is None:
        raise ArtifactError(
            f"{layer} is {weight.shape} with a bias in SqueezeNet 1.0, "
            f"{tuple(conv.weight.shape)} here; take edge.models.squeezedet.version_1_0"
        )
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(weight))
        conv.bias.copy_(torch.from_numpy(bias))
