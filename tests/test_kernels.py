"""kernels.cu compiles for GPUs that are not here, once; what does not compile says why."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from edge.errors import DeviceError, MissingDependency
from edge.runtime import compile
from edge.runtime.compile import SOURCE, Compiler, compile_kernels, find_compiler

KERNELS = (
    b"letterbox_bgr_float32",
    b"letterbox_nv12_float16",
    b"decode",
    b"decode_any",
    b"rank",
    b"keep",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    return tmp_path / "kernels"


@pytest.fixture(params=["nvrtc", "nvcc"])
def compiler(request: pytest.FixtureRequest) -> Compiler:
    found: Compiler | None = getattr(compile, request.param)()
    if found is None:
        pytest.skip(f"no {request.param} here")
    return found


def fake(calls: list[str], architectures: tuple[int, ...] = (75, 87, 90)) -> Compiler:
    def work(source: str, target: str) -> bytes:
        calls.append(target)
        return f"{target} {len(source)}".encode()

    return Compiler("fake 1.0", architectures, work)


@pytest.mark.parametrize("architecture", [75, 87, 110])  # the oldest, Orin, Thor
def test_kernels_compile(compiler: Compiler, architecture: int) -> None:
    if architecture not in compiler.architectures:
        pytest.skip(f"{compiler.name} does not know SM{architecture}")
    image = compile_kernels(architecture, compiler=compiler)
    assert image.startswith(b"\x7fELF")
    for name in KERNELS:
        assert name in image


def test_the_log_is_of_these_kernels() -> None:
    """Every architecture of nvcc and NVRTC, Orin's 87 and Thor's 110 among them."""
    log = (SOURCE.parents[2] / "tools" / "gpu" / "kernels.log").read_text()
    assert f"sha256 {hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}\n" in log
    rows = [line.split()[:3] for line in log.splitlines()[1:]]
    for name in ("nvcc", "NVRTC"):
        known = {architecture for compiler, _, architecture in rows if compiler == name}
        assert {"SM75", "SM80", "SM86", "SM87", "SM89", "SM90", "SM110", "SM121"} <= known
    assert all("cubin" in line and "PTX" in line for line in log.splitlines()[1:])


def test_a_gpu_newer_than_the_compiler_gets_ptx(compiler: Compiler) -> None:
    older = replace(compiler, architectures=(75,))
    image = compile_kernels(87, compiler=older)
    assert b".target sm_75" in image


def test_an_error_in_the_source_is_named_with_its_line(compiler: Compiler) -> None:
    with pytest.raises(DeviceError, match=r"kernels\.cu.*sm_87.*nonsense") as caught:
        compiler.compile(SOURCE.read_text() + "\nnonsense f() {}\n", "sm_87")
    assert "\n" not in str(caught.value)


def test_kernels_compile_once_for_each_source_architecture_and_compiler(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    compiler = fake(calls)
    for _ in range(2):
        assert compile_kernels(87, compiler=compiler).startswith(b"sm_87")
    assert calls == ["sm_87"]
    compile_kernels(75, compiler=compiler)
    compile_kernels(87, compiler=replace(compiler, name="fake 1.1"))
    changed = cache.parent / "kernels.cu"
    changed.write_text(SOURCE.read_text() + "\n")
    monkeypatch.setattr(compile, "SOURCE", changed)
    compile_kernels(87, compiler=compiler)
    assert calls == ["sm_87", "sm_75", "sm_87", "sm_87"]
    assert len(list(cache.iterdir())) == 4


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file where the folder would be")
    assert compile_kernels(87, compiler=fake([])).startswith(b"sm_87")


@pytest.mark.parametrize("damage", [b"", b"sm_87", b"\0" * 200])
def test_a_damaged_cache_is_made_anew(cache: Path, damage: bytes) -> None:
    calls: list[str] = []
    image = compile_kernels(87, compiler=fake(calls))
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:-1])
    assert compile_kernels(87, compiler=fake(calls)) == image
    assert calls == ["sm_87", "sm_87"] and path.read_bytes() == whole


def test_half_a_file_is_never_seen(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written beside and moved into place; where that fails nothing is left."""
    seen: list[str] = []

    def move(source: Path, target: Path) -> None:
        seen.extend(path.name for path in cache.iterdir())
        raise OSError("no")

    monkeypatch.setattr(os, "replace", move)
    assert compile_kernels(87, compiler=fake([])).startswith(b"sm_87")
    assert len(seen) == 1 and seen[0].endswith(".part") and not list(cache.iterdir())


def test_an_nvcc_that_does_not_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"nvcc failed with FileNotFoundError.*no-nvcc"):
        compile._with_nvcc(str(tmp_path / "no-nvcc"), "", "sm_87")


def test_architectures_that_the_compiler_does_not_know() -> None:
    compiler = fake([])
    assert compiler.target(87) == "sm_87"
    assert compiler.target(89) == "compute_87" and compiler.target(130) == "compute_90"
    with pytest.raises(DeviceError, match=r"SM75 and newer.*SM62.*older CUDA"):
        compiler.target(62)


def test_without_any_compiler_the_text_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "nvrtc", lambda: None)
    monkeypatch.setattr(compile, "nvcc", lambda: None)
    with pytest.raises(MissingDependency, match=r"nvidia-cuda-nvrtc.*nvcc.*JetPack"):
        find_compiler()
