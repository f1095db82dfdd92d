"""Frame in, detections out: the one path that the camera, the evaluation and the bench share."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.errors import ArtifactError
from edge.reporting import say
from edge.runtime.backend import Backend, open_backend
from edge.runtime.pipeline_cpu import HostPipeline
from edge.spec import InputContract, Manifest, ModelSpec

__all__ = ["Detector"]

_SCORE = 0.25
_IOU = 0.45


class Detector:
    """A backend with its pre- and post-processing; every buffer is allocated once.

    Those stages run where the network runs: on the GPU for an engine, else on the CPU. Not for
    several threads at once: open one for each.

    Attributes:
        score, iou, limit: thresholds; may be changed between frames.
        pipeline: what a frame goes through.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        score: float | None = None,
        iou: float | None = None,
        limit: int = 300,
        contract: InputContract | None = None,
        multi_label: bool = False,
        **device: Any,
    ) -> None:
        """Allocate the buffers; for an engine compile or load the kernels.

        Args:
            score: by default what was fitted to the artifact, else 0.25.
            iou: by default what the network was made for, where that is known, else 0.45.
            device: of an engine alone, see `DevicePipeline`: `layout`, `use_graph`.

        Raises:
            ArtifactError: the manifest's heads are not the graph's outputs.
            MissingDependency: there is no compiler for the GPU's kernels.
            DeviceError: the kernels do not compile or load, or not enough memory.
        """
        spec = backend.manifest.spec
        contract = contract or spec.contract
        if contract.hw != spec.contract.hw:
            raise ValueError(f"the network takes {spec.contract.hw}, the contract {contract.hw}")
        _check_bindings(backend.manifest)
        fitted = backend.manifest.score
        self.score = score if score is not None else _SCORE if fitted is None else fitted
        made_for = backend.manifest.iou
        self.iou = iou if iou is not None else _IOU if made_for is None else made_for
        self.backend, self.limit = backend, limit
        self.contract = contract
        self.pipeline: Any = _pipeline(backend, contract, limit, multi_label, device)

    @staticmethod
    def open(
        artifact: str | Path,
        *,
        score: float | None = None,
        iou: float | None = None,
        limit: int = 300,
        contract: InputContract | None = None,
        multi_label: bool = False,
        **options: Any,
    ) -> Detector:
        """Open `artifact` on the backend that runs its kind.

        Args:
            score: detections at or below it are left out, 0..1; by default what was fitted to the
                artifact, else 0.25.
            iou: two boxes of a class that overlap more count as one, 0..1; by default what the
                network was made for, where that is known, else 0.45.
            limit: detections per frame at most.
            contract: overrides the artifact's own, for trying another; same input size.
            multi_label: see `Decoder`; evaluations use it, a camera does not.
            options: for the backend, such as `threads`.

        Raises:
            ArtifactError, EngineMismatch, MissingDependency: as `open_backend`.
        """
        backend = open_backend(artifact, **options)
        try:
            return Detector(
                backend,
                score=score,
                iou=iou,
                limit=limit,
                contract=contract,
                multi_label=multi_label,
            )
        except BaseException:
            backend.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """The artifact's manifest."""
        return self.backend.manifest

    @property
    def spec(self) -> ModelSpec:
        """The artifact's model."""
        return self.backend.manifest.spec

    @property
    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of the last frame by stage: preprocess, engine, decode, nms."""
        stages: dict[str, float] = self.pipeline.stages_ms
        return stages

    def __call__(self, frame: NDArray[np.uint8]) -> Detections:
        """Detections in one (H, W, 3) BGR uint8 frame, in its pixels, best first.

        Boxes are as the network draws them: they may reach beyond the frame.
        """
        found, fit = self.pipeline(frame, self.score, self.iou, self.limit)
        return Detections(fit.to_source(found.xyxy), found.score, found.class_id)

    def close(self) -> None:
        """Give back the buffers and close the backend; a second call does nothing."""
        self.pipeline.close()
        self.backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pipeline(
    backend: Any,
    contract: InputContract,
    limit: int,
    multi_label: bool,
    device: dict[str, Any],
) -> Any:
    spec = backend.manifest.spec
    foreign = any(head.kind == "foreign" for head in spec.heads)
    if backend.on_device and foreign:
        say(f"{spec.name}: the GPU's kernels do not read its heads; the CPU decodes them")
    if not backend.on_device or foreign:
        if device:
            raise ValueError(f"{backend.name} has no {', '.join(sorted(device))}")
        return HostPipeline(backend, contract, multi_label=multi_label)
    from edge.runtime.pipeline_gpu import DevicePipeline

    return DevicePipeline(backend, contract, limit=limit, multi_label=multi_label, **device)


def _check_bindings(manifest: Manifest) -> None:
    """Heads and outputs must tell one story, in one order, or decoding reads foreign numbers."""
    wrong = manifest.misfit()
    if wrong:
        outputs = [(tensor.name, tensor.shape[1:]) for tensor in manifest.outputs]
        raise ArtifactError(
            f"{manifest.spec.name}: its heads decode {wrong}, the graph's outputs are {outputs}; "
            "export the model again"
        )
