"""Detectors in `.safetensors`: a state dict, with all that rebuilds the module as metadata.

Metadata keys, all text: `family` (darknet, squeezedet), `cfg` (Darknet's) or `config` (JSON of
SqueezeDetConfig), and for Darknet `classes` (JSON) and `resize`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from edge.decoding import decode_json
from edge.errors import ArtifactError
from edge.files import write_file
from edge.models.class_names import class_names
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg
from edge.models.package_weights import ordered
from edge.models.parameters import fill
from edge.models.squeezedet import SqueezeDet, read_config, squeezedet_spec
from edge.optional import require
from edge.spec import ModelSpec

__all__ = ["load_safetensors", "read_safetensors", "save_safetensors"]


def save_safetensors(module: nn.Module, path: str | Path, spec: ModelSpec | None = None) -> None:
    """Write a Darknet or SqueezeDet; `spec` gives a Darknet's class names and resize mode.

    Raises:
        ArtifactError: the file cannot be written.
        TypeError: another kind of module.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    data = require("safetensors.torch").save(tensors, metadata=_metadata(module, spec))
    write_file(Path(path), ordered(data))


def load_safetensors(path: str | Path) -> tuple[nn.Module, ModelSpec]:
    """Return the module, in eval mode, and its spec, named after the file.

    Tensors are compared with what the metadata asks for before any memory is taken for it.

    Raises:
        ArtifactError: the file is missing, is not safetensors, has foreign metadata, or has
            tensors that do not fit or are not finite.
    """
    path = Path(path)
    metadata, tensors = read_safetensors(path, "safetensors file")
    build, spec = _plan(metadata, path)
    with torch.device("meta"):
        outline = build().state_dict()
    for name in [*outline, *tensors]:
        wanted, found = outline.get(name), tensors.get(name)
        if wanted is None or found is None or wanted.shape != found.shape:
            here, there = ("absent" if t is None else tuple(t.shape) for t in (found, wanted))
            raise ArtifactError(
                f"{path}: its tensors do not fit its own metadata: {name} is {here} and should be "
                f"{there}; copy it again"
            )
    module = build()
    for name, target in module.state_dict().items():
        fill(target, tensors[name], f"{path}: {name}", variance=name.endswith(".running_var"))
    return module.eval(), spec


def read_safetensors(path: str | Path, what: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the metadata and the tensors of a `.safetensors` file.

    Args:
        what: what the file is called in the message.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path}: not a readable {what}: {error}") from error


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


def _plan(metadata: dict[str, str], path: Path) -> tuple[Callable[[], nn.Module], ModelSpec]:
    """Return what builds the module that the metadata describes, and its spec."""
    where = f"{path}: its metadata is not a detector of edge"

    def value(key: str) -> str:
        if key not in metadata:
            raise ArtifactError(f"{where}: {key} is missing")
        return metadata[key]

    family = value("family")
    try:
        if family == "darknet":
            cfg, resize = parse_cfg(value("cfg"), str(path)), cast(Any, value("resize"))
            names: Any = tuple[str, ...]
            classes = decode_json(value("classes"), names, f"{where}: classes", "a list of names")
            with torch.device("meta"):
                spec = Darknet(cfg).spec(path.stem, classes, resize)
            return lambda: Darknet(cfg), spec
        if family == "squeezedet":
            config = read_config(value("config"), f"{where}: config")
            return lambda: SqueezeDet(config), squeezedet_spec(config, path.stem)
    except ValueError as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{where}: {error}") from error
    raise ArtifactError(f"{where}: family is {family[:40]!r}")
