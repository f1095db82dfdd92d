"""Frame in, detections out, with pre- and post-processing on the CPU, whatever runs the engine."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.runtime.backend import Backend, Prepared, Raw
from edge.runtime.ops_cpu import Decoder, Preprocessor
from edge.spec import InputContract

__all__ = ["HostPipeline"]


class HostPipeline:
    """What a `Detector` does with one frame; see `Pipeline`.

    Several frames may be prepared before the first of them is run, and the network may run in
    several threads: each prepared frame has a tensor of its own until it has run. `finish` is for
    one thread at a time.
    """

    def __init__(self, backend: Backend, contract: InputContract, *, multi_label: bool) -> None:
        self._run = backend.run
        self._contract = contract
        self._free = deque([Preprocessor(contract)])
        self._decode = Decoder(backend.manifest.spec, multi_label=multi_label)

    def prepare(self, frame: NDArray[np.uint8]) -> Prepared:
        """See `Pipeline.prepare`.

        Raises:
            ValueError: `frame` is not (H, W, 3) uint8.
        """
        start = time.perf_counter()
        try:
            preprocess = self._free.pop()
        except IndexError:
            preprocess = Preprocessor(self._contract)
        tensor, fit = preprocess(frame)
        return Prepared(fit, tensor, (time.perf_counter() - start) * 1e3, preprocess)

    def run(self, prepared: Prepared, score: float, iou: float) -> Raw:
        """See `Pipeline.run`; thresholds play no part here.

        Raises:
            ValueError: this frame was run before, and its tensor may hold another one now.
        """
        owner, prepared.owner = prepared.owner, None
        if not isinstance(owner, Preprocessor):
            raise ValueError("this frame was run already; prepare it again")
        start = time.perf_counter()
        heads = self._run(prepared.tensor)
        engine_ms = (time.perf_counter() - start) * 1e3
        self._free.append(owner)
        return Raw(prepared.fit, heads, {"preprocess": prepared.ms, "engine": engine_ms})

    def finish(
        self, raw: Raw, score: float, iou: float, limit: int
    ) -> tuple[Detections, dict[str, float]]:
        """See `Pipeline.finish`."""
        start = time.perf_counter()
        found = self._decode(raw.heads, score)
        decoded = time.perf_counter()
        found = self._decode.suppress(found, iou, limit)
        end = time.perf_counter()
        after = {"decode": (decoded - start) * 1e3, "nms": (end - decoded) * 1e3}
        return found, raw.stages_ms | after

    def close(self) -> None:
        """Give back the buffers."""
        with suppress(IndexError):
            while True:
                self._free.pop()
