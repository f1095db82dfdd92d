"""Trained detectors without batch norms, for compression, from every form of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge.artifact import read_manifest
from edge.built_in import BUILT_IN, PACKAGED
from edge.edgez.package import read_package
from edge.errors import ArtifactError
from edge.files import sha256_of
from edge.models.builtin import build
from edge.models.checkpoint import load_safetensors
from edge.models.folding import fold_norms, has_norms, without_norms
from edge.models.package_weights import package_safetensors
from edge.models.zoo import load_model
from edge.optional import require
from edge.spec import ModelSpec

__all__ = ["Dense", "load_dense"]


@dataclass(frozen=True, eq=False)
class Dense:
    """A detector to compress.

    Attributes:
        module: without batch norms, in eval mode.
        normed: the same architecture with its batch norms; None if it never had any.
        sha256: of the file that it came from.
        labels: facts that every report must repeat.
    """

    module: nn.Module
    normed: nn.Module | None
    spec: ModelSpec
    sha256: str
    labels: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of its weights and biases as float32."""
        return 4 * sum(int(tensor.numel()) for tensor in self.module.state_dict().values())


def load_dense(
    model: str | Path, scratch: Path, *, name: str | None = None, **options: Any
) -> Dense:
    """Load a built-in or zoo name, .cfg, .npz, .safetensors or .edgez without batch norms.

    Args:
        scratch: a folder for temporary files.
        name: name of the detector, in place of its own.
        options: as `edge.models.zoo.load_model`.

    Raises:
        ArtifactError: there is no such model, or a file is damaged or does not fit.
    """
    dense = _load(model, scratch, **options)
    return dense if name is None else replace(dense, spec=replace(dense.spec, name=name))


def _load(model: str | Path, scratch: Path, **options: Any) -> Dense:
    given = {key: value for key, value in options.items() if value is not None}
    model = PACKAGED.get(str(model), model)
    if str(model) in BUILT_IN or Path(model).suffix == ".edgez":
        if given:
            raise ArtifactError(f"{model}: holds all of its model; leave {', '.join(given)} out")
        return _built_in(str(model)) if str(model) in BUILT_IN else _packed(Path(model), scratch)
    loaded = load_model(model, **given)
    normed = loaded.module if has_norms(loaded.module) else None
    return Dense(
        fold_norms(loaded.module), normed, loaded.spec, loaded.source_sha256, loaded.labels
    )


def _built_in(name: str) -> Dense:
    """Return the weights of the built-in ONNX file, which are folded, in its torch module."""
    normed: nn.Module = build(name)[0].eval()
    module, asset = without_norms(normed), BUILT_IN[name]
    graph = require("onnx").load(str(asset)).graph
    to_array = require("onnx.numpy_helper").to_array
    arrays = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    module.load_state_dict(
        {key: torch.from_numpy(arrays[key].copy()) for key in module.state_dict()}
    )
    return Dense(module, normed, read_manifest(asset).spec, sha256_of(asset))


def _packed(path: Path, scratch: Path) -> Dense:
    package = read_package(path)
    target = scratch / f"{package.manifest.spec.name}.safetensors"
    target.write_bytes(package_safetensors(package))
    module, _ = load_safetensors(target)
    return Dense(
        fold_norms(module), None, package.manifest.spec, sha256_of(path), package.manifest.labels
    )
