"""A CUDA device behind a few verbs.

The primary context is shared with TensorRT; it is pushed and popped around each use, so that a
device is bound to no thread. `edge.runtime.cuda_driver` finds the binding that makes the calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge.errors import DeviceError
from edge.runtime.cuda_driver import Call, open_binding, open_ctypes

__all__ = [
    "Device",
    "DeviceBuffer",
    "DriverFacts",
    "Event",
    "Graph",
    "HasPointer",
    "Kernel",
    "MappedBuffer",
    "Mirror",
    "Module",
    "PinnedBuffer",
    "Stream",
    "driver_facts",
    "open_device",
]

# CUdevice_attribute and flags of cuda.h.
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_DEVICE_MAP = 2  # CU_MEMHOSTALLOC_DEVICEMAP
_EXTERNAL = 1  # CU_EVENT_RECORD_EXTERNAL: a captured record tells the time, too
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: TensorRT may allocate meanwhile


@dataclass(frozen=True)
class DriverFacts:
    """The first GPU and its driver: `name`, `compute_capability` (`SM87`), `driver` (`12.6`)."""

    name: str
    compute_capability: str
    driver: str


def driver_facts() -> DriverFacts | None:
    """The first GPU, or None where there is no driver or no GPU. Makes no context."""
    try:
        call = open_ctypes()
        call("cuInit", 0)
        device = call("cuDeviceGet", 0)
        major, minor = _capability(call, device)
        return DriverFacts(_name(call, device), f"SM{major}{minor}", _driver(call))
    except DeviceError:
        return None


def _name(call: Call, device: Any) -> str:
    name = call("cuDeviceGetName", device)
    return name.split(b"\0")[0].decode(errors="replace") if isinstance(name, bytes) else str(name)


def _capability(call: Call, device: Any) -> tuple[int, int]:
    major, minor = (call("cuDeviceGetAttribute", part, device) for part in (_MAJOR, _MINOR))
    return int(major), int(minor)


def _driver(call: Call) -> str:
    version = int(call("cuDriverGetVersion"))
    return f"{version // 1000}.{version % 1000 // 10}"


def open_device(index: int = 0, *, binding: str | None = None) -> Device:
    """The GPU of that index, with its primary context retained.

    Args:
        binding: `cuda-python`, `pycuda` or `ctypes`; by default what EDGE_CUDA says, or the first
            that is installed.

    Raises:
        DeviceError: no driver or no such GPU; names the CUDA error and what to do.
        MissingDependency: the binding asked for is not installed.
    """
    return Device(index, *open_binding(binding))


class HasPointer(Protocol):
    """Memory that kernels reach."""

    @property
    def pointer(self) -> int: ...


class Device:
    """A GPU. A context manager; closing it frees all that it gave out.

    Attributes:
        index, name: of the GPU.
        compute_capability: (major, minor).
        integrated: whether it shares memory with the CPU, as a Jetson does.
        driver_version: the newest CUDA that the driver serves, `12.6`.
        binding: `cuda-python`, `pycuda` or `ctypes`.
    """

    def __init__(self, index: int, binding: str, call: Call) -> None:
        self.index, self.binding, self.call = index, binding, call
        call("cuInit", 0)
        self._device = call("cuDeviceGet", index)
        self.name = _name(call, self._device)
        self.compute_capability = _capability(call, self._device)
        self.integrated = bool(call("cuDeviceGetAttribute", _INTEGRATED, self._device))
        self.driver_version = _driver(call)
        self._context: Any = call("cuDevicePrimaryCtxRetain", self._device)
        self.held: set[_Resource] = set()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this device's context the calling thread's; TensorRT's calls need it as well."""
        if self._context is None:
            raise DeviceError(f"{self.name}: used after it was closed")
        self.call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent")

    def allocate(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> DeviceBuffer:
        """Memory on the device: so many bytes, or an array of that shape and type."""
        return DeviceBuffer(self, shape, dtype)

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> PinnedBuffer:
        """Memory of the host that copies to and from the device run beside other work."""
        return PinnedBuffer(self, shape, dtype)

    def mapped(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> MappedBuffer:
        """Memory of the host that kernels reach without a copy."""
        return MappedBuffer(self, shape, dtype)

    def mirror(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> Mirror:
        """Memory that the host and the device both work on; see `Mirror`."""
        return Mirror(self, shape, dtype)

    def stream(self) -> Stream:
        """A queue of work, apart from the default stream."""
        return Stream(self)

    def event(self) -> Event:
        """A mark in a stream that tells the time."""
        return Event(self)

    def module(self, image: bytes) -> Module:
        """Kernels from a cubin or PTX.

        Raises:
            DeviceError: the image is for another GPU, too new for the driver, or damaged.
        """
        return Module(self, image)

    def copy_to_device_async(
        self, target: DeviceBuffer, source: NDArray[Any], stream: Stream
    ) -> None:
        """Queue a copy; `source` must stay as it is until the stream is synchronised."""
        _same_size(target.nbytes, source)
        args = (target.pointer, source.ctypes.data, target.nbytes, stream.handle)
        with self.current():
            self.call("cuMemcpyHtoDAsync", *args)

    def copy_to_host_async(
        self, target: NDArray[Any], source: DeviceBuffer, stream: Stream
    ) -> None:
        """Queue a copy; `target` holds it once the stream is synchronised."""
        _same_size(source.nbytes, target)
        args = (target.ctypes.data, source.pointer, source.nbytes, stream.handle)
        with self.current():
            self.call("cuMemcpyDtoHAsync", *args)

    def copy_async(self, target: DeviceBuffer, source: DeviceBuffer, stream: Stream) -> None:
        """Queue a copy from one buffer of the device to another of the same size."""
        if target.nbytes != source.nbytes:
            raise ValueError(f"a copy of {source.nbytes} bytes into {target.nbytes}")
        args = (target.pointer, source.pointer, target.nbytes, stream.handle)
        with self.current():
            self.call("cuMemcpyDtoDAsync", *args)

    def zero_async(self, target: DeviceBuffer, stream: Stream) -> None:
        """Queue the filling of a buffer of whole 32-bit words with zeros."""
        if target.nbytes % 4:
            raise ValueError(f"{target.nbytes} bytes are no whole number of 32-bit words")
        with self.current():
            self.call("cuMemsetD32Async", target.pointer, 0, target.nbytes // 4, stream.handle)

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        values: tuple[int | float | HasPointer | None, ...],
        stream: Stream,
    ) -> None:
        """Queue a kernel. An int goes as 32 bits, a float as single precision, memory and None as
        an address."""
        with self.current():
            given = [_value(value) for value in values]
            self.call("cuLaunchKernel", kernel.handle, grid, block, given, stream.handle)

    def record(self, event: Event, stream: Stream) -> None:
        """Queue a mark."""
        with self.current():
            if stream.capturing:
                self.call("cuEventRecordWithFlags", event.handle, stream.handle, _EXTERNAL)
            else:
                self.call("cuEventRecord", event.handle, stream.handle)

    def elapsed_ms(self, first: Event, second: Event) -> float:
        """Milliseconds between two marks that have both been reached."""
        with self.current():
            return float(self.call("cuEventElapsedTime", first.handle, second.handle))

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[Graph]:
        """Collect what is queued meanwhile into a graph, instead of running it.

        Raises:
            DeviceError: something that was queued cannot be captured, or the binding has no graphs.
        """
        graph = Graph(self)
        with self.current():
            self.call("cuStreamBeginCapture", stream.handle, _RELAXED)
            stream.capturing = True
            try:
                yield graph
            except BaseException:
                with suppress(DeviceError):  # it is invalid by now: what was first is what counts
                    self.call("cuGraphDestroy", self.call("cuStreamEndCapture", stream.handle))
                raise
            finally:
                stream.capturing = False
            graph.finish(_integer(self.call("cuStreamEndCapture", stream.handle)))

    def replay(self, graph: Graph, stream: Stream) -> None:
        """Queue all of a graph in one call."""
        with self.current():
            self.call("cuGraphLaunch", graph.handle, stream.handle)

    def synchronize(self, stream: Stream) -> None:
        """Wait until all queued work is done."""
        with self.current():
            self.call("cuStreamSynchronize", stream.handle)

    def close(self) -> None:
        """Free what is left and release the context; a second call does nothing."""
        if self._context is None:
            return
        for resource in list(self.held):
            resource.close()
        self.call("cuDevicePrimaryCtxRelease", self._device)
        self._context = None

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _value(value: int | float | HasPointer | None) -> Any:
    if isinstance(value, int):
        return ctypes.c_int(value)
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_uint64(0 if value is None else value.pointer)


def _same_size(nbytes: int, array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous or array.nbytes != nbytes:
        raise ValueError(f"a copy of {nbytes} bytes takes a contiguous array of that size")


def _bytes_at(pointer: int, nbytes: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))


class _Resource:
    """Something of the device that is given back once."""

    _make, _free = "", ""

    def __init__(self, device: Device, *args: Any) -> None:
        self._device = device
        with device.current():
            self._handle: int | None = _integer(device.call(self._make, *args))
        device.held.add(self)

    def _value(self) -> int:
        if self._handle is None:
            raise DeviceError(f"a {type(self).__name__} was used after it was closed")
        return self._handle

    @property
    def handle(self) -> int:
        """What the driver knows it by."""
        return self._value()

    def close(self) -> None:
        """Give it back; a second call does nothing."""
        if self._handle is None:
            return
        with self._device.current():
            self._device.call(self._free, self._handle)
        self._handle = None
        self._device.held.discard(self)


def _integer(handle: Any) -> int:
    return int(handle or 0)


def _whole_words(nbytes: int) -> int:
    return -(-nbytes // 4) * 4


class DeviceBuffer(_Resource):
    """Memory on the device: `pointer`, `shape`, `dtype`, `nbytes`.

    Whole 32-bit words are allocated, since kernels read bytes by the word.
    """

    _make, _free = "cuMemAlloc", "cuMemFree"

    def __init__(self, device: Device, shape: int | tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype, self.nbytes = _layout(shape, dtype)
        super().__init__(device, _whole_words(self.nbytes))

    @property
    def pointer(self) -> int:
        """Its address on the device."""
        return self._value()


class PinnedBuffer(_Resource):
    """Page-locked memory of the host; `array` must not be used once it is closed."""

    _make, _free, _flags = "cuMemHostAlloc", "cuMemFreeHost", 0

    def __init__(self, device: Device, shape: int | tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype, self.nbytes = _layout(shape, dtype)
        super().__init__(device, _whole_words(self.nbytes), self._flags)

    @property
    def array(self) -> NDArray[Any]:
        """The memory as an array; no copy."""
        return _bytes_at(self._value(), self.nbytes).view(self.dtype).reshape(self.shape)


class MappedBuffer(PinnedBuffer):
    """Page-locked memory that kernels reach at `pointer`."""

    _flags = _DEVICE_MAP

    def __init__(self, device: Device, shape: int | tuple[int, ...], dtype: DTypeLike) -> None:
        super().__init__(device, shape, dtype)
        with device.current():
            self._address = _integer(device.call("cuMemHostGetDevicePointer", self.handle, 0))

    @property
    def pointer(self) -> int:
        """Its address on the device."""
        return self._value() and self._address


class Mirror:
    """Memory that the host sees at `array` and the device at `pointer`.

    Where both share one memory (a Jetson) it is one block, and `push` and `pull` do nothing. Else
    it is two, and they queue the copy to and from the device.
    """

    def __init__(self, device: Device, shape: int | tuple[int, ...], dtype: DTypeLike) -> None:
        self._device = device
        self._host = (device.mapped if device.integrated else device.pinned)(shape, dtype)
        self._there = None if device.integrated else device.allocate(shape, dtype)
        self.array, self.nbytes = self._host.array, self._host.nbytes

    @property
    def pointer(self) -> int:
        """Its address on the device."""
        there = self._there or self._host
        if not isinstance(there, (DeviceBuffer, MappedBuffer)):
            raise DeviceError("page-locked memory has no address on the device")
        return there.pointer

    def push(self, stream: Stream) -> None:
        """Queue what makes the device see what the host wrote."""
        if self._there is not None:
            self._device.copy_to_device_async(self._there, self.array, stream)

    def pull(self, stream: Stream) -> None:
        """Queue what makes the host see, once the stream is synchronised, what the device wrote."""
        if self._there is not None:
            self._device.copy_to_host_async(self.array, self._there, stream)

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._host.close()
        if self._there is not None:
            self._there.close()


class Stream(_Resource):
    """A queue of work on the device; `handle` is what TensorRT's `execute_async_v3` takes.

    Attributes:
        capturing: whether what is queued goes into a graph instead.
    """

    _make, _free = "cuStreamCreate", "cuStreamDestroy"

    def __init__(self, device: Device) -> None:
        self.capturing = False
        super().__init__(device, _NON_BLOCKING)


class Event(_Resource):
    """A mark in a stream."""

    _make, _free = "cuEventCreate", "cuEventDestroy"

    def __init__(self, device: Device) -> None:
        super().__init__(device, 0)


@dataclass(frozen=True)
class Kernel:
    """A function on the device; lives as long as its module."""

    handle: int


class Module(_Resource):
    """Compiled kernels."""

    _make, _free = "cuModuleLoadData", "cuModuleUnload"

    def __init__(self, device: Device, image: bytes) -> None:
        super().__init__(device, image)
        self._kernels: dict[str, Kernel] = {}

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name.

        Raises:
            DeviceError: the image has none of that name.
        """
        if name not in self._kernels:
            with self._device.current():
                found = self._device.call("cuModuleGetFunction", self.handle, name.encode())
            self._kernels[name] = Kernel(_integer(found))
        return self._kernels[name]


class Graph(_Resource):
    """Captured work, ready to be queued again and again."""

    _free = "cuGraphExecDestroy"

    def __init__(self, device: Device) -> None:
        self._device = device
        self._handle = None

    def finish(self, captured: int) -> None:
        """Make it ready from what was captured, which is given back."""
        try:
            self._handle = _integer(self._device.call("cuGraphInstantiate", captured, 0))
        finally:
            self._device.call("cuGraphDestroy", captured)
        self._device.held.add(self)


def _layout(
    shape: int | tuple[int, ...], dtype: DTypeLike
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    kind = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if nbytes < 1:
        raise ValueError(f"a buffer of shape {shape} has no bytes")
    return shape, kind, nbytes
