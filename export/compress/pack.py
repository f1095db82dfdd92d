"""Write a network and its codebooks as a package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from edge.edgez.codebook import Codebook
from edge.edgez.graph import split_graph
from edge.edgez.package import PackageSizes, Tensor, write_package
from edge.edgez.tensors import as_half
from edge.errors import ArtifactError
from edge.files import refuse_input
from edge.models.checkpoint import save_safetensors
from edge.models.dense import Dense
from edge.optional import require
from edge.spec import ModelSpec
from export.graph.writer import write_onnx

__all__ = ["half_books", "pack", "package_target"]


def package_target(output: str) -> Path:
    """Return the path of a package to write, refused before any work is done.

    Raises:
        ArtifactError: it is not called NAME.edgez, or is an input of the running command.
    """
    target = Path(output)
    if target.suffix != ".edgez":
        raise ArtifactError(f"{target}: a package is called NAME.edgez")
    refuse_input(target)
    return target


def half_books(books: Mapping[str, Codebook]) -> dict[str, Codebook]:
    """Return the codebooks rounded to FP16; those beyond its range stay as they are."""
    return {path: cast(Codebook, as_half(book)) for path, book in books.items()}


def pack(
    path: Path,
    module: nn.Module,
    dense: Dense,
    books: Mapping[str, Codebook],
    scratch: Path,
    *,
    stages: Sequence[Mapping[str, Any]] = (),
    coding: str = "auto",
    half: bool = True,
) -> PackageSizes:
    """Write `module` as a package.

    Args:
        dense: the detector that the module was made from.
        books: by the path of their convolutions.
        scratch: folder for temporary files.
        stages, coding, half: as `edge.edgez.package.write_package` takes them.

    Raises:
        ArtifactError: the file cannot be written.
    """
    onnx = scratch / "dense.onnx"
    manifest = write_onnx(module, dense.spec, onnx, parent_sha256=dense.sha256, labels=dense.labels)
    tensors: dict[str, Tensor] = {
        name: books.get(name.removesuffix(".weight"), tensor.detach().numpy())
        for name, tensor in module.state_dict().items()
    }
    graph = split_graph(require("onnx").load(str(onnx)), tensors)
    return write_package(
        path,
        manifest,
        _metadata(module, dense.spec, scratch),
        tensors,
        graph=graph,
        stages=stages,
        coding=coding,
        half=half,
    )


def _metadata(module: nn.Module, spec: ModelSpec, scratch: Path) -> dict[str, str]:
    """Return what rebuilds the module: the metadata of its `.safetensors`."""
    target = scratch / "dense.safetensors"
    save_safetensors(module, target, spec)
    with target.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        found: dict[str, str] = json.loads(file.read(size))["__metadata__"]
    return found
