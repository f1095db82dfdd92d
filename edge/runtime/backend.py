"""A loaded network behind one protocol, and the one door that opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import ArtifactError
from edge.spec import Manifest

__all__ = ["Backend", "cpu_options", "open_backend"]


class Backend(Protocol):
    """A loaded network. A context manager; bound to no thread.

    Attributes:
        manifest: of the artifact that was opened.
        name: what runs it, as reports print it: library, version, device.
        on_device: whether its tensors lie on a GPU, where the other stages then run too.
    """

    manifest: Manifest
    name: str
    on_device: bool

    def run(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The raw heads, in the order of `manifest.outputs`, of one (N, 3, H, W) float32 tensor."""
        ...

    def close(self) -> None:
        """Give back what the network holds; a second call does nothing."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(self, *args: object) -> None: ...


def cpu_options(artifact: str | Path, **options: Any) -> dict[str, Any]:
    """Those options of the CPU backend that were given, if that is what runs `artifact`."""
    if Path(artifact).suffix != ".onnx":
        return {}
    return {name: value for name, value in options.items() if value is not None}


def open_backend(artifact: str | Path, **options: Any) -> Backend:
    """Load an artifact: `.onnx` on onnxruntime, `.engine` on TensorRT or TensorRT-RTX.

    Raises:
        ArtifactError: the file is missing, of another kind, damaged or without a manifest.
        EngineMismatch: an engine that belongs to another TensorRT or GPU.
        MissingDependency: the library that runs it is not installed.
    """
    path = Path(artifact)
    if not path.is_file():
        raise ArtifactError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if path.suffix == ".onnx":
        from edge.runtime.backend_ort import OrtBackend

        return OrtBackend(path, **options)
    if path.suffix == ".engine":
        from edge.runtime.backend_trt import TrtBackend

        return TrtBackend(path, **options)
    raise ArtifactError(f"{path}: neither .onnx nor .engine; make one with: export-engine {path}")
