"""SqueezeDet weights in numpy archives: `<layer>.weight` (OIHW) and `<layer>.bias`, float32.

Upstream's layer names: conv1, fire2_squeeze1x1, fire2_expand1x1, fire2_expand3x3, ..., conv12.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.errors import ArtifactError
from edge.files import plain_text
from edge.models.parameters import fill
from edge.models.squeezedet import (
    KITTI_CONFIG,
    Fire,
    SqueezeDet,
    SqueezeDetConfig,
    squeezedet_spec,
)
from edge.spec import ModelSpec

__all__ = ["load_squeezedet_npz"]

_HEAD = "conv12"
Value = TypeVar("Value")
# What zipfile, zlib and numpy raise of damaged archives.
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    KeyError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)


def load_squeezedet_npz(
    path: str | Path, config: SqueezeDetConfig = KITTI_CONFIG
) -> tuple[SqueezeDet, ModelSpec]:
    """Return a SqueezeDet from an archive; the head's kernel size is the file's.

    The shapes in the archive are compared with the network's before any array is read.

    Raises:
        ArtifactError: the file is no archive of plain arrays, or a layer is missing, unknown,
            of another shape or not finite.
    """
    path = Path(path)
    headers = _opened(path, _headers)
    head = headers.get(f"{_HEAD}.weight")
    if head is not None and len(head.shape) == 4:
        config = _with_head_size(config, head.shape[-1], path)
    with torch.device("meta"):
        outline = _named_parameters(SqueezeDet(config))
    if set(outline) != set(headers):
        difference = _difference(set(outline), set(headers))
        raise ArtifactError(f"{path}: {difference}; not this SqueezeDet")
    for name, parameter in outline.items():
        dtype, shape = headers[name]
        if dtype.kind != "f" or shape != tuple(parameter.shape):
            raise ArtifactError(
                f"{path}: {name} is {dtype} {shape}; it must be float {tuple(parameter.shape)}"
            )
    model = SqueezeDet(config)
    for name, parameter in _named_parameters(model).items():
        array = _opened(path, partial(_array, name))
        fill(parameter, torch.from_numpy(array), f"{path}: {name}")
    return model.eval(), squeezedet_spec(config, path.stem)


def _opened(path: Path, read: Callable[[zipfile.ZipFile], Value]) -> Value:
    """Return what `read` makes of the archive; whatever is wrong with it is one error."""
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise ValueError("it is a single array")
        with zipfile.ZipFile(path) as archive:
            return read(archive)
    except ArtifactError:
        raise
    except _DAMAGED as error:
        text = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path}: not a readable .npz of plain arrays: {text}") from error


class _Header(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def _headers(archive: zipfile.ZipFile) -> dict[str, _Header]:
    """Return kind and shape of each array, from the headers alone."""
    found: dict[str, _Header] = {}
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        if name in found:
            raise ValueError(f"{plain_text(name)[:60]!r} stands twice in it")
        with archive.open(member) as file:
            found[name] = _header(file)
    return found


def _header(file: Any) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the .npy format")
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return _Header(dtype, shape)


def _array(name: str, archive: zipfile.ZipFile) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))


def _with_head_size(config: SqueezeDetConfig, size: int, path: str | Path) -> SqueezeDetConfig:
    try:
        return replace(config, head_size=int(size))
    except ValueError as error:
        raise ArtifactError(f"{path}: {_HEAD} is {size} wide: {error}") from error


def _difference(wanted: set[str], found: set[str]) -> str:
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    kind, names = ("lacks", missing) if missing else ("has the unknown", surplus)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{kind} {', '.join(names[:3])}{more}"


def _named_convolutions(model: SqueezeDet) -> dict[str, nn.Conv2d]:
    """Return each convolution by upstream's name."""
    found: dict[str, nn.Conv2d] = {}
    for name, module in model.body.named_children():
        if isinstance(module, Fire):
            found[f"{name}_squeeze1x1"] = module.squeeze.conv
            found[f"{name}_expand1x1"] = module.expand1.conv
            found[f"{name}_expand3x3"] = module.expand3.conv
        elif hasattr(module, "conv"):
            found[name] = module.conv
    found[_HEAD] = model.convdet
    return found


def _named_parameters(model: SqueezeDet) -> dict[str, nn.Parameter]:
    return {
        f"{layer}.{part}": getattr(conv, part)
        for layer, conv in _named_convolutions(model).items()
        for part in ("weight", "bias")
    }
