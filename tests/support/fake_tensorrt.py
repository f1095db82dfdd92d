"""TensorRT without a GPU: its names and strictness, on the memory of the fake driver."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edge.spec import Manifest


class FakeTensorRT(SimpleNamespace):
    """A module `tensorrt` whose engines run `compute` on arrays by tensor name.

    Args:
        shapes: of the tensors by name, float32; the first is the input.
    """

    __version__ = "10.3.0.30"

    def __init__(
        self,
        driver: ctypes.CDLL,
        shapes: dict[str, tuple[int, ...]],
        compute: Callable[[dict[str, Any]], None],
    ) -> None:
        super().__init__(driver=driver, calls=[], loads=True, fits=True, starts=True, half=())
        self.says = "wrong\n magic tag"
        module = self

        class ILogger:
            class Severity(IntEnum):
                INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        class IProfiler:
            def report_layer_time(self, layer_name: str, ms: float) -> None: ...

        class IExecutionContext:
            profiler: Any = None

            def __init__(self) -> None:
                self._bound: dict[str, int] = {}
                self._kept: list[Any] = []

            def set_tensor_address(self, name: str, memory: int) -> bool:
                module.calls.append(("set_tensor_address", name))
                self._bound[name] = memory
                return True

            def execute_async_v3(self, stream_handle: int) -> bool:
                assert driver.fake_depth() >= 1, "no current context"
                module.calls.append(("execute_async_v3", stream_handle))
                work = ctypes.CFUNCTYPE(None)(self._compute)
                self._kept.append(work)
                driver.fake_enqueue(stream_handle, ctypes.cast(work, ctypes.c_void_p))
                return bool(module.starts)

            def _compute(self) -> None:
                compute({name: self._array(name) for name in shapes})
                if self.profiler is not None:
                    for number, layer in enumerate(("conv", "head")):
                        self.profiler.report_layer_time(layer, number + 0.5)

            def _array(self, name: str) -> Any:
                count = int(np.prod(shapes[name]))
                at = driver.fake_host(self._bound[name])
                kind = ctypes.c_float * count
                return np.ctypeslib.as_array(kind.from_address(at)).reshape(shapes[name])

        class ICudaEngine:
            num_io_tensors = len(shapes)

            def get_tensor_name(self, index: int) -> str:
                return list(shapes)[index]

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return shapes[name]

            def get_tensor_dtype(self, name: str) -> Any:
                return SimpleNamespace(name="HALF" if name in module.half else "FLOAT")

            def create_execution_context(self) -> IExecutionContext | None:
                return IExecutionContext() if module.fits else None

        class Runtime:
            def __init__(self, logger: ILogger) -> None:
                self._logger: Any = logger

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
                module.calls.append(("deserialize_cuda_engine", bytes(serialized_engine)))
                if not module.loads:
                    self._logger.log(ILogger.Severity.WARNING, "a warning")
                    self._logger.log(ILogger.Severity.ERROR, module.says)
                    return None
                return ICudaEngine()

        self.classes = (Runtime, ICudaEngine, IExecutionContext, IProfiler)
        self.Runtime, self.ILogger, self.IProfiler = Runtime, ILogger, IProfiler


def write_engine(folder: Path, manifest: Manifest, plan: bytes = b"plan") -> Path:
    """An engine file with a manifest that fits it."""
    path = folder / f"{manifest.spec.name}.int8.engine"
    path.write_bytes(plan)
    whole = replace(manifest, sha256=hashlib.sha256(plan).hexdigest())
    path.with_name(path.name + ".json").write_text(whole.to_json())
    return path
