"""The device's verbs on a fake driver, through ctypes and, where they are there, other bindings."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import DeviceError, MissingDependency
from edge.runtime import cuda_driver
from edge.runtime.cuda_driver import BINDINGS, open_binding
from edge.runtime.device import driver_facts, open_device
from tests.support.fake_build import HERE, build

pytest_plugins = ("tests.support.fake_driver",)

ROOT = Path(__file__).resolve().parent.parent


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


def test_a_copy_on_the_device_takes_two_of_one_size(driver: ctypes.CDLL) -> None:
    with open_device() as gpu, pytest.raises(ValueError, match="8 bytes into 9"):
        gpu.copy_async(gpu.allocate(9), gpu.allocate(8), gpu.stream())


def test_errors_carry_cudas_name_and_advice(driver: ctypes.CDLL) -> None:
    with open_device() as gpu, pytest.raises(DeviceError, match=r"OUT_OF_MEMORY: close"):
        gpu.allocate(1 << 40)
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_DEVICE"):
        open_device(3)
    driver.fake_devices(0)
    assert driver_facts() is None
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_NO_DEVICE.*nvidia-smi"):
        open_device()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (803, r"cuInit failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: .*restart"),
        (34, r"cuInit failed with CUDA_ERROR_STUB_LIBRARY: .*LD_LIBRARY_PATH"),
        (999, r"cuInit failed with CUDA_ERROR_UNKNOWN: .*dmesg"),
    ],
)
def test_a_wrong_driver_is_named(driver: ctypes.CDLL, status: int, text: str) -> None:
    driver.fake_init(status)
    assert driver_facts() is None
    with pytest.raises(DeviceError, match=text):
        open_device()


def test_a_driver_too_old_for_a_function_is_named(
    driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ("cuGraphInstantiateOfTomorrow", *cuda_driver._SIGNATURES["cuGraphInstantiate"][1:])
    monkeypatch.setitem(cuda_driver._SIGNATURES, "cuGraphInstantiate", old)
    with open_device() as gpu:
        stream = gpu.stream()
        with pytest.raises(DeviceError, match=r"cuGraphInstantiate: .*update"), gpu.capture(stream):
            pass


def test_a_library_that_is_no_driver_is_named(
    host_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "_LIBRARY", str(host_kernels))
    assert driver_facts() is None
    with pytest.raises(DeviceError, match=r"cuInit: .*driver.*undefined symbol"):
        open_device(binding="ctypes")


def test_cuda_python_that_finds_no_driver_says_so(fake_driver: ctypes.CDLL) -> None:
    """It looks for the driver itself, in a way of its own."""
    pytest.importorskip("cuda.bindings.driver")
    if driver_facts() is not None:
        pytest.skip("there is a GPU here")
    script = (
        "import sys\n"
        "from edge.errors import DeviceError\n"
        "from edge.runtime import cuda_driver\n"
        "from edge.runtime.device import open_device\n"
        "cuda_driver._LIBRARY = sys.argv[1]\n"
        "try: open_device(binding='cuda-python')\n"
        "except DeviceError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, fake_driver._name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert re.match(r"cuInit: .*driver.*update", done.stdout), done.stderr


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
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libnothing-of-that-name.so.1")
    assert driver_facts() is None
    with pytest.raises(DeviceError, match=r"no NVIDIA driver.*\.onnx"):
        open_device()


def test_the_bindings_names_are_the_drivers(fake_driver: ctypes.CDLL) -> None:
    for function, (symbol, _, _) in cuda_driver._SIGNATURES.items():
        assert symbol.startswith(function) and hasattr(fake_driver, symbol)


def test_cuda_python_has_the_same_functions() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    for function in (*cuda_driver._SIGNATURES, "cuDeviceGetName"):
        assert callable(getattr(real, function))


# ---------------------------------------------------------------- mapped memory, events, graphs


def test_mapped_memory_is_one_block_and_a_mirror_copies_only_where_it_must(
    driver: ctypes.CDLL,
) -> None:
    for integrated in (1, 0):
        driver.fake_integrated(integrated)
        before = driver.fake_copies()
        with open_device() as gpu:
            assert gpu.integrated == bool(integrated)
            stream, mirror = gpu.stream(), gpu.mirror(4, np.float32)
            mirror.array[:] = 7
            mirror.push(stream)
            gpu.synchronize(stream)
            there = (ctypes.c_float * 4).from_address(driver.fake_host(mirror.pointer))
            assert list(there) == [7] * 4
            there[0] = 9
            mirror.pull(stream)
            gpu.synchronize(stream)
            assert mirror.array[0] == 9
        assert driver.fake_copies() - before == (0 if integrated else 2)


def test_zeros_fill_a_buffer_of_whole_words(driver: ctypes.CDLL) -> None:
    with open_device() as gpu:
        stream, memory, host = gpu.stream(), gpu.allocate(3, np.uint32), gpu.pinned(3, np.uint32)
        host.array[:] = 5
        gpu.copy_to_device_async(memory, host.array, stream)
        gpu.zero_async(memory, stream)
        gpu.copy_to_host_async(host.array, memory, stream)
        gpu.synchronize(stream)
        assert not host.array.any()
        with pytest.raises(ValueError, match="words"):
            gpu.zero_async(gpu.allocate(3), stream)


def test_events_tell_time_in_a_stream_and_in_a_graph(driver: ctypes.CDLL) -> None:
    with open_device() as gpu:
        stream, first, second = gpu.stream(), gpu.event(), gpu.event()
        with pytest.raises(DeviceError, match="INVALID_HANDLE"):
            gpu.elapsed_ms(first, second)
        with gpu.capture(stream) as graph:
            gpu.record(first, stream)
            gpu.record(second, stream)
        gpu.replay(graph, stream)
        gpu.synchronize(stream)
        assert 0 <= gpu.elapsed_ms(first, second) < 1000


def test_a_graph_runs_what_was_captured_each_time_it_is_replayed(driver: ctypes.CDLL) -> None:
    with open_device() as gpu:
        stream, memory = gpu.stream(), gpu.allocate(2, np.int32)
        source, target = gpu.pinned(2, np.int32).array, gpu.pinned(2, np.int32).array
        with gpu.capture(stream) as graph:
            gpu.copy_to_device_async(memory, source, stream)
            gpu.copy_to_host_async(target, memory, stream)
        for number in (3, 4):
            source[:] = number
            gpu.replay(graph, stream)
            gpu.synchronize(stream)
            assert target.tolist() == [number, number]


def test_a_capture_that_fails_leaves_the_stream_usable(driver: ctypes.CDLL) -> None:
    with open_device() as gpu:
        stream = gpu.stream()
        with pytest.raises(DeviceError, match="CAPTURE_UNSUPPORTED"), gpu.capture(stream):
            gpu.synchronize(stream)
        gpu.synchronize(stream)
        assert not stream.capturing


def test_another_stream_goes_on_while_one_is_captured(driver: ctypes.CDLL) -> None:
    with open_device() as gpu:
        captured, other = gpu.stream(), gpu.stream()
        first, second = gpu.event(), gpu.event()
        source = np.array([5, 6], np.int32)
        memory, target = gpu.allocate(2, np.int32), gpu.pinned(2, np.int32).array
        with gpu.capture(captured) as graph:
            gpu.zero_async(memory, captured)
            gpu.record(first, other)
            gpu.copy_to_device_async(memory, source, other)
            gpu.copy_to_host_async(target, memory, other)
            gpu.record(second, other)
            gpu.synchronize(other)
        assert target.tolist() == [5, 6] and gpu.elapsed_ms(first, second) >= 0
        gpu.replay(graph, captured)
        gpu.synchronize(captured)
        gpu.copy_to_host_async(target, memory, other)
        gpu.synchronize(other)
        assert target.tolist() == [0, 0]


def test_a_damaged_image_and_an_unknown_kernel_are_named(
    driver: ctypes.CDLL, host_kernels: Path
) -> None:
    with open_device() as gpu:
        with pytest.raises(DeviceError, match=r"CUDA_ERROR_INVALID_IMAGE.*cache"):
            gpu.module(b"/no/such/image")
        with pytest.raises(DeviceError, match="CUDA_ERROR_NOT_FOUND"):
            gpu.module(str(host_kernels).encode()).kernel("nothing")


def test_a_kernel_is_never_given_a_host_address(driver: ctypes.CDLL, host_kernels: Path) -> None:
    """The shim aborts; a child process shows it."""
    script = (
        "import sys; from types import SimpleNamespace as At\n"
        "from edge.runtime import cuda_driver\n"
        "from edge.runtime.device import open_device\n"
        "cuda_driver._LIBRARY = sys.argv[1]\n"
        "gpu = open_device(binding='ctypes')\n"
        "kernel = gpu.module(sys.argv[2].encode()).kernel('collect')\n"
        "values = (At(pointer=4096),) * 3 + (1,) + (None,) * 4\n"
        "gpu.launch(kernel, (1, 1, 1), (1, 1, 1), values, gpu.stream())\n"
    )
    command = [sys.executable, "-c", script, driver._name, str(host_kernels)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "host address" in done.stderr


# ---------------------------------------------------------------- which binding


def test_the_environment_chooses_the_binding(
    driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_binding()[0] == "ctypes"
    monkeypatch.setenv("EDGE_CUDA", "cupy")
    with pytest.raises(DeviceError, match=r"EDGE_CUDA.*cuda-python, pycuda, ctypes"):
        open_binding()
    with pytest.raises(ValueError, match="cuda-python, pycuda, ctypes"):
        open_binding("numba")
    monkeypatch.delenv("EDGE_CUDA")
    absent = dict.fromkeys(("cuda-python", "pycuda"), ("nothing", _absent))
    monkeypatch.setattr(cuda_driver, "BINDINGS", {**BINDINGS, **absent})
    assert open_binding()[0] == "ctypes"
    monkeypatch.setenv("EDGE_CUDA", "pycuda")
    with pytest.raises(MissingDependency, match="nothing"):
        open_binding()
    monkeypatch.setattr(cuda_driver, "BINDINGS", {"pycuda": ("ctypes", _absent)})
    with pytest.raises(MissingDependency, match=r"pycuda is installed.*absent in this test"):
        open_binding()


def _absent() -> Any:
    raise ImportError("absent in this test")


WITH_BINDING = """
import sys, ctypes, threading
import numpy as np
binding, library, image = sys.argv[1:]
fake = ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
from edge.runtime import cuda_driver, ops_gpu
from edge.runtime.device import open_device
from edge.errors import DeviceError
cuda_driver._LIBRARY = library
ops_gpu.compile_kernels = lambda _: image.encode()
from edge.detections import Detections
from edge.runtime.ops_gpu import Kernels, nms

def use(gpu):
    boxes = np.array([[0, 0, 9, 9], [1, 0, 10, 9], [30, 30, 40, 40]], np.float32)
    found = Detections(boxes, np.array([.5, .9, .7]), np.zeros(3, np.int32))
    kept = nms(found, kernels=Kernels.load(gpu))
    assert np.allclose(kept.score, [0.9, 0.7]), kept.score
    stream, first, second = gpu.stream(), gpu.event(), gpu.event()
    memory, host = gpu.allocate(2, np.float32), gpu.pinned(2, np.float32)
    gpu.record(first, stream)
    twin = gpu.allocate(2, np.float32)
    gpu.copy_to_device_async(memory, np.array([1, 2], np.float32), stream)
    gpu.copy_async(twin, memory, stream)
    gpu.copy_to_host_async(host.array, twin, stream)
    gpu.record(second, stream)
    gpu.synchronize(stream)
    assert host.array.tolist() == [1, 2] and gpu.elapsed_ms(first, second) >= 0

for integrated in (1, 0):
    fake.fake_integrated(integrated)
    with open_device(binding=binding) as gpu:
        assert gpu.binding == binding and gpu.name == "Fake Orin", gpu.name
        assert gpu.compute_capability == (8, 7) and gpu.integrated == bool(integrated)
        use(gpu)
        errors = []
        def other():
            try:
                use(gpu)
            except BaseException as error:
                errors.append(error)
        thread = threading.Thread(target=other)
        thread.start(); thread.join()
        assert not errors, errors
        try:
            gpu.allocate(1 << 40)
        except DeviceError as error:
            assert "CUDA_ERROR_OUT_OF_MEMORY: close" in str(error), error
        else:
            raise AssertionError("no error")
        if binding != "pycuda":
            stream = gpu.stream()
            with gpu.capture(stream) as graph:
                gpu.zero_async(gpu.allocate(4), stream)
            gpu.replay(graph, stream)
            gpu.synchronize(stream)
    assert fake.fake_depth() == 0 and fake.fake_live() == 0, (fake.fake_depth(), fake.fake_live())
print("ok")
"""
PACKAGES = {"cuda-python": "cuda.bindings", "pycuda": "pycuda", "ctypes": "ctypes"}


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _whole_driver(folder: Path) -> Path:
    """The fake driver and, doing nothing, whatever else PyCUDA is linked to."""
    spec = importlib.util.find_spec("pycuda")
    assert spec is not None and spec.origin is not None
    extension = next(Path(spec.origin).parent.glob("_driver*.so"))
    command = ["nm", "-D", "--undefined-only", str(extension)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    fake = HERE / "fake_libcuda.c"
    needed = {line.split()[-1] for line in said.splitlines()}
    missing = {name for name in needed if re.match(r"cu[A-Z]", name)}
    missing -= set(re.findall(r"\bcu\w+", fake.read_text()))
    stubs = folder / "stubs.c"
    stubs.write_text("\n".join(f"int {name}(void) {{ return 0; }}" for name in sorted(missing)))
    return build("gcc", folder / "libcuda.so.1", str(fake), str(stubs), "-ldl")


def test_pycudas_way_is_the_same_on_a_fake_of_it(
    fake_driver: ctypes.CDLL, host_kernels: Path, tmp_path: Path
) -> None:
    package = tmp_path / "pycuda"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(HERE / "fake_pycuda.py", package / "driver.py")
    library = fake_driver._name
    done = subprocess.run(
        [sys.executable, "-c", WITH_BINDING, "pycuda", library, str(host_kernels)],
        cwd=ROOT,
        env={**os.environ, "FAKE_CUDA": library, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "ok", done.stderr


@pytest.mark.parametrize("binding", PACKAGES)
def test_each_binding_does_the_same(
    fake_driver: ctypes.CDLL, host_kernels: Path, tmp_path: Path, binding: str
) -> None:
    """A child process, in which the fake driver is the first `libcuda.so.1` that is found."""
    if not _there(PACKAGES[binding]):
        pytest.skip(f"{binding} is not installed")
    library = _whole_driver(tmp_path) if binding == "pycuda" else Path(fake_driver._name)
    folder = str(library.parent)
    done = subprocess.run(
        [sys.executable, "-c", WITH_BINDING, binding, str(library), str(host_kernels)],
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": folder},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "ok", done.stderr
