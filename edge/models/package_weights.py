"""The weights of a package as a `.safetensors` file; it needs neither torch nor a network."""

from __future__ import annotations

from edge.edgez.package import Package
from edge.optional import require

__all__ = ["package_safetensors"]


def package_safetensors(package: Package) -> bytes:
    """Return the dense weights of a package as a `.safetensors` file.

    Raises:
        ArtifactError: the package is damaged.
        MissingDependency: safetensors is not installed.
    """
    save = require("safetensors.numpy").save
    data: bytes = save(dict(package.tensors()), metadata=package.model)
    return data
