"""Write a package as the files of a network: `edge unpack`; a device needs numpy alone for it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edge.edgez.graph import write_package_onnx
from edge.edgez.package import Package, read_package
from edge.errors import ArtifactError, MissingDependency
from edge.files import make_folder, read_file, write_file
from edge.models.package_weights import package_safetensors
from edge.optional import require
from edge.reporting import say

__all__ = ["unpack"]

_MOST_BYTES = 4 << 30


def unpack(
    source: str | Path, output: str | Path = "out", *, force: bool = False
) -> dict[str, str]:
    """Write what a package holds into a folder; return the files by kind.

    NAME.fp32.onnx needs numpy alone; with safetensors installed NAME.safetensors is written too,
    and with torch, for a Darknet, NAME.cfg, NAME.weights and NAME.names.

    Args:
        force: replace files of these names that have another content.

    Raises:
        ArtifactError: the package is damaged, the folder cannot be written, or a file of another
            content is there; then nothing is written.
    """
    package, folder = read_package(source), make_folder(output)
    with tempfile.TemporaryDirectory(prefix="edge-unpack-") as scratch:
        made = {"onnx": write_package_onnx(source, Path(scratch))}
        try:
            made |= _trainable(package, Path(scratch))
        except MissingDependency as error:
            say(f"only the ONNX file is written: {error}")
        for path in made.values():
            if not force and _differs(folder / path.name, path):
                raise ArtifactError(
                    f"{folder / path.name}: is there and is not the one in {source}; unpack into "
                    "another folder, or replace it with --force"
                )
        for path in made.values():
            write_file(folder / path.name, path.read_bytes())
    return {kind: str(folder / path.name) for kind, path in made.items()}


def _differs(there: Path, new: Path) -> bool:
    if not there.is_file():
        return False
    same = there.stat().st_size == new.stat().st_size
    return not same or read_file(there, limit=_MOST_BYTES) != new.read_bytes()


def _trainable(package: Package, folder: Path) -> dict[str, Path]:
    path = folder / f"{package.manifest.spec.name}.safetensors"
    write_file(path, package_safetensors(package))
    files = {"safetensors": path}
    if package.model.get("family") == "darknet":
        module: Any = require("edge.models.checkpoint").load_safetensors(path)[0]
        made = {kind: path.with_suffix(f".{kind}") for kind in ("cfg", "weights", "names")}
        write_file(made["cfg"], package.model["cfg"].encode())
        require("edge.models.darknet_weights").save_weights(module, made["weights"])
        names = "".join(f"{name}\n" for name in package.manifest.spec.classes)
        write_file(made["names"], names.encode())
        files |= made
    return files
