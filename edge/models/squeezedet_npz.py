"""SqueezeDet weights in numpy archives: `<layer>.weight` (OIHW) and `<layer>.bias`, float32.

Upstream's layer names: conv1, fire2_squeeze1x1, fire2_expand1x1, fire2_expand3x3, ..., conv12.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.errors import ArtifactError
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


def load_squeezedet_npz(
    path: str | Path, config: SqueezeDetConfig = KITTI_CONFIG
) -> tuple[SqueezeDet, ModelSpec]:
    """A SqueezeDet from an archive; the head's kernel size is the file's, all else `config`'s.

    Raises:
        ArtifactError: no archive, pickled, a layer is missing, left over, misshapen or not finite.
    """
    arrays = _read(Path(path))
    if f"{_HEAD}.weight" in arrays and arrays[f"{_HEAD}.weight"].ndim == 4:
        config = _with_head_size(config, arrays[f"{_HEAD}.weight"].shape[-1], path)
    model = SqueezeDet(config)
    convolutions = _named_convolutions(model)
    wanted = {f"{layer}.{part}" for layer in convolutions for part in ("weight", "bias")}
    if wanted != set(arrays):
        raise ArtifactError(f"{path}: {_difference(wanted, set(arrays))}; not this SqueezeDet")
    for layer, conv in convolutions.items():
        _fill(conv.weight, arrays[f"{layer}.weight"], f"{path}: {layer}.weight")
        _fill(conv.bias, arrays[f"{layer}.bias"], f"{path}: {layer}.bias")
    return model.eval(), squeezedet_spec(config, Path(path).stem)


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is a single array")
        with archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise ArtifactError(f"{path}: not a readable .npz of plain arrays: {error}") from error


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
    """Each convolution by upstream's name."""
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


def _fill(parameter: nn.Parameter, array: NDArray[np.generic], where: str) -> None:
    if array.dtype.kind != "f" or array.shape != tuple(parameter.shape):
        raise ArtifactError(
            f"{where} is {array.dtype} {array.shape}; it must be float {tuple(parameter.shape)}"
        )
    if not np.isfinite(array).all():
        raise ArtifactError(f"{where} holds NaN or infinite weights")
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(array.astype(np.float32)))
