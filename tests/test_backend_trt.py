"""TrtBackend on a fake TensorRT and a fake driver, and on the real library without a GPU.

The driver is a C library with the driver API's own functions (fake_libcuda.c), so `device.py` runs
as it is. The fake TensorRT has only methods that the real one has; a test holds it to that.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ArtifactError, DeviceError, EngineMismatch, MissingDependency
from edge.runtime import backend_trt
from edge.runtime.backend import open_backend
from edge.runtime.backend_trt import TrtBackend
from edge.runtime.device import driver_facts, open_device
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec
from tests.support.fake_tensorrt import FakeTensorRT, write_engine

pytest_plugins = ("tests.support.fake_driver",)

SHAPES = {"images": (1, 3, 4, 6), "wide": (1, 3, 4, 6), "sum": (1, 1, 4, 6)}
SPEC = ModelSpec(
    "mini",
    "darknet",
    ("car",),
    InputContract((4, 6)),
    (HeadSpec.of_grid("sum", "yolo", (4, 6), ((4.0, 2.5),)),),
)
MANIFEST = Manifest(
    SPEC,
    "int8",
    (TensorSpec("images", SHAPES["images"]),),
    (TensorSpec("sum", SHAPES["sum"]), TensorSpec("wide", SHAPES["wide"])),  # not the engine's
    made_by=(("tensorrt", "10.3.0"), ("targets", "SM86"), ("gpu", "NVIDIA A2"), ("driver", "12.4")),
)


@pytest.fixture
def trt(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    fake = FakeTensorRT(driver, SHAPES, _compute)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    for cached in (backend_trt._logger, backend_trt._log):
        cached.cache_clear()
    yield fake
    backend_trt._logger.cache_clear()


def _compute(arrays: dict[str, Any]) -> None:
    arrays["wide"][:] = arrays["images"] * 2
    arrays["sum"][:] = arrays["images"].sum(1, keepdims=True)


def _engine(folder: Path, plan: bytes = b"plan", manifest: Manifest = MANIFEST) -> Path:
    return write_engine(folder, manifest, plan)


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
        assert backend.name == "TensorRT 10.3.0 on Fake Orin" and backend.on_device
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
    ("code", "name", "advice"),
    [
        (35, "cudaErrorInsufficientDriver", "update it"),
        (2, "cudaErrorMemoryAllocation", "close other programs"),
        (100, "cudaErrorNoDevice", "nvidia-smi"),
    ],
)
def test_what_fails_for_the_driver_is_no_reason_to_rebuild(
    tmp_path: Path, trt: FakeTensorRT, code: int, name: str, advice: str
) -> None:
    trt.loads = False
    trt.says = (
        f"deserializeCudaEngine: Error Code 1: Cuda Runtime (In f at x:25 (cudaError {code}: no))"
    )
    with pytest.raises(
        DeviceError, match=rf"mini\.int8.*driver 12\.6.*{name}: .*{advice}"
    ) as caught:
        TrtBackend(_engine(tmp_path))
    assert "export-engine" not in str(caught.value)


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


# ---------------------------------------------------------------- several contexts, layers


def test_contexts_of_one_engine_run_apart_and_the_last_closes_the_device(
    tmp_path: Path, trt: FakeTensorRT
) -> None:
    first = TrtBackend(_engine(tmp_path))
    second = first.another()
    assert first.stream_handle != second.stream_handle
    assert [name for name, _ in trt.calls].count("deserialize_cuda_engine") == 1
    heads: dict[int, Any] = {}

    def run(number: int, backend: TrtBackend) -> None:
        heads[number] = [backend.run(_images(number))[1] for _ in range(5)]

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        for wide in heads[number]:
            np.testing.assert_array_equal(wide, _images(number) * 2)
    first.close()
    np.testing.assert_array_equal(second.run(_images(3))[1], _images(3) * 2)
    with pytest.raises(DeviceError, match="closed"):
        first.another()
    second.close()


def test_want_of_memory_for_another_context_leaves_the_first(
    tmp_path: Path, trt: FakeTensorRT
) -> None:
    with TrtBackend(_engine(tmp_path)) as backend:
        trt.fits = False
        with pytest.raises(DeviceError, match="memory"):
            backend.another()
        np.testing.assert_array_equal(backend.run(_images(0))[1], _images(0) * 2)


def test_layers_are_timed_in_a_context_of_their_own(tmp_path: Path, trt: FakeTensorRT) -> None:
    with TrtBackend(_engine(tmp_path)) as backend:
        assert backend.layer_times(3) == [("conv", 0.5), ("head", 1.5)]
        trt.fits = False
        with pytest.raises(DeviceError, match="profile"):
            backend.layer_times()
