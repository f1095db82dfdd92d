"""A torch model as a network that can be looked into, under the names of its ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.measure.noise import Network, Tensors
from edge.optional import require
from edge.spec import ModelSpec

__all__ = ["open_torch"]


def open_torch(
    model: str | Path,
    *,
    names: str | Path | None = None,
    resize: Literal["letterbox", "stretch"] | None = None,
) -> tuple[Network, ModelSpec]:
    """Open a zoo name, .cfg, .npz or .safetensors, and say what it is.

    Args:
        names, resize: as `edge.models.zoo.load_model`.

    Raises:
        ArtifactError, MissingDependency: as `load_model`.
    """
    torch = require("torch")
    loaded: Any = require("edge.models.zoo").load_model(model, names=names, resize=resize)
    module, spec = loaded.module.eval(), loaded.spec
    shown: dict[str, NDArray[Any]] = {}
    makers: dict[int, str] = {}
    for name, part in module.named_modules():
        if not list(part.children()):
            part.register_forward_hook(_keep(name, shown, makers, torch.nn.BatchNorm2d))

    def run(tensor: NDArray[np.float32]) -> Tensors:
        shown.clear()
        makers.clear()
        with torch.no_grad():
            heads = module(torch.from_numpy(np.ascontiguousarray(tensor)))
        names = list(spec.tensors)
        outputs = {
            name: head.numpy().copy()
            for name, head in zip(names, heads if len(names) > 1 else _one(heads), strict=True)
        }
        return {**shown, **outputs}

    contract = spec.contract
    heads = frozenset(spec.tensors)
    shape, digest = (1, 3, *contract.hw), contract.digest
    return Network(str(model), "fp32", run, {}, shape, digest, heads), spec


def _one(heads: Any) -> Any:
    return heads if isinstance(heads, (tuple, list)) else (heads,)


def _keep(
    name: str, shown: dict[str, NDArray[Any]], makers: dict[int, str], norm: type[Any]
) -> Any:
    def hook(part: Any, given: Any, made: Any) -> None:
        # The ONNX file folds a batch norm into its convolution and keeps the convolution's name.
        label = makers.get(id(given[0]), name) if isinstance(part, norm) else name
        makers[id(made)] = label
        shown[label] = made.detach().numpy().copy()

    return hook
