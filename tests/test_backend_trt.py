"""TrtBackend on a fake TensorRT and a fake driver, and on the real library without a GPU.

The driver is a C library with the driver API's own functions (fake_libcuda.c), so `device.py` runs
as it is. The fake TensorRT has only methods that the real one has; a test holds it to that.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.errors import ArtifactError, DeviceError, EngineMismatch, MissingDependency
from edge.runtime import backend_trt, device
from edge.runtime.backend import open_backend
from edge.runtime.backend_trt import TrtBackend
from edge.runtime.device import driver_facts, open_device
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec

SHAPES = {"images": (1, 3, 4, 6), "wide": (1, 3, 4, 6), "sum": (1, 1, 4, 6)}
SPEC = ModelSpec(
    "mini",
    "darknet",
    ("car",),
    InputContract((4, 6)),
    (HeadSpec("sum", "yolo", (4, 6), ((4.0, 2.5),)),),
)
MANIFEST = Manifest(
    SPEC,
    "int8",
    (TensorSpec("images", SHAPES["images"]),),
    (TensorSpec("sum", SHAPES["sum"]), TensorSpec("wide", SHAPES["wide"])),  # not the engine's
    made_by=(("tensorrt", "10.3.0"), ("targets", "SM86"), ("gpu", "NVIDIA A2"), ("driver", "12.4")),
)


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the fake driver")
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = Path(__file__).with_name("fake_libcuda.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.fake_host.argtypes, loaded.fake_host.restype = [ctypes.c_uint64], ctypes.c_void_p
    loaded.fake_enqueue.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return loaded


@pytest.fixture
def driver(fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The fake driver, called by ctypes; nothing of it may be left over."""
    monkeypatch.setattr(device, "_LIBRARY", fake_driver._name)
    monkeypatch.setattr(device, "_BINDINGS", {"ctypes": device._BINDINGS["ctypes"]})
    yield fake_driver
    fake_driver.fake_devices(1)
    assert fake_driver.fake_depth() == 0
    assert fake_driver.fake_live() == 0


class FakeTensorRT(SimpleNamespace):
    """A module `tensorrt` that runs `wide = images * 2` and `sum = sum over channels`."""

    __version__ = "10.3.0.30"

    def __init__(self, driver: ctypes.CDLL) -> None:
        super().__init__(driver=driver, calls=[], loads=True, fits=True, starts=True, half=())
        module = self

        class ILogger:
            class Severity(IntEnum):
                INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        class IExecutionContext:
            def __init__(self) -> None:
                self._bound: dict[str, int] = {}
                self._kept: list[Any] = []

            def set_tensor_address(self, name: str, memory: int) -> bool:
                module.calls.append(("set_tensor_address", name))
                self._bound[name] = memory
                return True

            def execute_async_v3(self, stream_handle: int) -> bool:
                assert driver.fake_depth() == 1, "no current context"
                module.calls.append(("execute_async_v3", stream_handle))
                work = ctypes.CFUNCTYPE(None)(self._compute)
                self._kept.append(work)
                driver.fake_enqueue(stream_handle, ctypes.cast(work, ctypes.c_void_p))
                return bool(module.starts)

            def _compute(self) -> None:
                images, wide, total = (self._array(name) for name in ("images", "wide", "sum"))
                wide[:] = images * 2
                total[:] = images.sum(1, keepdims=True)

            def _array(self, name: str) -> Any:
                count = int(np.prod(SHAPES[name]))
                at = driver.fake_host(self._bound[name])
                kind = ctypes.c_float * count
                return np.ctypeslib.as_array(kind.from_address(at)).reshape(SHAPES[name])

        class ICudaEngine:
            num_io_tensors = 3

            def get_tensor_name(self, index: int) -> str:
                return ("images", "wide", "sum")[index]

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return SHAPES[name]

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
                    self._logger.log(ILogger.Severity.ERROR, "wrong\n magic tag")
                    return None
                return ICudaEngine()

        self.classes = (Runtime, ICudaEngine, IExecutionContext)
        self.Runtime, self.ILogger = Runtime, ILogger


@pytest.fixture
def trt(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    fake = FakeTensorRT(driver)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    for cached in (backend_trt._logger, backend_trt._log):
        cached.cache_clear()
    yield fake
    backend_trt._logger.cache_clear()


def _engine(folder: Path, plan: bytes = b"plan", manifest: Manifest = MANIFEST) -> Path:
    path = folder / "mini.int8.engine"
    path.write_bytes(plan)
    whole = replace(manifest, sha256=hashlib.sha256(plan).hexdigest())
    path.with_name(path.name + ".json").write_text(whole.to_json())
    return path


def _images(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=SHAPES["images"]).astype(np.float32)


def test_the_fake_has_only_what_tensorrt_has(trt: FakeTensorRT) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    for fake in trt.classes:
        names = [name for name in vars(fake) if not name.startswith("_")]
        assert names
        for name in names:
            assert hasattr(getattr(real, fake.__name__), name), f"{fake.__name__}.{name}"


def test_heads_come_in_the_manifests_order_and_stay(tmp_path: Path, trt: FakeTensorRT) -> None:
    first, second = _images(0), _images(1)
    with open_backend(_engine(tmp_path)) as backend:
        assert backend.name == "TensorRT 10.3.0 on Fake Orin" and not backend.on_device
        total, wide = backend.run(first)
        backend.run(second)
    np.testing.assert_array_equal(wide, first * 2)
    np.testing.assert_allclose(total, first.sum(1, keepdims=True), rtol=1e-6)


def test_a_strided_frame_is_taken_as_it_looks(tmp_path: Path, trt: FakeTensorRT) -> None:
    frame = np.ascontiguousarray(_images(0).transpose(0, 2, 3, 1))
    with TrtBackend(_engine(tmp_path)) as backend:
        _, wide = backend.run(frame.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(wide, _images(0) * 2)


def test_addresses_are_bound_once(tmp_path: Path, trt: FakeTensorRT) -> None:
    with TrtBackend(_engine(tmp_path)) as backend:
        for seed in range(3):
            backend.run(_images(seed))
        stream = backend.stream_handle
    names = [name for name, _ in trt.calls]
    bound = sorted(value for name, value in trt.calls if name == "set_tensor_address")
    assert bound == ["images", "sum", "wide"]
    assert (
        names == ["deserialize_cuda_engine", *["set_tensor_address"] * 3] + ["execute_async_v3"] * 3
    )
    assert trt.calls[-1] == ("execute_async_v3", stream)


def test_any_thread_may_run_it(tmp_path: Path, trt: FakeTensorRT) -> None:
    heads: list[Any] = []
    with TrtBackend(_engine(tmp_path)) as backend:
        thread = threading.Thread(target=lambda: heads.extend(backend.run(_images(0))))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(heads[1], _images(0) * 2)


def test_an_engine_of_another_checksum_is_never_deserialised(
    tmp_path: Path, trt: FakeTensorRT
) -> None:
    path = _engine(tmp_path)
    path.write_bytes(b"plaN")
    with pytest.raises(EngineMismatch, match=r"sha256.*export-engine"):
        TrtBackend(path)
    path.with_name(path.name + ".json").unlink()
    with pytest.raises(ArtifactError, match=r"missing.*export-engine"):
        TrtBackend(path)
    assert trt.calls == []


def test_a_plan_that_does_not_load_names_both_sides(tmp_path: Path, trt: FakeTensorRT) -> None:
    trt.loads = False
    with pytest.raises(EngineMismatch) as caught:
        TrtBackend(_engine(tmp_path))
    text = str(caught.value)
    for word in ("10.3.0", "SM86", "NVIDIA A2", "12.4", "Fake Orin", "SM87", "12.6"):
        assert word in text
    assert "wrong magic tag" in text and "export-engine" in text and "\n" not in text


@pytest.mark.parametrize(
    "outputs",
    [
        (TensorSpec("sum", SHAPES["sum"]),),
        (TensorSpec("sum", SHAPES["sum"]), TensorSpec("wide", (1, 3, 4, 7))),
        (*MANIFEST.outputs, TensorSpec("third", (1,))),
    ],
)
def test_a_manifest_of_other_heads_is_refused(
    tmp_path: Path, trt: FakeTensorRT, outputs: tuple[TensorSpec, ...]
) -> None:
    with pytest.raises(EngineMismatch, match="other inputs and outputs"):
        TrtBackend(_engine(tmp_path, manifest=replace(MANIFEST, outputs=outputs)))


def test_half_heads_under_a_float_manifest_are_refused(tmp_path: Path, trt: FakeTensorRT) -> None:
    trt.half = ("wide",)
    with pytest.raises(EngineMismatch, match="wide"):
        TrtBackend(_engine(tmp_path))


def test_want_of_memory_and_a_failed_start_are_device_errors(
    tmp_path: Path, trt: FakeTensorRT
) -> None:
    trt.starts = False
    with TrtBackend(_engine(tmp_path)) as backend, pytest.raises(DeviceError, match="start"):
        backend.run(_images(0))
    trt.fits = False
    with pytest.raises(DeviceError, match="memory"):
        TrtBackend(_engine(tmp_path))


@pytest.mark.parametrize(
    "tensor", [np.zeros((1, 3, 4, 5), np.float32), np.zeros((1, 3, 4, 6)), np.zeros(0, np.float32)]
)
def test_another_shape_or_type_is_a_value_error(
    tmp_path: Path, trt: FakeTensorRT, tensor: Any
) -> None:
    with TrtBackend(_engine(tmp_path)) as backend, pytest.raises(ValueError, match="float32"):
        backend.run(tensor)


def test_closing_twice_is_fine_and_use_afterwards_is_not(tmp_path: Path, trt: FakeTensorRT) -> None:
    backend = TrtBackend(_engine(tmp_path))
    backend.close()
    backend.close()
    with pytest.raises(DeviceError, match="closed"):
        backend.run(_images(0))


def test_a_device_handed_in_stays_open(tmp_path: Path, trt: FakeTensorRT) -> None:
    with open_device() as shared:
        for seed in range(2):
            with TrtBackend(_engine(tmp_path), device=shared) as backend:
                np.testing.assert_array_equal(backend.run(_images(seed))[1], _images(seed) * 2)
        assert not shared.held
        shared.allocate(8).close()


def test_a_missing_library_names_its_extra(
    tmp_path: Path, driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match=r"edge-deploy\[tensorrt\]"):
        TrtBackend(_engine(tmp_path))


def test_the_real_library_without_a_gpu_says_so(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    if driver_facts() is not None:
        pytest.skip("there is a GPU here")
    manifest = replace(MANIFEST, made_by=(("tensorrt_rtx", "1.7.1.116"),))
    with pytest.raises(DeviceError, match=r"mini\.int8\.engine: no NVIDIA driver.*onnx"):
        open_backend(_engine(tmp_path, manifest=manifest))


def test_the_real_library_refuses_a_foreign_plan(tmp_path: Path, driver: ctypes.CDLL) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    manifest = replace(MANIFEST, made_by=(("tensorrt_rtx", "0.0.1"),))
    with pytest.raises(EngineMismatch) as caught:
        open_backend(_engine(tmp_path, b"no plan at all" * 99, manifest))
    short = ".".join(real.__version__.split(".")[:3])
    assert f"TensorRT-RTX {short} on Fake Orin" in str(caught.value)
    assert "0.0.1" in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- the device itself


def test_the_driver_tells_of_the_gpu(driver: ctypes.CDLL) -> None:
    facts = driver_facts()
    assert facts is not None
    assert (facts.name, facts.compute_capability, facts.driver) == ("Fake Orin", "SM87", "12.6")
    with open_device() as gpu:
        assert (gpu.name, gpu.compute_capability) == ("Fake Orin", (8, 7))
        assert gpu.integrated and gpu.driver_version == "12.6" and gpu.binding == "ctypes"


def test_copies_wait_for_the_stream(driver: ctypes.CDLL) -> None:
    source = np.arange(12, dtype=np.float32).reshape(3, 4)
    with open_device() as gpu, gpu.current():
        stream, memory = gpu.stream(), gpu.allocate((3, 4), np.float32)
        host = gpu.pinned((3, 4), np.float32).array
        gpu.copy_to_device_async(memory, source, stream)
        gpu.copy_to_host_async(host, memory, stream)
        assert not host.any()
        gpu.synchronize(stream)
        np.testing.assert_array_equal(host, source)
        assert memory.pointer != 0 and memory.nbytes == 48 and memory.dtype == np.float32


def test_copies_of_another_size_are_refused(driver: ctypes.CDLL) -> None:
    with open_device() as gpu:
        stream, memory = gpu.stream(), gpu.allocate(8)
        for array in (np.zeros(9, np.uint8), np.zeros((8, 2), np.uint8)[:, 0]):
            with pytest.raises(ValueError, match="8 bytes"):
                gpu.copy_to_device_async(memory, array, stream)
            with pytest.raises(ValueError, match="8 bytes"):
                gpu.copy_to_host_async(array, memory, stream)
        with pytest.raises(ValueError, match="no bytes"):
            gpu.allocate((0, 3))


def test_errors_carry_cudas_name_and_advice(driver: ctypes.CDLL) -> None:
    with open_device() as gpu, pytest.raises(DeviceError, match=r"OUT_OF_MEMORY: close"):
        gpu.allocate(1 << 40)
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_DEVICE"):
        open_device(3)
    driver.fake_devices(0)
    assert driver_facts() is None
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_NO_DEVICE.*nvidia-smi"):
        open_device()


def test_closed_memory_is_not_used(driver: ctypes.CDLL) -> None:
    gpu = open_device()
    memory, stream, host = gpu.allocate(8), gpu.stream(), gpu.pinned(8)
    gpu.close()
    gpu.close()
    uses: list[Callable[[], Any]] = [
        lambda: memory.pointer,
        lambda: stream.handle,
        lambda: host.array,
        lambda: gpu.allocate(8),
    ]
    for use in uses:
        with pytest.raises(DeviceError, match="closed"):
            use()
    memory.close()


def test_without_a_driver_the_text_says_what_runs_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_LIBRARY", "libnothing-of-that-name.so.1")
    assert driver_facts() is None
    with pytest.raises(DeviceError, match=r"no NVIDIA driver.*\.onnx"):
        open_device()


def test_the_bindings_names_are_the_drivers(fake_driver: ctypes.CDLL) -> None:
    for function, (symbol, _, _) in device._SIGNATURES.items():
        assert symbol.startswith(function) and hasattr(fake_driver, symbol)


def test_cuda_python_has_the_same_functions() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    for function in (*device._SIGNATURES, "cuDeviceGetName"):
        assert callable(getattr(real, function))
