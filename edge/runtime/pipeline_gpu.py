"""Frame in, detections out, on an engine's GPU: pixels go there once and boxes come back once.

Everything between is queued on the engine's own stream. From the second frame of a size on it is
one CUDA graph, where TensorRT and the binding have graphs; a changed threshold captures it again.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.errors import ArtifactError, DeviceError
from edge.letterbox import Letterbox
from edge.runtime.backend import Prepared, Raw
from edge.runtime.backend_trt import TrtBackend
from edge.runtime.device import Event, Graph
from edge.runtime.ops_gpu import (
    Decoder,
    FrameFormat,
    Kernels,
    Preprocessor,
    Suppressor,
    frame_hw,
)
from edge.spec import InputContract, Manifest

__all__ = ["DevicePipeline"]

_STAGES = ("preprocess", "engine", "decode", "nms")
_ON_DEVICE: NDArray[np.float32] = np.empty((0, 3, 0, 0), np.float32)

_NEVER = 2.0


class DevicePipeline:
    """What a `Detector` does with one frame, every stage on the GPU of its engine.

    It holds one frame at a time: prepare, run and finish it before the next. Not for several
    threads at once: give each one its own, on `backend.another()`. Stages are timed by the GPU's
    own clock: preprocess with the copy of the frame, engine, decode, nms with the copy back.

    Attributes:
        graph: why there is no CUDA graph, if it was refused; else empty.
    """

    def __init__(
        self,
        backend: TrtBackend,
        contract: InputContract,
        *,
        limit: int = 300,
        multi_label: bool = False,
        layout: FrameFormat = "bgr",
        use_graph: bool = True,
    ) -> None:
        """Compile or load the kernels and allocate every buffer but the frame's.

        Raises:
            MissingDependency: there is no compiler for the kernels.
            DeviceError: the kernels do not compile or load, or not enough memory.
            ArtifactError: the engine's heads are not float32.
        """
        spec = backend.manifest.spec
        _check_outputs(backend.manifest)
        self.backend, self.layout, self._limit = backend, layout, limit
        self.graph, self._use_graph = "", use_graph
        self._held: object = None
        self._kernels = Kernels.load(backend.device, backend.stream)
        dtype: Any = backend.manifest.inputs[0].dtype
        self._preprocess = Preprocessor(
            contract, self._kernels, layout=layout, dtype=dtype, tensor=backend.input
        )
        self._decode = Decoder(spec, self._kernels, raw=backend.outputs, multi_label=multi_label)
        self._suppress = Suppressor(self._kernels, limit)
        self._marks: list[Event] = [backend.device.event() for _ in range(len(_STAGES) + 1)]
        self._captured: Graph | None = None
        self._captured_for: tuple[Any, ...] = ()

    def frame_buffer(self, source_hw: tuple[int, int]) -> NDArray[np.uint8]:
        """Where a source may write its frames of that size; detecting them then saves a copy."""
        self._preprocess.place(source_hw)
        return self._frame()

    def _frame(self) -> NDArray[np.uint8]:
        mirror = self._preprocess.frame
        if mirror is None:
            raise ValueError("no frame size is known yet: call place() first")
        return mirror.array

    def prepare(self, frame: NDArray[np.uint8]) -> Prepared:
        """See `Pipeline.prepare`; it takes the place of a frame that was prepared before.

        Raises:
            ValueError: the frame is not of the pipeline's layout.
        """
        start = time.perf_counter()
        fit = self._preprocess.place(frame_hw(frame, self.layout))
        buffer = self._frame()
        if buffer is not frame:
            np.copyto(buffer, frame)
        self._held = owner = object()
        return Prepared(fit, _ON_DEVICE, (time.perf_counter() - start) * 1e3, owner)

    def run(self, prepared: Prepared, score: float, iou: float) -> Raw:
        """See `Pipeline.run`: decoding and suppression run with the network.

        Raises:
            ValueError: another frame was prepared since.
        """
        if prepared.owner is not self._held:
            raise ValueError("the GPU holds another frame now; prepare this one again")
        self._queue(prepared.fit, score, iou)
        self.backend.device.synchronize(self.backend.stream)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        each = [self.backend.device.elapsed_ms(first, second) for first, second in pairs]
        stages_ms = dict(zip(_STAGES, each, strict=True))
        stages_ms["preprocess"] += prepared.ms
        return Raw(prepared.fit, [], stages_ms)

    def finish(
        self, raw: Raw, score: float, iou: float, limit: int
    ) -> tuple[Detections, dict[str, float]]:
        """See `Pipeline.finish`; the thresholds are those of `run`.

        Raises:
            ValueError: the buffers were made for fewer detections than `limit`.
        """
        if limit > self._limit:
            raise ValueError(f"limit {limit}: the GPU's buffers were made for {self._limit}")
        return self._suppress.collect()[:limit], raw.stages_ms

    def _queue(self, fit: Letterbox, score: float, iou: float) -> None:
        key = (fit, score, iou)
        if self._captured is not None and self._captured_for == key:
            self.backend.device.replay(self._captured, self.backend.stream)
            return
        # TensorRT wants one run outside a capture after each change.
        if self._use_graph and not self.graph and self._captured_for == key:
            self._capture(score, iou)
            if self._captured is not None:
                self.backend.device.replay(self._captured, self.backend.stream)
                return
        self._forget()
        self._captured_for = key
        self._enqueue(score, iou)

    def _capture(self, score: float, iou: float) -> None:
        try:
            with self.backend.device.capture(self.backend.stream) as graph:
                self._enqueue(score, iou)
            self._captured = graph
        except DeviceError as error:
            self.graph = str(error)

    def _enqueue(self, score: float, iou: float) -> None:
        device, stream = self.backend.device, self.backend.stream
        device.record(self._marks[0], stream)
        self._preprocess.enqueue()
        device.record(self._marks[1], stream)
        self.backend.enqueue()
        device.record(self._marks[2], stream)
        candidates = self._decode.enqueue(score)
        device.record(self._marks[3], stream)
        # No overlap is above 1: what is suppressed already is only put in order.
        limit = _NEVER if self._decode.suppressed else iou
        self._suppress.enqueue(candidates, limit, self._decode.exclusive)
        device.record(self._marks[4], stream)

    def _forget(self) -> None:
        if self._captured is not None:
            self._captured.close()
        self._captured = None

    def close(self) -> None:
        """Give back the buffers; a second call does nothing. The backend stays open."""
        if not self._marks:
            return
        self._forget()
        for mark in self._marks:
            mark.close()
        self._marks = []
        self._preprocess.close()
        self._decode.close()
        self._suppress.close()
        self._kernels.module.close()


def _check_outputs(manifest: Manifest) -> None:
    wrong = manifest.misfit()
    single = all(each.shape[:1] == (1,) or len(each.shape) < 3 for each in manifest.outputs)
    if wrong or not single or {tensor.dtype for tensor in manifest.outputs} != {"float32"}:
        outputs = [(tensor.name, tensor.shape, tensor.dtype) for tensor in manifest.outputs]
        raise ArtifactError(
            f"{manifest.spec.name}: the GPU decodes {wrong or 'float32 of one picture'}, the "
            f"engine's outputs are {outputs}; export the model again, for a batch of 1"
        )
