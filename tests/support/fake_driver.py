"""Fixtures of a GPU that is none: a driver of C (fake_libcuda.c), kernels compiled for the host."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.runtime import cuda_driver, ops_gpu
from edge.runtime.compile import SOURCE
from edge.runtime.device import driver_facts, open_device
from edge.runtime.ops_gpu import Kernels
from tests.support.fake_build import HERE, build

HOST = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("driver")
    path = build("gcc", folder / "libcuda.so.1", str(HERE / "fake_libcuda.c"), "-ldl")
    loaded = ctypes.CDLL(str(path))
    loaded.fake_host.argtypes, loaded.fake_host.restype = [ctypes.c_uint64], ctypes.c_void_p
    loaded.fake_enqueue.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return loaded


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kernels.cu for the fake driver."""
    shim = ("-x", "c++", "-include", str(HERE / "host_shim.h"), "-ffp-contract=off")
    return build("g++", tmp_path_factory.mktemp("kernels") / "k.so", *HOST, *shim, str(SOURCE))


@pytest.fixture
def driver(fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The fake driver, called by ctypes; nothing of it may be left over."""
    monkeypatch.setattr(cuda_driver, "_LIBRARY", fake_driver._name)
    monkeypatch.setenv("EDGE_CUDA", "ctypes")
    yield fake_driver
    fake_driver.fake_devices(1)
    fake_driver.fake_integrated(1)
    fake_driver.fake_refuse_capture(0)
    fake_driver.fake_init(0)
    assert fake_driver.fake_depth() == 0
    assert fake_driver.fake_live() == 0


@pytest.fixture
def on_host(
    driver: ctypes.CDLL, host_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ctypes.CDLL]:
    """The fake driver with the host's kernels for its own; the kernels' library, for shuffling."""
    monkeypatch.setattr(ops_gpu, "compile_kernels", lambda _: str(host_kernels).encode())
    loaded = ctypes.CDLL(str(host_kernels))
    yield loaded
    loaded.host_shuffle(0)


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """The kernels on the host, and on the GPU where there is one: one test body holds both."""
    if request.param == "host":
        request.getfixturevalue("on_host")
    elif driver_facts() is None:
        pytest.skip("no NVIDIA GPU here")
    with open_device() as device:
        yield Kernels.load(device)
