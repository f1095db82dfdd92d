"""`pycuda.driver` as far as edge calls it, on the fake driver; for where PyCUDA is not built.

Names, arguments and errors are PyCUDA's: tests/test_device.py runs one script on this and on the
real package where it is installed.
"""

from __future__ import annotations

import builtins
import ctypes
import os
from typing import Any, ClassVar

import numpy as np

_cuda = ctypes.CDLL(os.environ["FAKE_CUDA"])
U64, PTR, SIZE = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t


class Error(Exception):
    pass


class MemoryError(builtins.MemoryError):
    pass


def _check(function: str, *args: Any) -> None:
    status = getattr(_cuda, function)(*args)
    if status:
        text = ctypes.c_char_p()
        _cuda.cuGetErrorString(status, ctypes.byref(text))
        kind = MemoryError if status == 2 else Error
        raise kind(f"{function.partition('_')[0]} failed: {(text.value or b'').decode()}")


def init() -> None:
    _check("cuInit", 0)


def get_driver_version() -> int:
    version = ctypes.c_int()
    _check("cuDriverGetVersion", ctypes.byref(version))
    return version.value


class device_attribute:  # noqa: N801
    values: ClassVar = {number: ("attribute", number) for number in (18, 75, 76)}


class Context:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def push(self) -> None:
        _check("cuCtxPushCurrent_v2", PTR(self.handle))

    @staticmethod
    def pop() -> None:
        _check("cuCtxPopCurrent_v2", None)

    def detach(self) -> None:
        assert _cuda.fake_depth(), "detach() releases the context on top of the stack"
        _check("cuDevicePrimaryCtxRelease_v2", 0)


class Device:
    def __init__(self, index: int) -> None:
        self._device = ctypes.c_int()
        _check("cuDeviceGet", ctypes.byref(self._device), index)

    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        _check("cuDeviceGetName", text, 256, self._device)
        return text.value.decode()

    def get_attribute(self, attribute: tuple[str, int]) -> int:
        value = ctypes.c_int()
        _check("cuDeviceGetAttribute", ctypes.byref(value), attribute[1], self._device)
        return value.value

    def retain_primary_context(self) -> Context:
        context = PTR()
        _check("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        return Context(context.value or 0)

    @staticmethod
    def count() -> int:
        count = ctypes.c_int()
        _check("cuDeviceGetCount", ctypes.byref(count))
        return count.value


class _Owned:
    """Gives back what it made when its last reference goes, in whatever context is current."""

    _make, _free = "", ""

    def __init__(self, *args: Any) -> None:
        self._made = PTR()
        _check(self._make, ctypes.byref(self._made), *args)

    def __del__(self) -> None:
        if self._made:
            getattr(_cuda, self._free)(self._made)


class DeviceAllocation(_Owned):
    _make, _free = "cuMemAlloc_v2", "cuMemFree_v2"

    def __int__(self) -> int:
        return self._made.value or 0

    def free(self) -> None:
        _check("cuMemFree_v2", self._made)
        self._made = PTR()


def mem_alloc(nbytes: int) -> DeviceAllocation:
    return DeviceAllocation(SIZE(nbytes))


class PagelockedHostAllocation(_Owned):
    _make, _free = "cuMemHostAlloc", "cuMemFreeHost"

    def __init__(self, nbytes: int, flags: int) -> None:
        super().__init__(SIZE(nbytes), flags)
        memory = (self._made.value, False)
        self.__array_interface__ = {
            "shape": (nbytes,), "typestr": "|u1", "data": memory, "version": 3,
        }  # fmt: skip

    def get_device_pointer(self) -> int:
        device = U64()
        _check("cuMemHostGetDevicePointer_v2", ctypes.byref(device), self._made, 0)
        return device.value

    def free(self) -> None:
        _check("cuMemFreeHost", self._made)
        self._made = PTR()


def pagelocked_empty(shape: int, dtype: Any, mem_flags: int = 0) -> Any:
    assert dtype is np.uint8
    return np.asarray(PagelockedHostAllocation(shape, mem_flags))


class Stream(_Owned):
    _make, _free = "cuStreamCreate", "cuStreamDestroy_v2"

    @property
    def handle(self) -> int:
        return self._made.value or 0

    def synchronize(self) -> None:
        _check("cuStreamSynchronize", self._made)


class Event(_Owned):
    _make, _free = "cuEventCreate", "cuEventDestroy_v2"

    def record(self, stream: Stream) -> None:
        _check("cuEventRecord", self._made, PTR(stream.handle))

    def time_since(self, first: Event) -> float:
        ms = ctypes.c_float()
        _check("cuEventElapsedTime", ctypes.byref(ms), first._made, self._made)
        return ms.value


def _address(data: Any) -> PTR:
    return PTR(ctypes.addressof(data))


def memcpy_htod_async(to: int, data: Any, stream: Stream) -> None:
    _check("cuMemcpyHtoDAsync_v2", U64(to), _address(data), SIZE(len(data)), PTR(stream.handle))


def memcpy_dtoh_async(data: Any, source: int, stream: Stream) -> None:
    _check("cuMemcpyDtoHAsync_v2", _address(data), U64(source), SIZE(len(data)), PTR(stream.handle))


def memcpy_dtod_async(to: int, source: int, nbytes: int, stream: Stream) -> None:
    _check("cuMemcpyDtoDAsync_v2", U64(to), U64(source), SIZE(nbytes), PTR(stream.handle))


def memset_d32_async(to: int, value: int, count: int, stream: Stream) -> None:
    _check("cuMemsetD32Async", U64(to), value, SIZE(count), PTR(stream.handle))


class Module(_Owned):
    _make, _free = "cuModuleLoadData", "cuModuleUnload"

    def get_function(self, name: str) -> Function:
        return Function(self, name)


def module_from_buffer(image: bytes) -> Module:
    return Module(image)


class Function:
    def __init__(self, module: Module, name: str) -> None:
        self._module, self._function = module, PTR()
        _check("cuModuleGetFunction", ctypes.byref(self._function), module._made, name.encode())

    def __call__(self, *args: Any, grid: Any, block: Any, stream: Stream) -> None:
        """PyCUDA takes numpy scalars and hands them over in one buffer."""
        buffer = bytearray()
        for value in args:
            assert isinstance(value, np.generic), value
            buffer += b"\0" * (-len(buffer) % value.itemsize) + value.tobytes()
        memory = ctypes.create_string_buffer(bytes(buffer), len(buffer))
        size = SIZE(len(buffer))
        extra = (PTR * 5)(1, ctypes.addressof(memory), 2, ctypes.addressof(size), 0)
        handle = PTR(stream.handle)
        _check("cuLaunchKernel", self._function, *grid, *block, 0, handle, None, extra)
