"""Detectors in `.safetensors`: a state dict, with all that rebuilds the module as metadata.

Metadata keys, all text: `family` (darknet, squeezedet), `cfg` (Darknet's) or `config` (JSON of
SqueezeDetConfig), and for Darknet `classes` (JSON) and `resize`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge.edgez.package import Package
from edge.errors import ArtifactError
from edge.files import write_file
from edge.models.class_names import class_names
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg
from edge.models.squeezedet import SqueezeDet, SqueezeDetConfig, squeezedet_spec
from edge.optional import require
from edge.spec import ModelSpec

__all__ = ["load_safetensors", "package_safetensors", "save_safetensors"]


def save_safetensors(module: nn.Module, path: str | Path, spec: ModelSpec | None = None) -> None:
    """Write a Darknet or SqueezeDet; `spec` gives a Darknet's class names and resize mode.

    Raises:
        ArtifactError: the file cannot be written.
        TypeError: another kind of module.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    data = require("safetensors.torch").save(tensors, metadata=_metadata(module, spec))
    write_file(Path(path), data)


def load_safetensors(path: str | Path) -> tuple[nn.Module, ModelSpec]:
    """The module, in eval mode, and its spec, named after the file.

    Raises:
        ArtifactError: no such file, not safetensors, foreign metadata, tensors that do not fit or
            are not finite.
    """
    metadata, tensors = _read(Path(path))
    try:
        module, spec = _rebuild(metadata, Path(path))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path}: its metadata is not a detector of edge: {error}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{path}: {name} holds NaN or infinite weights")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path}: its tensors do not fit its own cfg: {first}") from error
    return module.eval(), spec


def _metadata(module: nn.Module, spec: ModelSpec | None) -> dict[str, str]:
    if isinstance(module, SqueezeDet):
        return {"family": "squeezedet", "config": json.dumps(asdict(module.config))}
    if not isinstance(module, Darknet):
        raise TypeError(f"{type(module).__name__} is neither Darknet nor SqueezeDet")
    classes = spec.classes if spec is not None else class_names(module.classes)
    resize = spec.contract.resize if spec is not None else "letterbox"
    return {
        "family": "darknet",
        "cfg": module.cfg.text,
        "classes": json.dumps(classes),
        "resize": resize,
    }


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path}: not a readable safetensors file: {error}") from error


def _rebuild(metadata: dict[str, str], path: Path) -> tuple[nn.Module, ModelSpec]:
    if metadata.get("family") == "darknet":
        model = Darknet(parse_cfg(metadata["cfg"], str(path)))
        resize: Any = metadata["resize"]
        return model, model.spec(path.stem, tuple(json.loads(metadata["classes"])), resize)
    if metadata.get("family") == "squeezedet":
        config = SqueezeDetConfig(**_tuples(json.loads(metadata["config"])))
        return SqueezeDet(config), squeezedet_spec(config, path.stem)
    raise KeyError("family")


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def package_safetensors(package: Package) -> bytes:
    """The dense weights as a `.safetensors` file of `edge.models.checkpoint`.

    Raises:
        ArtifactError: damaged.
        MissingDependency: safetensors is not installed.
    """
    save = require("safetensors.numpy").save
    data: bytes = save(dict(package.tensors()), metadata=package.model)
    return data
