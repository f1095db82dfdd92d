"""Write a package as the files of a network: `edge unpack`; a device needs numpy alone for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.edgez.graph import write_package_onnx
from edge.edgez.package import Package, read_package
from edge.errors import MissingDependency
from edge.files import make_folder, write_file
from edge.models.package_weights import package_safetensors
from edge.optional import require
from edge.reporting import say

__all__ = ["unpack"]


def unpack(source: str | Path, output: str | Path = "out") -> dict[str, str]:
    """Write what a package holds into a folder; return the files by kind.

    NAME.fp32.onnx needs numpy alone; with safetensors installed NAME.safetensors is written too,
    and with torch, for a Darknet, NAME.cfg, NAME.weights and NAME.names.

    Raises:
        ArtifactError: damaged, or the folder cannot be written.
    """
    package, folder = read_package(source), make_folder(output)
    files = {"onnx": str(write_package_onnx(source, folder))}
    try:
        files |= _trainable(package, folder)
    except MissingDependency as error:
        say(f"only the ONNX file is written: {error}")
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
