"""A package as the file that training reads; safetensors is needed, torch is not."""

from __future__ import annotations

from edge.compress.package import Package
from edge.optional import require

__all__ = ["package_safetensors"]


def package_safetensors(package: Package) -> bytes:
    """The dense weights as a `.safetensors` file of `edge.models.checkpoint`.

    Raises:
        ArtifactError: damaged.
        MissingDependency: safetensors is not installed.
    """
    save = require("safetensors.numpy").save
    data: bytes = save(dict(package.tensors()), metadata=package.model)
    return data
