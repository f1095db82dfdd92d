"""A CUDA device behind a few verbs; the only file that knows a CUDA binding.

Every verb is written once, in the names of the driver API
(https://docs.nvidia.com/cuda/cuda-driver-api/). What calls it is cuda-python or, without it, ctypes
on the driver's own library, which needs no package at all. (PyCUDA is no third: it binds a context
to one thread, and its detach leaves the context on the stack.) The primary context is shared with
TensorRT; it is pushed and popped around each use, so that a device is bound to no thread.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge.errors import DeviceError

__all__ = [
    "Device",
    "DeviceBuffer",
    "DriverFacts",
    "PinnedBuffer",
    "Stream",
    "driver_facts",
    "open_device",
]

Call = Callable[..., Any]
"""`call("cuMemAlloc", nbytes)`: the function's result; a DeviceError that names it if it fails."""

_LIBRARY = "libcuda.so.1"
# CUdevice_attribute of cuda.h.
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_ADVICE = {
    "CUDA_ERROR_NO_DEVICE": "no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_INVALID_DEVICE": "there is no GPU of that index",
    "CUDA_ERROR_OUT_OF_MEMORY": "close other programs, or take a smaller network",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated: restart the machine",
    "CUDA_ERROR_SYSTEM_NOT_READY": "the driver is not running: restart it or the machine",
}


# ---------------------------------------------------------------- bindings


def _failed(function: str, name: str) -> DeviceError:
    return DeviceError(f"{function} failed with {name}: {_ADVICE.get(name, 'see the CUDA manual')}")


def _cuda_python() -> Call:
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError:  # cuda-python before 12.6
        driver = importlib.import_module("cuda.cuda")

    def call(function: str, *args: Any) -> Any:
        if function == "cuDeviceGetName":
            args = (256, *args)
        elif function == "cuDeviceGetAttribute":
            args = (driver.CUdevice_attribute(args[0]), args[1])
        status, *values = getattr(driver, function)(*args)
        if int(status) != 0:
            raise _failed(function, getattr(status, "name", str(status)))
        return values[0] if values else None

    return call


_INT, _SIZE, _ADDRESS, _HANDLE = ctypes.c_int, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p
_UINT = ctypes.c_uint
# Symbol in the library, type of the result that its first parameter points to, other parameters.
_SIGNATURES: dict[str, tuple[str, Any, tuple[Any, ...]]] = {
    "cuInit": ("cuInit", None, (_UINT,)),
    "cuDriverGetVersion": ("cuDriverGetVersion", _INT, ()),
    "cuDeviceGetCount": ("cuDeviceGetCount", _INT, ()),
    "cuDeviceGet": ("cuDeviceGet", _INT, (_INT,)),
    "cuDeviceGetAttribute": ("cuDeviceGetAttribute", _INT, (_INT, _INT)),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", _HANDLE, (_INT,)),
    "cuDevicePrimaryCtxRelease": ("cuDevicePrimaryCtxRelease_v2", None, (_INT,)),
    "cuCtxPushCurrent": ("cuCtxPushCurrent_v2", None, (_HANDLE,)),
    "cuCtxPopCurrent": ("cuCtxPopCurrent_v2", _HANDLE, ()),
    "cuMemAlloc": ("cuMemAlloc_v2", _ADDRESS, (_SIZE,)),
    "cuMemFree": ("cuMemFree_v2", None, (_ADDRESS,)),
    "cuMemHostAlloc": ("cuMemHostAlloc", _HANDLE, (_SIZE, _UINT)),
    "cuMemFreeHost": ("cuMemFreeHost", None, (_HANDLE,)),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", None, (_ADDRESS, _HANDLE, _SIZE, _HANDLE)),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", None, (_HANDLE, _ADDRESS, _SIZE, _HANDLE)),
    "cuStreamCreate": ("cuStreamCreate", _HANDLE, (_UINT,)),
    "cuStreamSynchronize": ("cuStreamSynchronize", None, (_HANDLE,)),
    "cuStreamDestroy": ("cuStreamDestroy_v2", None, (_HANDLE,)),
}


def _load_library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise DeviceError(
            f"no NVIDIA driver here ({error}): an engine runs on a machine with an NVIDIA GPU; "
            "the .onnx beside it runs on any"
        ) from error


def _ctypes() -> Call:
    library = _load_library()

    def call(function: str, *args: Any) -> Any:
        if function == "cuDeviceGetName":
            text = ctypes.create_string_buffer(256)
            _check(library, function, library.cuDeviceGetName(text, 256, *args))
            return text.value
        symbol, result, types = _SIGNATURES[function]
        out = (ctypes.byref(value := result()),) if result else ()
        given = [kind(arg) for kind, arg in zip(types, args, strict=True)]
        _check(library, function, getattr(library, symbol)(*out, *given))
        return value.value if result else None

    return call


def _check(library: ctypes.CDLL, function: str, status: int) -> None:
    if status != 0:
        name = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(name))
        raise _failed(function, (name.value or f"status {status}".encode()).decode())


_BINDINGS: dict[str, Callable[[], Call]] = {
    "cuda-python": _cuda_python,
    "ctypes": _ctypes,
}


def _open_binding() -> tuple[str, Call]:
    _load_library()
    for name, binding in _BINDINGS.items():
        with suppress(ImportError):
            return name, binding()
    raise AssertionError("ctypes is always there")


# ---------------------------------------------------------------- what is there


@dataclass(frozen=True)
class DriverFacts:
    """The first GPU and its driver: `name`, `compute_capability` (`SM87`), `driver` (`12.6`)."""

    name: str
    compute_capability: str
    driver: str


def driver_facts() -> DriverFacts | None:
    """The first GPU, or None where there is no driver or no GPU. Makes no context."""
    try:
        call = _ctypes()
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


# ---------------------------------------------------------------- the device


def open_device(index: int = 0) -> Device:
    """The GPU of that index, with its primary context retained.

    Raises:
        DeviceError: no driver or no such GPU; names the CUDA error and what to do.
    """
    return Device(index, *_open_binding())


class Device:
    """A GPU. A context manager; closing it frees all that it gave out.

    Attributes:
        index, name: of the GPU.
        compute_capability: (major, minor).
        integrated: whether it shares memory with the CPU, as a Jetson does.
        driver_version: the newest CUDA that the driver serves, `12.6`.
        binding: `cuda-python` or `ctypes`.
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

    def stream(self) -> Stream:
        """A queue of work, apart from the default stream."""
        return Stream(self)

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


def _same_size(nbytes: int, array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous or array.nbytes != nbytes:
        raise ValueError(f"a copy of {nbytes} bytes takes a contiguous array of that size")


def _bytes_at(pointer: int, nbytes: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))


class _Resource:
    """Something of the device that is given back once."""

    _make, _free = "", ""

    def __init__(self, device: Device, *args: int) -> None:
        self._device = device
        with device.current():
            self._handle: int | None = _integer(device.call(self._make, *args))
        device.held.add(self)

    def _value(self) -> int:
        if self._handle is None:
            raise DeviceError(f"a {type(self).__name__} was used after it was closed")
        return self._handle

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


class DeviceBuffer(_Resource):
    """Memory on the device: `pointer`, `shape`, `dtype`, `nbytes`."""

    _make, _free = "cuMemAlloc", "cuMemFree"

    def __init__(self, device: Device, shape: int | tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype, self.nbytes = _layout(shape, dtype)
        super().__init__(device, self.nbytes)

    @property
    def pointer(self) -> int:
        """Its address on the device."""
        return self._value()


class PinnedBuffer(_Resource):
    """Page-locked memory of the host; `array` must not be used once it is closed."""

    _make, _free = "cuMemHostAlloc", "cuMemFreeHost"

    def __init__(self, device: Device, shape: int | tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype, self.nbytes = _layout(shape, dtype)
        super().__init__(device, self.nbytes, 0)

    @property
    def array(self) -> NDArray[Any]:
        """The memory as an array; no copy."""
        return _bytes_at(self._value(), self.nbytes).view(self.dtype).reshape(self.shape)


class Stream(_Resource):
    """A queue of work on the device."""

    _make, _free = "cuStreamCreate", "cuStreamDestroy"

    def __init__(self, device: Device) -> None:
        super().__init__(device, _NON_BLOCKING)

    @property
    def handle(self) -> int:
        """What TensorRT's `execute_async_v3` takes."""
        return self._value()


def _layout(
    shape: int | tuple[int, ...], dtype: DTypeLike
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    kind = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if nbytes < 1:
        raise ValueError(f"a buffer of shape {shape} has no bytes")
    return shape, kind, nbytes
