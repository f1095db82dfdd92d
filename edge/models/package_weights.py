"""The weights of a package as a `.safetensors` file; it needs neither torch nor a network."""

from __future__ import annotations

import json

from edge.edgez.package import Package
from edge.optional import require

__all__ = ["ordered", "package_safetensors"]


def package_safetensors(package: Package) -> bytes:
    """Return the dense weights of a package as a `.safetensors` file.

    Raises:
        ArtifactError: the package is damaged.
        MissingDependency: safetensors is not installed.
    """
    save = require("safetensors.numpy").save
    return ordered(save(dict(package.tensors()), metadata=package.model))


def ordered(data: bytes) -> bytes:
    """Sort the metadata of a `.safetensors` file, which its writer puts in a random order.

    So the same weights are the same file each time.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
