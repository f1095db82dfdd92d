"""A package to the files that hold the same detector: `edge unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.table import show
from edge.artifact import make_folder, write_atomic
from edge.compress.package import Package, read_package
from edge.compress.package_files import package_safetensors
from edge.compress.package_onnx import write_package_onnx
from edge.errors import MissingDependency
from edge.optional import require
from edge.reporting import say

__all__ = ["print_unpacked", "unpack"]


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
    write_atomic(path, package_safetensors(package))
    files = {"safetensors": str(path)}
    if package.model.get("family") == "darknet":
        module: Any = require("edge.models.checkpoint").load_safetensors(path)[0]
        cfg, weights = path.with_suffix(".cfg"), path.with_suffix(".weights")
        write_atomic(cfg, package.model["cfg"].encode())
        require("edge.models.darknet_weights").save_weights(module, weights)
        names = path.with_suffix(".names")
        write_atomic(names, "".join(f"{n}\n" for n in package.manifest.spec.classes).encode())
        files |= {"cfg": str(cfg), "weights": str(weights), "names": str(names)}
    return files


def print_unpacked(source: str | Path, files: dict[str, str]) -> None:
    """The files as a table on stdout."""
    rows = [(kind, path, f"{Path(path).stat().st_size / 1e6:.3f}") for kind, path in files.items()]
    show(f"{source}, {Path(source).stat().st_size / 1e6:.3f} MB", ("file", "path", "MB"), rows)
