"""kernels.cu compiled once for each GPU, by NVRTC or nvcc, and kept.

NVRTC needs no C compiler and half a second; nvcc is the second choice. A compiler older than the
GPU makes PTX for the newest architecture that it knows, which the driver then translates.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from edge.cache import cache_root
from edge.errors import ArtifactError, DeviceError, MissingDependency
from edge.files import write_file

__all__ = ["Compiler", "cache_folder", "compile_kernels", "find_compiler", "nvcc", "nvrtc"]

SOURCE = Path(__file__).with_name("kernels.cu")
_OPTIONS = ("--std=c++17",)
_MARK = 32  # bytes of sha256 before an image in the cache
_INSTALL = (
    "the GPU's kernels need a compiler: pip install nvidia-cuda-nvrtc, or nvcc of the CUDA toolkit "
    "on PATH (a Jetson has both from JetPack: apt install cuda-nvrtc-12-6, 13-0 on JetPack 7)"
)


@dataclass(frozen=True)
class Compiler:
    """NVRTC or nvcc.

    Attributes:
        name: `NVRTC 13.0`, `nvcc 13.0.88`.
        architectures: compute capabilities that it knows, as whole numbers (87 is 8.7), ascending.
        compile: source and target (`sm_87` for machine code, `compute_87` for PTX) to an image.
    """

    name: str
    architectures: tuple[int, ...]
    compile: Callable[[str, str], bytes]

    def target(self, architecture: int) -> str:
        """What to compile for so that a GPU of that architecture runs it.

        Raises:
            DeviceError: the GPU is older than all that the compiler knows.
        """
        if architecture in self.architectures:
            return f"sm_{architecture}"
        older = [known for known in self.architectures if known < architecture]
        if not older:
            raise DeviceError(
                f"{self.name} compiles for SM{self.architectures[0]} and newer, this GPU is "
                f"SM{architecture}: install an older CUDA toolkit"
            )
        return f"compute_{older[-1]}"


def compile_kernels(architecture: int, *, compiler: Compiler | None = None) -> bytes:
    """The kernels as an image that `Device.module` takes, from the cache where it is there.

    Args:
        architecture: of the GPU, 87 for compute capability 8.7.

    Raises:
        MissingDependency: there is neither NVRTC nor nvcc.
        DeviceError: the kernels do not compile, or the GPU is older than the compiler knows.
    """
    compiler = compiler or find_compiler()
    source, target = SOURCE.read_text(), compiler.target(architecture)
    mark = "\0".join((source, target, compiler.name, *_OPTIONS))
    path = cache_folder() / f"{target}-{hashlib.sha256(mark.encode()).hexdigest()[:16]}.image"
    kept = _kept(path)
    if kept is not None:
        return kept
    image = compiler.compile(source, target)
    _keep(path, image)
    return image


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$EDGE_CACHE/kernels`, else in the user's cache."""
    return cache_root() / "kernels"


def _kept(path: Path) -> bytes | None:
    """The image of that path, None where there is none or it is not what was written."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    mark, image = whole[:_MARK], whole[_MARK:]
    return image if mark == hashlib.sha256(image).digest() else None


def _keep(path: Path, image: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, hashlib.sha256(image).digest() + image)
    except (OSError, ArtifactError):
        return  # a read-only home costs half a second at each start, nothing more


def find_compiler() -> Compiler:
    """NVRTC, else nvcc.

    Raises:
        MissingDependency: there is neither; says how to get one.
    """
    found = nvrtc() or nvcc()
    if found is None:
        raise MissingDependency(_INSTALL)
    return found


@cache
def nvrtc() -> Compiler | None:
    """NVRTC from NVIDIA's wheel or the system, newest first; None where it is not."""
    for name in _nvrtc_libraries():
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        count = ctypes.c_int()
        library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        library.nvrtcGetSupportedArchs(known)
        title = f"NVRTC {major.value}.{minor.value}"
        return Compiler(title, tuple(sorted(known)), partial(_with_nvrtc, library))
    return None


def _nvrtc_libraries() -> Iterator[str]:
    """The wheels' (nvidia/cu13/lib, nvidia/cuda_nvrtc/lib), the loader's, then the toolkit's."""
    for folder in sys.path:
        wheels = Path(folder) / "nvidia"
        yield from (str(path) for path in sorted(wheels.glob("*/lib/libnvrtc.so.*"), reverse=True))
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2")
    root = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    yield from (str(path) for path in sorted((root / "lib64").glob("libnvrtc.so.*")))


def _with_nvrtc(library: Any, source: str, target: str) -> bytes:
    program = ctypes.c_void_p()
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), SOURCE.name.encode(), 0, None, None
    )
    if made != 0:
        raise DeviceError(f"{SOURCE.name}: NVRTC failed with {_result_name(library, made)}")
    try:
        options = [option.encode() for option in (f"--gpu-architecture={target}", *_OPTIONS)]
        array = (ctypes.c_char_p * len(options))(*options)
        status = library.nvrtcCompileProgram(program, len(options), array)
        if status != 0:
            log = _nvrtc_output(library, program, "ProgramLog").decode(errors="replace")
            raise _refused("NVRTC", target, _result_name(library, status), log)
        kind = "CUBIN" if target.startswith("sm_") else "PTX"
        return _nvrtc_output(library, program, kind)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _nvrtc_output(library: Any, program: ctypes.c_void_p, kind: str) -> bytes:
    size = ctypes.c_size_t()
    status = getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    data = ctypes.create_string_buffer(size.value)
    status = status or getattr(library, f"nvrtcGet{kind}")(program, data)
    if status != 0:
        name = _result_name(library, status)
        raise DeviceError(f"{SOURCE.name}: NVRTC gave no {kind}: it failed with {name}")
    return data.raw


def _result_name(library: Any, status: int) -> str:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return str(library.nvrtcGetErrorString(status).decode())


@cache
def nvcc() -> Compiler | None:
    """nvcc from PATH or the toolkit's usual place; None where it is not."""
    root = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    program = shutil.which("nvcc") or shutil.which(str(root / "bin" / "nvcc"))
    if program is None:
        return None
    version = re.search(r"V(\d+\.\d+\.\d+)", _said(program, "--version"))
    known = re.findall(r"compute_(\d+)", _said(program, "--list-gpu-arch"))
    if version is None or not known:
        return None
    architectures = tuple(sorted({int(number) for number in known}))
    name = f"nvcc {version.group(1)}"
    return Compiler(name, architectures, partial(_with_nvcc, program))


def _said(program: str, option: str) -> str:
    try:
        done = subprocess.run(
            [program, option], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _with_nvcc(program: str, source: str, target: str) -> bytes:
    machine = target.startswith("sm_")
    with tempfile.TemporaryDirectory() as folder:
        text, image = Path(folder) / SOURCE.name, Path(folder) / "image"
        text.write_text(source)
        kind = ["-cubin", f"-arch={target}"] if machine else ["-ptx", f"-arch={target}"]
        command = [program, *kind, *_OPTIONS, "-o", str(image), str(text)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _refused("nvcc", target, type(error).__name__, str(error)) from error
        if done.returncode != 0:
            raise _refused("nvcc", target, f"status {done.returncode}", done.stderr or done.stdout)
        return image.read_bytes()


def _refused(compiler: str, target: str, status: str, log: str) -> DeviceError:
    lines = [line.strip() for line in log.replace("\0", "").splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line), lines[0] if lines else "no reason")
    return DeviceError(f"{SOURCE.name}: {compiler} failed with {status} for {target}: {first}")
