"""Frame in, detections out: the one path that the camera, the evaluation and the bench share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.errors import ArtifactError
from edge.onnx_file import OnnxFile
from edge.runtime.backend import Backend, Pipeline, Prepared, Raw, open_backend
from edge.runtime.pipeline_cpu import HostPipeline
from edge.spec import InputContract, Manifest, ModelSpec

if TYPE_CHECKING:
    from edge.runtime.backend_trt import TrtBackend
    from edge.runtime.ops_gpu import FrameFormat

__all__ = ["SCORE", "Detector"]

# The threshold where none was fitted to the artifact.
SCORE = 0.25
_IOU = 0.45


class Detector:
    """A network with its pre- and post-processing; every buffer is allocated once.

    Those stages run where the network runs: on the GPU for an engine, else on the CPU. Calling it
    does all of `prepare`, `run` and `finish`. It is for one thread at a time; a call from a second
    one meanwhile is refused. On the CPU the three steps may be spread over threads: `prepare`
    and `run` may go on for several frames at once, `finish` for one.

    Attributes:
        score, iou, limit: thresholds; may be changed between frames.
        stages_ms: milliseconds of the last frame by stage: preprocess, engine, decode, nms.
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
        layout: FrameFormat = "bgr",
        use_graph: bool = True,
    ) -> None:
        """Allocate the buffers; for an engine compile or load the kernels.

        Args:
            score: by default what was fitted to the artifact, else 0.25.
            iou: by default what the network was made for, where that is known, else 0.45.
            layout: of the frames; an engine alone takes others than `bgr`.
            use_graph: record an engine's work as a CUDA graph.

        Raises:
            ArtifactError: the manifest's heads are not the graph's outputs.
            MissingDependency: there is no compiler for the GPU's kernels.
            DeviceError: the kernels do not compile or load, or not enough memory.
        """
        spec = backend.manifest.spec
        contract = contract or spec.contract
        if contract.hw != spec.contract.hw:
            raise ValueError(f"the network takes {spec.contract.hw}, the contract {contract.hw}")
        _check_outputs(backend.manifest)
        fitted = backend.manifest.score
        self.score = score if score is not None else SCORE if fitted is None else fitted
        made_for = backend.manifest.iou
        self.iou = iou if iou is not None else _IOU if made_for is None else made_for
        self.backend, self.limit = backend, limit
        own = spec.family in ("darknet", "squeezedet")
        self._clips = not own and any(head.kind == "foreign" for head in spec.heads)
        self.contract = contract
        self.stages_ms: dict[str, float] = {}
        self._in_use = threading.Lock()
        self.pipeline: Pipeline
        if not backend.on_device:
            if layout != "bgr":
                raise ValueError(f"{backend.name} takes frames as bgr, not {layout}")
            self.pipeline = HostPipeline(backend, contract, multi_label=multi_label)
        else:
            from edge.runtime.pipeline_gpu import DevicePipeline

            self.pipeline = DevicePipeline(
                cast("TrtBackend", backend),
                contract,
                limit=limit,
                multi_label=multi_label,
                layout=layout,
                use_graph=use_graph,
            )

    @staticmethod
    def open(
        artifact: str | Path | OnnxFile,
        *,
        score: float | None = None,
        iou: float | None = None,
        limit: int = 300,
        contract: InputContract | None = None,
        multi_label: bool = False,
        threads: int | None = None,
        exact: bool = False,
        rearrange: bool = True,
    ) -> Detector:
        """Open an artifact: `.onnx` on the CPU, `.engine` on its GPU.

        Args:
            score: detections at or below it are left out, 0..1; by default what was fitted to the
                artifact, else 0.25.
            iou: two boxes of a class that overlap more count as one, 0..1; by default what the
                network was made for, where that is known, else 0.45.
            limit: detections per frame at most.
            contract: replaces the artifact's own, for trying another; same input size.
            multi_label: see `Decoder`; evaluations use it, a camera does not.
            threads, exact, rearrange: of the CPU, see `OrtBackend`; an engine has no such choices.

        Raises:
            ArtifactError, EngineMismatch, MissingDependency: as `open_backend`.
        """
        backend = open_backend(artifact, threads=threads, exact=exact, rearrange=rearrange)
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

    def __call__(self, frame: NDArray[np.uint8]) -> Detections:
        """Return the detections in one (H, W, 3) BGR uint8 frame, in its pixels, best first.

        Boxes of our own networks are as these draw them and may reach beyond the frame; those of
        imported ones end at its edge, as in the decoders that they come with.

        Raises:
            ValueError: the frame is of another shape or type.
            RuntimeError: another thread is in a call of this detector.
        """
        with self._alone():
            prepared = self.pipeline.prepare(frame)
            return self._finish(self.pipeline.run(prepared, self.score, self.iou))

    def prepare(self, frame: NDArray[np.uint8]) -> Prepared:
        """Make a frame the network's input. `run` it once.

        On the CPU several frames may be prepared ahead; an engine holds one.

        Raises:
            ValueError: the frame is of another shape or type.
        """
        return self.pipeline.prepare(frame)

    def run(self, prepared: Prepared) -> Raw:
        """Run the network on a prepared frame; on the CPU from any thread.

        Raises:
            ValueError: an engine was given another frame to prepare since.
        """
        return self.pipeline.run(prepared, self.score, self.iou)

    def finish(self, raw: Raw) -> Detections:
        """Return the detections in what `run` gave, as a call would; sets `stages_ms`.

        Raises:
            RuntimeError: another thread is in `finish` or in a call of this detector.
        """
        with self._alone():
            return self._finish(raw)

    def _finish(self, raw: Raw) -> Detections:
        found, self.stages_ms = self.pipeline.finish(raw, self.score, self.iou, self.limit)
        xyxy: Any = raw.fit.to_source(found.xyxy)
        if self._clips:
            height, width = raw.fit.source_hw
            np.clip(xyxy, 0, (width, height, width, height), out=xyxy)
        return Detections(xyxy, found.score, found.class_id)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError(
                "this Detector is at work in another thread; open one for each thread"
            )
        try:
            yield
        finally:
            self._in_use.release()

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


def _check_outputs(manifest: Manifest) -> None:
    """Heads and outputs must tell one story, in one order, or decoding reads foreign numbers."""
    wrong = manifest.misfit()
    if wrong:
        outputs = [(tensor.name, tensor.shape[1:]) for tensor in manifest.outputs]
        raise ArtifactError(
            f"{manifest.spec.name}: its heads decode {wrong}, the graph's outputs are {outputs}; "
            "export the model again"
        )
