"""A module and its codebooks to a package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edge.edgez.codebook import Codebook
from edge.edgez.graph import split_graph, write_package_onnx
from edge.edgez.package import Package, PackageSizes, Tensor, read_package, write_package
from edge.errors import MissingDependency
from edge.files import make_folder, write_file
from edge.models.checkpoint import package_safetensors, save_safetensors
from edge.optional import require
from edge.reporting import say
from edge.spec import ModelSpec
from export.graph.writer import write_onnx

__all__ = ["pack", "unpack"]


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
        stages, coding, half: as `edge.edgez.package.write_package`.

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


def unpack(source: str | Path, output: str | Path = "out") -> dict[str, str]:
    """Write what a package holds into a folder; the files by kind.

    Always NAME.fp32.onnx, which needs numpy alone; NAME.safetensors where safetensors is
    installed; where torch is too, also a Darknet's NAME.cfg and NAME.weights.

    Raises:
        ArtifactError: damaged, or the folder cannot be written.
    """
    package, folder = read_package(source), make_folder(output)
    files = {"onnx": str(write_package_onnx(source, folder))}
    try:
        files |= _trainable(package, folder)
    except MissingDependency as error:
        say(f"the ONNX file only: {error}")
    return files


def _trainable(package: Package, folder: Path) -> dict[str, str]:
    path = folder / f"{package.manifest.spec.name}.safetensors"
    write_file(path, package_safetensors(package))
    files = {"safetensors": str(path)}
    if package.model.get("family") == "darknet":
        module: Any = require("edge.models.checkpoint").load_safetensors(path)[0]
        cfg, weights = path.with_suffix(".cfg"), path.with_suffix(".weights")
        write_file(cfg, package.model["cfg"].encode())
        require("edge.models.darknet_weights").save_weights(module, weights)
        names = path.with_suffix(".names")
        write_file(names, "".join(f"{n}\n" for n in package.manifest.spec.classes).encode())
        files |= {"cfg": str(cfg), "weights": str(weights), "names": str(names)}
    return files
