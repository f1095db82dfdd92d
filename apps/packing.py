"""A module and its codebooks to a package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edge.compress.codebook import Codebook
from edge.compress.package import PackageSizes, Tensor, write_package
from edge.compress.package_onnx import split_graph
from edge.models.checkpoint import save_safetensors
from edge.optional import require
from edge.spec import ModelSpec
from export.onnx_writer import write_onnx

__all__ = ["pack"]


def pack(
    path: Path,
    module: nn.Module,
    spec: ModelSpec,
    books: Mapping[str, Codebook],
    scratch: Path,
    *,
    parent_sha256: str = "",
    labels: tuple[str, ...] = (),
    arguments: dict[str, Any] | None = None,
    stages: Sequence[Mapping[str, Any]] = (),
    coding: str = "auto",
    half: bool = True,
) -> PackageSizes:
    """Write `module` as a package; `books` by the path of their convolutions.

    Args:
        scratch: a folder for temporary files.
        stages, coding, half: as `edge.compress.package.write_package`.

    Raises:
        ArtifactError: the file cannot be written.
    """
    onnx = scratch / "dense.onnx"
    manifest = write_onnx(
        module, spec, onnx, parent_sha256=parent_sha256, labels=labels, arguments=arguments
    )
    tensors: dict[str, Tensor] = {
        name: books.get(name.removesuffix(".weight"), tensor.detach().numpy())
        for name, tensor in module.state_dict().items()
    }
    graph = split_graph(require("onnx").load(str(onnx)), tensors)
    return write_package(
        path,
        manifest,
        _metadata(module, spec, scratch),
        tensors,
        graph=graph,
        stages=stages,
        coding=coding,
        half=half,
    )


def _metadata(module: nn.Module, spec: ModelSpec, scratch: Path) -> dict[str, str]:
    """What rebuilds the module: the metadata of its `.safetensors`."""
    target = scratch / "dense.safetensors"
    save_safetensors(module, target, spec)
    with target.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        found: dict[str, str] = json.loads(file.read(size))["__metadata__"]
    return found
