"""Milliseconds of each node on onnxruntime, by its own profiler.

https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import ArtifactError
from edge.onnx_file import OnnxFile
from edge.runtime.backend_ort import OrtBackend

__all__ = ["node_ms"]

_SUFFIX = "_kernel_time"
_WARM = 2


def node_ms(
    onnx: str | Path | OnnxFile,
    tensor: NDArray[np.float32],
    *,
    runs: int = 12,
    threads: int | None = None,
) -> dict[str, float]:
    """Median milliseconds of the nodes that onnxruntime runs, by name, in its order.

    Nodes are those of the optimised graph: fused ones have one time, those of one name their
    sum. Measuring costs each some microseconds, so that the sum is more than a run takes.

    Args:
        tensor: a network input; quantized kernels take the same time whatever it holds.
        runs: measured ones, behind two that warm up.

    Raises:
        ArtifactError: onnxruntime cannot load the file, or its profile cannot be read.
        MissingDependency: onnxruntime is not installed.
    """
    file = onnx if isinstance(onnx, OnnxFile) else OnnxFile(onnx)
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "profile")
        with OrtBackend(file, threads=threads, profile=prefix) as backend:
            for _ in range(runs + _WARM):
                backend.run(tensor)
            profile = Path(backend.end_profiling())
        try:
            for event in json.loads(profile.read_bytes()):
                if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
                    # Nodes that onnxruntime put in may share a name.
                    node = event["name"].removesuffix(_SUFFIX), event["args"]["node_index"]
                    times[node].append(event["dur"] / 1e3)
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{onnx}: no profile of onnxruntime: {error}") from error
    found: dict[str, float] = defaultdict(float)
    for (name, _), values in times.items():
        found[name] += float(np.median(values[_WARM:]))
    return dict(found)
