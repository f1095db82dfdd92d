"""Frame in, detections out, with pre- and post-processing on the CPU, whatever runs the engine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.letterbox import Letterbox
from edge.runtime.backend import Backend
from edge.runtime.ops_cpu import Decoder, Preprocessor
from edge.spec import InputContract

__all__ = ["HostPipeline"]

Raw = list[NDArray[np.float32]]


class HostPipeline:
    """What a `Detector` does with one frame.

    Attributes:
        stages_ms: milliseconds of the last frame by stage: preprocess, engine, decode, nms.
    """

    def __init__(self, backend: Backend, contract: InputContract, *, multi_label: bool) -> None:
        self._run = backend.run
        self.preprocess = Preprocessor(contract)
        self._decode = Decoder(backend.manifest.spec, multi_label=multi_label)
        self.stages_ms: dict[str, float] = {}

    def __call__(
        self, frame: NDArray[np.uint8], score: float, iou: float, limit: int
    ) -> tuple[Detections, Letterbox]:
        """Detections in pixels of the network's input, and where the frame lies in that."""
        start = time.perf_counter()
        tensor, fit = self.preprocess(frame)
        prepared = time.perf_counter()
        raw = self._run(tensor)
        inferred = time.perf_counter()
        found, after_ms = self.finish(raw, score, iou, limit)
        self.stages_ms = {
            "preprocess": (prepared - start) * 1e3,
            "engine": (inferred - prepared) * 1e3,
            **after_ms,
        }
        return found, fit

    def finish(
        self, raw: Raw, score: float, iou: float, limit: int
    ) -> tuple[Detections, dict[str, float]]:
        """What a run's raw heads say, and the milliseconds of `decode` and `nms`."""
        start = time.perf_counter()
        found: Any = self._decode(raw, score)
        decoded = time.perf_counter()
        found = self._decode.suppress(found, iou, limit)
        end = time.perf_counter()
        return found, {"decode": (decoded - start) * 1e3, "nms": (end - decoded) * 1e3}

    def close(self) -> None:
        """Nothing is held beyond memory."""
