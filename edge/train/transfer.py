"""Start from another network's weights, from the input upwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn

from edge.errors import ArtifactError
from edge.models.darknet import Darknet
from edge.models.darknet_weights import count_floats, load_weights
from edge.models.squeezedet import SqueezeDet
from edge.models.squeezenet_net import load_body, read_squeezenet_net
from edge.models.zoo import ZOO, load_model
from edge.train.freeze import layers

__all__ = ["Transfer", "load_from_input", "transfer"]


class Transfer(NamedTuple):
    """What a transfer did.

    Attributes:
        loaded: layers that have the weights of the file, in the order of the data.
        stopped: the first layer that does not fit and why; None where all fit.
    """

    loaded: list[str]
    stopped: str | None


def transfer(model: nn.Module, source: str | Path) -> Transfer:
    """Copy the weights of another network into `model`, as far as they fit.

    `source` is a zoo name, `.safetensors`, `.npz`, Darknet `.weights`, or for a SqueezeDet a
    SqueezeNet of Deep Compression (`.net`). `.weights` name no layers: they are read by the cfg
    beside them; without one they must end after one of this model's layers, as the files of
    `darknet partial` do.

    Raises:
        ArtifactError: as in `load_from_input`, or the file is missing or damaged.
    """
    path = Path(source)
    if path.suffix == ".net":
        return _load_net(model, path)
    if path.suffix == ".weights" and not path.with_suffix(".cfg").is_file():
        return _load_partial(model, path)
    known = str(source) if str(source) in ZOO and not path.is_file() else None
    if path.suffix == ".weights":
        path = path.with_suffix(".cfg")
    weights: Any = load_model(known or path).module.state_dict()
    return load_from_input(model, weights, str(source))


def load_from_input(model: nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> Transfer:
    """Copy layer after layer from the input upwards, up to the first that does not fit.

    Raises:
        ArtifactError: the first layer does not fit, or a layer is missing in `weights` while a
            later one, which was trained on its output, is there.
    """
    loaded: list[str] = []
    parts = {path: layer.state_dict() for path, layer in layers(model).items()}
    parts = {path: tensors for path, tensors in parts.items() if tensors}
    for path, tensors in parts.items():
        reason = _misfit(path, tensors, weights)
        if reason is None:
            loaded.append(path)
            continue
        later = [other for other in list(parts)[len(loaded) + 1 :] if _has(other, weights)]
        if later and not _has(path, weights):
            raise ArtifactError(
                f"{source}: {path} is missing while {later[0]} is there, a gap: what follows it "
                "was trained on its output; give a file without the gap, or other weights"
            )
        if not loaded:
            raise ArtifactError(f"{source}: already the first layer does not fit: {reason}")
        _copy(model, loaded, weights)
        return Transfer(loaded, reason)
    _copy(model, loaded, weights)
    return Transfer(loaded, None)


def _has(path: str, weights: Mapping[str, torch.Tensor]) -> bool:
    return any(name.startswith(path + ".") for name in weights)


def _misfit(
    path: str, tensors: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> str | None:
    for name, tensor in tensors.items():
        there = weights.get(f"{path}.{name}")
        if there is None:
            return f"{path}.{name} is not there"
        if there.shape != tensor.shape:
            return f"{path}.{name} is {tuple(there.shape)}, not {tuple(tensor.shape)}"
    return None


def _copy(model: nn.Module, loaded: list[str], weights: Mapping[str, torch.Tensor]) -> None:
    for path in loaded:
        layer = model.get_submodule(path)
        layer.load_state_dict({name: weights[f"{path}.{name}"] for name in layer.state_dict()})


def _load_net(model: nn.Module, path: Path) -> Transfer:
    if not isinstance(model, SqueezeDet):
        raise ArtifactError(f"{path}: a SqueezeNet, and the model is no SqueezeDet")
    loaded = [f"body.{name}" for name in load_body(model, read_squeezenet_net(path))]
    rest = [p for p, layer in layers(model).items() if layer.state_dict() and p not in loaded]
    return Transfer(loaded, f"{rest[0]} is not in the file" if rest else None)


def _load_partial(model: nn.Module, path: Path) -> Transfer:
    if not isinstance(model, Darknet):
        raise ArtifactError(
            f"{path}: Darknet weights, and the model is no Darknet; give its cfg too"
        )
    names = [name for name, layer in model.layers.items() if hasattr(layer, "conv")]
    size = path.stat().st_size if path.is_file() else 0
    for count in range(len(names), 0, -1):
        kept = {name: model.layers[name] for name in names[:count]}
        first: Any = SimpleNamespace(layers=kept, cfg=model.cfg)
        if size in (16 + 4 * count_floats(first), 20 + 4 * count_floats(first)):
            load_weights(first, path)
            rest = names[count:]
            why = f"layers.{rest[0]} is not in the file" if rest else None
            return Transfer([f"layers.{name}" for name in kept], why)
    if not size:
        raise ArtifactError(f"{path}: no such file, or empty")
    raise ArtifactError(
        f"{path}: {size} bytes end inside a layer of {model.cfg.source}; put the cfg that it was "
        f"trained with beside it as {path.with_suffix('.cfg').name}"
    )
