# mypy: disallow-subclassing-any=False
"""An engine on TensorRT 10, TensorRT 11 or TensorRT-RTX, whichever its manifest names."""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import read_engine, rebuild_command
from edge.errors import DeviceError, EngineMismatch
from edge.optional import require
from edge.runtime.device import Device, DeviceBuffer, PinnedBuffer, Stream, open_device
from edge.spec import Manifest, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["TrtBackend"]

# What TensorRT's log says of the CUDA runtime inside it, where no engine could be loaded.
_RUNTIME_ERRORS = {
    2: ("cudaErrorMemoryAllocation", "close other programs, or take a smaller network"),
    35: ("cudaErrorInsufficientDriver", "the driver is older than this TensorRT: update it"),
    100: ("cudaErrorNoDevice", "no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES"),
}
_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


class TrtBackend:
    """A loaded engine. Its buffers are allocated and bound once, when it is opened.

    Attributes:
        manifest: of the engine.
        name: library, version and GPU, `TensorRT-RTX 1.7.1 on NVIDIA Orin`.
        on_device: True: `enqueue` works on `input` and `outputs`, where a frame's other stages
            can read and write them; `run` takes and gives arrays of the host.
        device: the GPU; shared if it was handed in, else closed with this.
        input, outputs: the engine's buffers, for code that fills and reads them on the device.
    """

    on_device = True

    def __init__(self, path: str | Path, *, device: Device | None = None) -> None:
        """Verify, load and bind the engine of that path.

        Raises:
            ArtifactError: the engine or its manifest is missing or cannot be read.
            EngineMismatch: another checksum than its manifest's (it is then never deserialised),
                or an engine for another TensorRT or GPU.
            MissingDependency: the library that built it is not installed.
            DeviceError: no GPU, not enough of its memory, or a driver too old for TensorRT.
        """
        path = Path(path)
        plan, self.manifest = read_engine(path)
        library = _library(self.manifest)
        version = str(require(library).__version__)
        self._owned, self.device = device is None, device or _open(path)
        self.name = f"{_TITLES[library]} {_short(version)} on {self.device.name}"
        self._path, self._library = path, library
        self._sharing: set[TrtBackend] = {self}
        self._closed = False
        self._context: trt.IExecutionContext | None = None
        try:
            with self.device.current():
                self._runtime, self._engine = self._load(path, library, plan)
                self._check(path)
                self._context = self._engine.create_execution_context()
            self._bind(path)
        except BaseException:
            self.close()
            raise

    def another(self) -> TrtBackend:
        """The same engine with a context, a stream and buffers of its own, for another thread.

        Weights are shared; the engine and the device go with the last of those that share them.

        Raises:
            DeviceError: not enough memory of the GPU, or this one is closed.
        """
        if self._closed:
            raise DeviceError(f"{self.name}: used after it was closed")
        twin = object.__new__(TrtBackend)
        for name in ("manifest", "_owned", "device", "name", "_path", "_library", "_sharing"):
            setattr(twin, name, getattr(self, name))
        twin._runtime, twin._engine = self._runtime, self._engine
        twin._closed, twin._context = False, None
        self._sharing.add(twin)
        try:
            with self.device.current():
                twin._context = twin._engine.create_execution_context()
            twin._bind(self._path)
        except BaseException:
            twin.close()
            raise
        return twin

    def _load(self, path: Path, library: str, plan: bytes) -> tuple[trt.Runtime, trt.ICudaEngine]:
        log = _log(library)
        log.clear()
        runtime = _runtime(library)
        dla = dict(self.manifest.arguments).get("dla")
        if dla is not None:
            runtime.DLA_core = int(dla)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._not_loaded(path, log[0] if log else "no reason")
        return runtime, engine

    def _not_loaded(self, path: Path, reason: str) -> DeviceError | EngineMismatch:
        here = f"{self.name} ({_here(self.device)})"
        for code, (name, advice) in _RUNTIME_ERRORS.items():
            if f"cudaError {code}:" in reason or name in reason:
                return DeviceError(f"{path}: {here} failed with {name}: {advice} ({reason})")
        return EngineMismatch(
            f"{path}: built by {_origin(self.manifest)}; here is {here}, which cannot load it: "
            f"{reason}; rebuild it here: {rebuild_command(path)}"
        )

    def _check(self, path: Path) -> None:
        found = {spec.name: spec for spec in _tensors(self._engine)}
        for spec in (*self.manifest.inputs, *self.manifest.outputs):
            if found.pop(spec.name, None) != spec:
                found[spec.name] = spec
        if found or len(self.manifest.inputs) != 1:
            raise EngineMismatch(
                f"{path}: its manifest speaks of other inputs and outputs than the engine has "
                f"({', '.join(sorted(found))}); rebuild it: {rebuild_command(path)}"
            )

    def _bind(self, path: Path) -> None:
        context, device = self._context, self.device
        if context is None:
            raise DeviceError(f"{path}: {device.name} has not enough memory free to run it")
        self._stream = device.stream()
        self.input = _on_device(device, self.manifest.inputs[0])
        self.outputs = [_on_device(device, spec) for spec in self.manifest.outputs]
        self._staged = _pinned(device, self.manifest.inputs[0])
        self._heads = [_pinned(device, spec) for spec in self.manifest.outputs]
        self._bind_to(context, path)

    def _bind_to(self, context: trt.IExecutionContext, path: Path) -> None:
        specs = (*self.manifest.inputs, *self.manifest.outputs)
        for spec, buffer in zip(specs, (self.input, *self.outputs), strict=True):
            if not context.set_tensor_address(spec.name, buffer.pointer):
                raise DeviceError(f"{path}: TensorRT refused the buffer of {spec.name}")

    def run(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The raw heads, in the order of `manifest.outputs`; the arrays are the caller's.

        Args:
            tensor: float32, of exactly the shape of the manifest's input.
        """
        if tensor.shape != self.input.shape or tensor.dtype != np.float32:
            raise ValueError(
                f"the engine takes float32 {self.input.shape}; this is {tensor.dtype} "
                f"{tensor.shape}"
            )
        np.copyto(self._staged.array, tensor)
        self.device.copy_to_device_async(self.input, self._staged.array, self._stream)
        self.enqueue()
        for host, buffer in zip(self._heads, self.outputs, strict=True):
            self.device.copy_to_host_async(host.array, buffer, self._stream)
        self.device.synchronize(self._stream)
        return [host.array.copy() for host in self._heads]

    def enqueue(self) -> None:
        """Queue the network alone, from `input` to `outputs`, on `stream_handle`."""
        context = self._context
        if context is None:
            raise DeviceError(f"{self.name}: used after it was closed")
        with self.device.current():
            if not context.execute_async_v3(self._stream.handle):
                raise DeviceError(f"{self.name}: TensorRT could not start the network")

    def layer_times(self, runs: int = 20) -> list[tuple[str, float]]:
        """The median milliseconds of each layer, in the engine's order.

        A context of its own measures, on what the input holds now: TensorRT waits after every
        layer, so that the sum is more than a run takes.

        Raises:
            DeviceError: not enough memory of the GPU, or the network does not start.
        """
        times: dict[str, list[float]] = defaultdict(list)
        with self.device.current():
            context = self._engine.create_execution_context()
            if context is None:
                raise DeviceError(f"{self._path}: not enough memory free to profile it")
            self._bind_to(context, self._path)
            context.profiler = _profiler(self._library, times)
            for _ in range(runs + 1):  # the first warms up
                if not context.execute_async_v3(self._stream.handle):
                    raise DeviceError(f"{self.name}: TensorRT could not start the network")
                self.device.synchronize(self._stream)
            del context
        return [(name, float(np.median(each[1:]))) for name, each in times.items()]

    @property
    def stream(self) -> Stream:
        """The stream that `enqueue` uses."""
        return self._stream

    @property
    def stream_handle(self) -> int:
        """The CUDA stream that `enqueue` uses."""
        return self._stream.handle

    def close(self) -> None:
        """Give back the context, the engine, the buffers and a device of its own."""
        if self._closed:
            return
        self._closed = True
        with self.device.current():  # TensorRT frees device memory as these three go
            self._context = None
            for name in ("_engine", "_runtime"):
                with suppress(AttributeError):
                    delattr(self, name)
        for resource in self._resources():
            resource.close()
        self._sharing.discard(self)
        if self._owned and not self._sharing:
            self.device.close()

    def _resources(self) -> list[Any]:
        singles = [getattr(self, name, None) for name in ("_stream", "input", "_staged")]
        many = [*getattr(self, "outputs", ()), *getattr(self, "_heads", ())]
        return [resource for resource in (*singles, *many) if resource is not None]

    def __enter__(self) -> TrtBackend:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _library(manifest: Manifest) -> str:
    made_by = dict(manifest.made_by)
    return "tensorrt_rtx" if "tensorrt_rtx" in made_by else "tensorrt"


def _short(version: str) -> str:
    return ".".join(version.split(".")[:3])


def _open(path: Path) -> Device:
    try:
        return open_device()
    except DeviceError as error:
        raise DeviceError(f"{path}: {error}") from error


def _origin(manifest: Manifest) -> str:
    made_by, library = dict(manifest.made_by), _library(manifest)
    facts = [f"{_TITLES[library]} {made_by.get(library, 'of unknown version')}"]
    facts += [f"for {made_by['targets']}"] if "targets" in made_by else []
    facts += [f"on {made_by['gpu']}"] if "gpu" in made_by else []
    facts += [f"driver {made_by['driver']}"] if "driver" in made_by else []
    return ", ".join(facts)


def _here(device: Device) -> str:
    major, minor = device.compute_capability
    return f"SM{major}{minor}, driver {device.driver_version}"


@cache
def _log(library: str) -> deque[str]:
    """The latest errors of that library in this process, oldest first."""
    return deque(maxlen=20)


@cache
def _logger(library: str) -> trt.ILogger:
    """One for the process: TensorRT keeps the first that it is given."""
    if not TYPE_CHECKING:
        trt = require(library)

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                _log(library).append(" ".join(msg.split()))

    return Logger()


def _profiler(library: str, times: dict[str, list[float]]) -> trt.IProfiler:
    """Adds each layer's milliseconds to `times`."""
    if not TYPE_CHECKING:
        trt = require(library)

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name].append(ms)

    return Profiler()


def _runtime(library: str) -> trt.Runtime:
    if not TYPE_CHECKING:
        trt = require(library)
    return trt.Runtime(_logger(library))


def _tensors(engine: trt.ICudaEngine) -> list[TensorSpec]:
    """The engine's inputs and outputs as the manifest would write them."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return [
        TensorSpec(name, tuple(engine.get_tensor_shape(name)), _numpy_name(engine, name))
        for name in names
    ]


def _numpy_name(engine: trt.ICudaEngine, name: str) -> str:
    names = {"FLOAT": "float32", "HALF": "float16"}
    kind: str = engine.get_tensor_dtype(name).name
    return names.get(kind, kind.lower())


def _on_device(device: Device, spec: TensorSpec) -> DeviceBuffer:
    return device.allocate(spec.shape, spec.dtype)


def _pinned(device: Device, spec: TensorSpec) -> PinnedBuffer:
    return device.pinned(spec.shape, spec.dtype)
