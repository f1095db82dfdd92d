"""A loaded network behind one protocol, the steps of a frame through it, and what opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.errors import ArtifactError
from edge.letterbox import Letterbox
from edge.onnx_file import OnnxFile
from edge.spec import Manifest

__all__ = ["Backend", "Pipeline", "Prepared", "Raw", "open_backend"]


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


@dataclass(eq=False, slots=True)
class Prepared:
    """A frame that is ready for the network, for one run.

    Attributes:
        fit: where the frame lies in the network's input.
        tensor: (1, 3, H, W) float32; empty where the frame lies on the GPU.
        ms: what preparing took.
        owner: what holds the tensor's memory until the network has run; None afterwards.
    """

    fit: Letterbox
    tensor: NDArray[np.float32]
    ms: float
    owner: object | None


@dataclass(frozen=True, eq=False, slots=True)
class Raw:
    """What the network made of a frame.

    Attributes:
        fit: where the frame lies in the network's input.
        heads: raw outputs in the order of the manifest; empty where they lie on the GPU.
        stages_ms: milliseconds by stage up to here.
    """

    fit: Letterbox
    heads: list[NDArray[np.float32]]
    stages_ms: dict[str, float]


class Pipeline(Protocol):
    """What a `Detector` does with a frame, in three steps."""

    def prepare(self, frame: NDArray[np.uint8]) -> Prepared:
        """Make a frame the network's input."""
        ...

    def run(self, prepared: Prepared, score: float, iou: float) -> Raw:
        """Run the network."""
        ...

    def finish(
        self, raw: Raw, score: float, iou: float, limit: int
    ) -> tuple[Detections, dict[str, float]]:
        """Give the detections in pixels of the network's input, and milliseconds of all stages."""
        ...

    def close(self) -> None:
        """Give back the buffers; a second call does nothing."""
        ...


def open_backend(
    artifact: str | Path | OnnxFile,
    *,
    threads: int | None = None,
    exact: bool = False,
    rearrange: bool = True,
) -> Backend:
    """Load an artifact: `.onnx` on onnxruntime, `.engine` on TensorRT or TensorRT-RTX.

    Args:
        threads, exact, rearrange: see `OrtBackend`; an engine has no such choices.

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

        file = artifact if isinstance(artifact, OnnxFile) else path
        return OrtBackend(file, threads=threads, exact=exact, rearrange=rearrange)
    if path.suffix == ".engine":
        from edge.runtime.backend_trt import TrtBackend

        return TrtBackend(path)
    raise ArtifactError(f"{path}: neither .onnx nor .engine; make one with: export-engine {path}")
