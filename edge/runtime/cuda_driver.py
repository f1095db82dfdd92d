"""The CUDA driver API by name, through whichever binding is there; nothing else knows a binding.

`call("cuMemAlloc", nbytes)` returns the function's result, in the names and the order of the driver
API (https://docs.nvidia.com/cuda/cuda-driver-api/), or raises a `DeviceError` with CUDA's own name
for what went wrong. Handles and addresses are plain integers. Three bindings serve it, asked for by
the environment's `EDGE_CUDA` or taken in this order: `cuda-python` (NVIDIA's), `pycuda`, and
`ctypes` on the driver's library, which needs no package at all.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from edge.errors import DeviceError, MissingDependency
from edge.optional import require

__all__ = ["BINDINGS", "Call", "open_binding", "open_ctypes"]

Call = Callable[..., Any]
_LIBRARY = "libcuda.so.1"
_ADVICE = {
    "CUDA_ERROR_NO_DEVICE": "no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_INVALID_DEVICE": "there is no GPU of that index",
    "CUDA_ERROR_OUT_OF_MEMORY": "close other programs, or take a smaller network",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated: restart the machine",
    "CUDA_ERROR_SYSTEM_NOT_READY": "the driver is not running: restart it or the machine",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the kernels are for another GPU: empty the kernel cache",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the CUDA toolkit is newer than the driver: update it",
    "CUDA_ERROR_INVALID_IMAGE": "the kernels are damaged, or their compiler is newer than the "
    "driver: empty the kernel cache, then update the driver or take the NVRTC of its CUDA",
    "CUDA_ERROR_STUB_LIBRARY": "libcuda.so.1 is the toolkit's stub: take its folder out of "
    "LD_LIBRARY_PATH",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "CUDA's compatibility package serves other GPUs: "
    "update the driver itself",
    "CUDA_ERROR_OPERATING_SYSTEM": "the driver's devices are out of reach: check /dev/nvidia*, and "
    "a container's GPU option",
    "CUDA_ERROR_UNKNOWN": "the driver gives no reason: check dmesg, restart the machine",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel reached beyond its memory: start anew, and report it",
    "CUDA_ERROR_LAUNCH_FAILED": "a kernel broke off: start anew, and report it",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory is damaged: check nvidia-smi -q",
}


def _failed(function: str, name: str) -> DeviceError:
    return DeviceError(f"{function} failed with {name}: {_ADVICE.get(name, 'see the CUDA manual')}")


def _lacks(function: str, error: Exception) -> DeviceError:
    """A binding's or the loader's own complaint, made before the driver was asked."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DeviceError(f"{function}: the NVIDIA driver does not serve it, update it ({text})")


def _load_library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise DeviceError(
            f"no NVIDIA driver here ({error}): an engine runs on a machine with an NVIDIA GPU; "
            "the .onnx beside it runs on any"
        ) from error


def _packed(*args: Any) -> tuple[tuple[Any, ...], Any]:
    """The arguments of cuLaunchKernel for (kernel, grid, block, values, stream); what to keep."""
    kernel, grid, block, values, stream = args
    places = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    return (kernel, *grid, *block, 0, stream, ctypes.addressof(places), 0), places


def _cuda_python() -> Call:
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError:  # cuda-python before 12.6
        driver = importlib.import_module("cuda.cuda")

    def call(function: str, *args: Any) -> Any:
        kept = None
        if function == "cuDeviceGetName":
            args = (256, *args)
        elif function == "cuDeviceGetAttribute":
            args = (driver.CUdevice_attribute(args[0]), args[1])
        elif function == "cuStreamBeginCapture":
            args = (args[0], driver.CUstreamCaptureMode(args[1]))
        elif function == "cuLaunchKernel":
            args, kept = _packed(*args)
        try:
            status, *values = getattr(driver, function)(*args)
        except RuntimeError as error:  # the library or the function in it was not found
            raise _lacks(function, error) from error
        del kept
        if int(status) != 0:
            raise _failed(function, getattr(status, "name", str(status)))
        return values[0] if values else None

    return call


_INT, _SIZE, _ADDRESS, _HANDLE = ctypes.c_int, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p
_UINT, _FLAGS, _BYTES, _FLOAT = ctypes.c_uint, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_float
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
    "cuMemHostGetDevicePointer": ("cuMemHostGetDevicePointer_v2", _ADDRESS, (_HANDLE, _UINT)),
    "cuMemFreeHost": ("cuMemFreeHost", None, (_HANDLE,)),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", None, (_ADDRESS, _HANDLE, _SIZE, _HANDLE)),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", None, (_HANDLE, _ADDRESS, _SIZE, _HANDLE)),
    "cuMemcpyDtoDAsync": ("cuMemcpyDtoDAsync_v2", None, (_ADDRESS, _ADDRESS, _SIZE, _HANDLE)),
    "cuMemsetD32Async": ("cuMemsetD32Async", None, (_ADDRESS, _UINT, _SIZE, _HANDLE)),
    "cuStreamCreate": ("cuStreamCreate", _HANDLE, (_UINT,)),
    "cuStreamSynchronize": ("cuStreamSynchronize", None, (_HANDLE,)),
    "cuStreamDestroy": ("cuStreamDestroy_v2", None, (_HANDLE,)),
    "cuStreamBeginCapture": ("cuStreamBeginCapture_v2", None, (_HANDLE, _INT)),
    "cuGraphInstantiate": ("cuGraphInstantiateWithFlags", _HANDLE, (_HANDLE, _FLAGS)),
    "cuGraphLaunch": ("cuGraphLaunch", None, (_HANDLE, _HANDLE)),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", None, (_HANDLE,)),
    "cuGraphDestroy": ("cuGraphDestroy", None, (_HANDLE,)),
    "cuEventCreate": ("cuEventCreate", _HANDLE, (_UINT,)),
    "cuEventRecord": ("cuEventRecord", None, (_HANDLE, _HANDLE)),
    "cuEventRecordWithFlags": ("cuEventRecordWithFlags", None, (_HANDLE, _HANDLE, _UINT)),
    "cuEventElapsedTime": ("cuEventElapsedTime", _FLOAT, (_HANDLE, _HANDLE)),
    "cuEventDestroy": ("cuEventDestroy_v2", None, (_HANDLE,)),
    "cuModuleLoadData": ("cuModuleLoadData", _HANDLE, (_BYTES,)),
    "cuModuleGetFunction": ("cuModuleGetFunction", _HANDLE, (_HANDLE, _BYTES)),
    "cuModuleUnload": ("cuModuleUnload", None, (_HANDLE,)),
    "cuLaunchKernel": ("cuLaunchKernel", None, (_HANDLE, *[_UINT] * 7, _HANDLE, _HANDLE, _HANDLE)),
}


def open_ctypes() -> Call:
    """The driver's own library, without any package.

    Raises:
        DeviceError: there is no driver, or, from a call, it is too old to have that function.
    """
    library = _load_library()

    def call(function: str, *args: Any) -> Any:
        kept = None
        if function == "cuDeviceGetName":
            text = ctypes.create_string_buffer(256)
            _check(library, function, library.cuDeviceGetName(text, 256, *args))
            return text.value
        if function == "cuStreamEndCapture":  # the one whose result comes last
            graph = ctypes.c_void_p()
            status = library.cuStreamEndCapture(ctypes.c_void_p(args[0]), ctypes.byref(graph))
            _check(library, function, status)
            return graph.value
        if function == "cuLaunchKernel":
            args, kept = _packed(*args)
        symbol, result, types = _SIGNATURES[function]
        out = (ctypes.byref(value := result()),) if result else ()
        given = [kind(arg) for kind, arg in zip(types, args, strict=True)]
        status = getattr(library, symbol)(*out, *given)
        del kept
        _check(library, function, status)
        return value.value if result else None

    def checked(function: str, *args: Any) -> Any:
        try:
            return call(function, *args)
        except AttributeError as error:  # the library has no such symbol
            raise _lacks(function, error) from error

    return checked


def _check(library: ctypes.CDLL, function: str, status: int) -> None:
    if status != 0:
        name = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(name))
        raise _failed(function, (name.value or f"status {status}".encode()).decode())


class _PyCuda:
    """PyCUDA's objects by the handles of the driver.

    PyCUDA keeps a stack of contexts for each thread and refuses to touch memory of a context that
    is not on top, so every function but the first few is called with `cuCtxPushCurrent` before it;
    `Device` does. Detaching a primary context on top of the stack releases it, and leaves it on the
    driver's stack; the driver itself takes it off.
    """

    def __init__(self) -> None:
        self._pycuda: Any = importlib.import_module("pycuda.driver")
        self._library = _load_library()
        self._held: dict[int, Any] = {}
        self._of_module: dict[int, list[int]] = {}
        self._functions: dict[str, Call] = {
            "cuInit": self._pycuda.init,
            "cuDriverGetVersion": self._pycuda.get_driver_version,
            "cuDeviceGetCount": self._pycuda.Device.count,
            "cuDeviceGet": lambda index: self._pycuda.Device(index) and index,
            "cuDeviceGetName": lambda index: self._pycuda.Device(index).name(),
            "cuDeviceGetAttribute": self._attribute,
            "cuDevicePrimaryCtxRetain": self._retain,
            "cuDevicePrimaryCtxRelease": self._release,
            "cuCtxPushCurrent": lambda context: self._held[context].push(),
            "cuCtxPopCurrent": self._pycuda.Context.pop,
            "cuMemAlloc": lambda nbytes: self._hold(self._pycuda.mem_alloc(nbytes)),
            "cuMemFree": self._drop,
            "cuMemHostAlloc": self._host_alloc,
            "cuMemHostGetDevicePointer": lambda host, _: int(
                self._held[host].base.get_device_pointer()
            ),
            "cuMemFreeHost": self._drop,
            "cuMemcpyHtoDAsync": self._to_device,
            "cuMemcpyDtoHAsync": self._to_host,
            "cuMemcpyDtoDAsync": lambda to, source, nbytes, stream: self._pycuda.memcpy_dtod_async(
                to, source, nbytes, self._held[stream]
            ),
            "cuMemsetD32Async": lambda to, value, count, stream: self._pycuda.memset_d32_async(
                to, value, count, self._held[stream]
            ),
            "cuStreamCreate": lambda flags: self._hold(self._pycuda.Stream(flags)),
            "cuStreamSynchronize": lambda stream: self._held[stream].synchronize(),
            "cuStreamDestroy": self._drop,
            "cuEventCreate": lambda flags: self._hold(self._pycuda.Event(flags)),
            "cuEventRecord": lambda event, stream: self._held[event].record(self._held[stream]),
            "cuEventElapsedTime": lambda a, b: self._held[b].time_since(self._held[a]),
            "cuEventDestroy": self._drop,
            "cuModuleLoadData": lambda image: self._hold(self._pycuda.module_from_buffer(image)),
            "cuModuleGetFunction": self._function,
            "cuModuleUnload": self._unload,
            "cuLaunchKernel": self._launch,
        }

    def __call__(self, function: str, *args: Any) -> Any:
        if function not in self._functions:
            raise DeviceError(f"{function}: PyCUDA has no such function; EDGE_CUDA=ctypes has")
        if function == "cuInit":
            args = ()
        try:
            return self._functions[function](*args)
        except self._pycuda.Error as error:  # the base of its errors
            raise _failed(function, self._name_of(str(error))) from error
        except MemoryError as error:  # pycuda.driver.MemoryError is none of its own base
            raise _failed(function, "CUDA_ERROR_OUT_OF_MEMORY") from error

    def _name_of(self, text: str) -> str:
        """CUDA's name of the error that PyCUDA puts as `cuInit failed: DESCRIPTION`."""
        description = text.partition(" failed: ")[2].partition(" - ")[0]
        return _error_names(self._library).get(description, description or text)

    def _hold(self, thing: Any) -> int:
        handle = int(getattr(thing, "handle", 0) or _number(thing))
        self._held[handle] = thing
        return handle

    def _drop(self, handle: int) -> None:
        thing = self._held.pop(handle)
        free = getattr(getattr(thing, "base", None), "free", None) or getattr(thing, "free", None)
        if free is not None:
            free()

    def _attribute(self, attribute: int, index: int) -> int:
        known = self._pycuda.device_attribute.values[attribute]
        return int(self._pycuda.Device(index).get_attribute(known))

    def _retain(self, index: int) -> int:
        return self._hold(self._pycuda.Device(index).retain_primary_context())

    def _release(self, index: int) -> None:
        for handle, thing in list(self._held.items()):
            if isinstance(thing, self._pycuda.Context):
                thing.push()
                del self._held[handle]
                thing.detach()
                self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _host_alloc(self, nbytes: int, flags: int) -> int:
        array = self._pycuda.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        address = int(array.ctypes.data)
        self._held[address] = array
        return address

    def _to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        data = (ctypes.c_uint8 * nbytes).from_address(source)
        self._pycuda.memcpy_htod_async(target, data, self._held[stream])

    def _to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        data = (ctypes.c_uint8 * nbytes).from_address(target)
        self._pycuda.memcpy_dtoh_async(data, source, self._held[stream])

    def _function(self, module: int, name: bytes) -> int:
        handle = self._hold(self._held[module].get_function(name.decode()))
        self._of_module.setdefault(module, []).append(handle)
        return handle

    def _unload(self, module: int) -> None:
        for handle in self._of_module.pop(module, []):  # each keeps its module loaded
            self._drop(handle)
        self._drop(module)

    def _launch(self, kernel: int, grid: Any, block: Any, values: Any, stream: int) -> None:
        given = [np.dtype(type(value)).type(value.value) for value in values]
        self._held[kernel](*given, grid=grid, block=block, stream=self._held[stream])


def _number(thing: Any) -> int:
    """The address of an allocation; PyCUDA's events, modules and functions tell no handle."""
    try:
        return int(thing)
    except TypeError:
        return id(thing)


@cache
def _error_names(library: ctypes.CDLL) -> dict[str, str]:
    """CUDA's names by their descriptions."""
    names, name, text = {}, ctypes.c_char_p(), ctypes.c_char_p()
    for status in range(1, 1000):
        found = library.cuGetErrorName(status, ctypes.byref(name))
        if found == 0 and library.cuGetErrorString(status, ctypes.byref(text)) == 0:
            names[(text.value or b"").decode()] = (name.value or b"").decode()
    return names


BINDINGS: dict[str, tuple[str, Callable[[], Call]]] = {
    "cuda-python": ("cuda", _cuda_python),
    "pycuda": ("pycuda", _PyCuda),
    "ctypes": ("ctypes", open_ctypes),
}
"""The package that each binding needs, and what opens it, in the order in which they are tried."""


def open_binding(name: str | None = None) -> tuple[str, Call]:
    """The binding of that name; by default the environment's `EDGE_CUDA`, else the first there is.

    Raises:
        ValueError: no binding has that name.
        MissingDependency: its package is not installed, or cannot be imported.
        DeviceError: there is no driver, or `EDGE_CUDA` names no binding.
    """
    _load_library()
    asked = name or os.environ.get("EDGE_CUDA") or None
    if asked is None:
        for known, (_, binding) in BINDINGS.items():
            with suppress(ImportError):
                return known, binding()
        raise AssertionError("ctypes is always there")
    if asked not in BINDINGS:
        text = f"{asked!r} is no CUDA binding; known: {', '.join(BINDINGS)}"
        raise ValueError(text) if name else DeviceError(f"EDGE_CUDA: {text}")
    package, binding = BINDINGS[asked]
    require(package)
    try:
        return asked, binding()
    except ImportError as error:
        text = str(error).splitlines()[0]
        raise MissingDependency(f"{asked} is installed and cannot be used: {text}") from error
