"""What of this machine works, and what to do about the rest: `edge doctor`."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from apps.doctor_check import Check
from apps.doctor_commands import jetson_checks, program_checks
from apps.host import fingerprint
from apps.table import listing
from edge.artifact import write_atomic
from edge.errors import DeviceError
from edge.runtime import compile
from edge.runtime.device import Device, open_device
from export.engine import BuilderInfo, available_builders
from export.engine_process import memory_available_mib

__all__ = ["Check", "doctor", "print_doctor"]

BOARD, L4T = Path("/proc/device-tree/model"), Path("/etc/nv_tegra_release")
CPUINFO, DEV, VIDEO4LINUX = Path("/proc/cpuinfo"), Path("/dev"), Path("/sys/class/video4linux")
# By machine: flags of /proc/cpuinfo whose instructions multiply INT8, the fastest first.
_INT8_FLAGS = {
    "x86_64": ("amx_int8", "avx512_vnni", "avx_vnni"),
    "aarch64": ("i8mm", "asimddp"),
}
# https://developer.nvidia.com/embedded/jetpack-archive: the release of L4T by JetPack's.
_JETPACK = {"32": "4", "35": "5", "36": "6", "38": "7"}
# Module, distribution, what it is for, what brings it.
_OPTIONAL = (
    ("torch", "torch", "reading and training models", "build"),
    ("onnx", "onnx", "writing ONNX files", "build"),
    ("safetensors", "safetensors", "checkpoints", "build"),
    ("pycocotools", "pycocotools", "mean average precision", "build"),
    ("cuda.bindings.driver", "cuda-python", "a CUDA binding; ctypes does without", "cuda"),
    ("pycuda.driver", "pycuda", "a CUDA binding; ctypes does without", ""),
)
_LEAST_MIB = 1024
_TIMEOUT_S = 60


def doctor(json_path: str | Path | None = None) -> dict[str, Any]:
    """Look at everything that this project can use; a check that fails itself is a problem.

    Returns:
        `host`, `ok` (no problem; what is merely missing is none), `can_run_onnx`,
        `can_run_engines`, `can_build_engines`, and `checks`: `name`, `status` (`ok`, `missing`,
        `problem`), `found`, `advice`.

    Raises:
        ArtifactError: `json_path` cannot be written.
    """
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(_safely, _CHECKS))
    checks = [check for part in parts for check in part]
    well = {check.name for check in checks if check.status == "ok"}
    result: dict[str, Any] = {
        "host": fingerprint(),
        "ok": all(check.status != "problem" for check in checks),
        "can_run_onnx": {"onnxruntime", "OpenCV"} <= well,
        "can_run_engines": "engines run here" in well,
        "can_build_engines": any(name.startswith("builder ") for name in well),
        "checks": [asdict(check) for check in checks],
    }
    if json_path is not None:
        write_atomic(Path(json_path), json.dumps(result, indent=1).encode())
    return result


def _safely(check: Callable[[], Iterable[Check]]) -> list[Check]:
    try:
        return list(check())
    except Exception as error:  # a report of what is broken must not break
        name = check.__name__.strip("_").replace("_", " ")
        return [Check(name, "problem", f"the check itself failed: {error!r}", "please report this")]


# ---------------------------------------------------------------- machine


def _machine() -> Iterable[Check]:
    version = platform.python_version()
    enough = sys.version_info >= (3, 10)
    yield Check(
        "Python", "ok" if enough else "problem", version, "" if enough else "take 3.10 or later"
    )
    host = fingerprint()
    yield Check("machine", "ok", f"{host['cpu']}, {host['cores']} cores, {host['platform']}")
    yield _int8_instructions()
    yield _memory()


def _int8_instructions() -> Check:
    name = "INT8 instructions of the CPU"
    wanted = _INT8_FLAGS.get(platform.machine(), ())
    text = CPUINFO.read_text(errors="replace") if CPUINFO.is_file() else ""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    found = [flag for flag in wanted if lines and flag in lines[0].split()]
    if found:
        return Check(name, "ok", ", ".join(found))
    sought = f"none of {', '.join(wanted)}" if wanted else f"unknown for {platform.machine()}"
    return Check(name, "missing", sought, "INT8 may be no faster than FP32 here; edge bench tells")


def _memory() -> Check:
    free = memory_available_mib()
    if free == 0:
        return Check("memory", "missing", "unknown", "")
    if free < _LEAST_MIB:
        advice = "building an engine may be killed: close programs or add swap"
        return Check("memory", "problem", f"{free} MiB available", advice)
    return Check("memory", "ok", f"{free} MiB available")


def _jetson() -> Iterable[Check]:
    if not L4T.is_file():
        yield Check("Jetson", "missing", "not one (no /etc/nv_tegra_release)")
        return
    board = BOARD.read_text(errors="replace").strip("\0\n ") if BOARD.is_file() else "unknown board"
    match = re.search(r"R(\d+).*?REVISION: ([\d.]+)", L4T.read_text(errors="replace"))
    if match is None:
        yield Check("Jetson", "problem", f"{board}, {L4T} cannot be read", "flash it again")
        return
    major, minor = match.groups()
    jetpack = _package_version("nvidia-jetpack") or f"{_JETPACK.get(major, 'unknown')}.x"
    yield Check("Jetson", "ok", f"{board}, JetPack {jetpack}, L4T {major}.{minor}")
    yield from jetson_checks()


def _package_version(package: str) -> str:
    """Version of an installed Debian package, or nothing."""
    if shutil.which("dpkg-query") is None:
        return ""
    done = _run(["dpkg-query", "-W", "-f=${Version}", package])
    return done.stdout.strip() if done.returncode == 0 else ""


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
    )


# ---------------------------------------------------------------- packages


def _import(module: str, expression: str = "''") -> tuple[str, str]:
    """What `expression` over `module` gives in a fresh process, or "" and why it cannot.

    A broken package may end the process that imports it.
    """
    code = f"import importlib; m = importlib.import_module({module!r}); print('>', {expression})"
    try:
        done = _run([sys.executable, "-c", code])
    except subprocess.TimeoutExpired:
        return "", f"importing it takes more than {_TIMEOUT_S} s"
    if done.returncode < 0:
        return "", f"importing it ends the process with signal {-done.returncode}"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
    return done.stdout.rpartition(">")[2].strip() or "yes", ""


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _optional() -> Iterable[Check]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda row: _package(*row), _OPTIONAL))


def _package(module: str, distribution: str, purpose: str, extra: str) -> Check:
    command = f'pip install "edge-deploy[{extra}]"' if extra else f"pip install {distribution}"
    version = _version(distribution)
    found, reason = _import(module)
    if found:
        return Check(distribution, "ok", version or "installed")
    if not version:
        return Check(distribution, "missing", f"for {purpose}", command)
    return Check(distribution, "problem", f"{version}: {reason}", f"reinstall it: {command}")


def _onnxruntime() -> Iterable[Check]:
    found, reason = _import(
        "onnxruntime", "m.__version__ + ': ' + ', '.join(m.get_available_providers())"
    )
    if found:
        yield Check("onnxruntime", "ok", found)
    else:
        yield Check("onnxruntime", "problem", f"no .onnx runs: {reason}", "pip install onnxruntime")


def _opencv() -> Iterable[Check]:
    found, reason = _import(
        "cv2",
        "m.__version__, *(line.partition(':')[2].strip() for line in"
        " m.getBuildInformation().splitlines() if line.strip().startswith('GStreamer:'))",
    )
    if not found:
        advice = "pip install opencv-python-headless (a Jetson: apt install python3-opencv)"
        yield Check("OpenCV", "problem", reason, advice)
        return
    version, _, streamer = found.partition(" ")
    yield Check("OpenCV", "ok", version)
    if L4T.is_file():
        yield _opencv_of_jetpack(_import("cv2", "m.__file__")[0])
    if streamer.startswith("YES"):
        yield Check("OpenCV with GStreamer", "ok", streamer[3:].strip(" ()") or "yes")
    else:
        advice = "CSI cameras and pipelines go through a gst-launch-1.0 child instead"
        yield Check("OpenCV with GStreamer", "missing", "built without it", advice)


def _opencv_of_jetpack(place: str) -> Check:
    """pip's wheel has no GStreamer, and hides the one that has."""
    name = "OpenCV of JetPack"
    if place.startswith("/usr/lib"):
        return Check(name, "ok", place)
    advice = (
        "pip uninstall opencv-python opencv-python-headless, sudo apt install python3-opencv, and "
        "a virtual environment with --system-site-packages"
    )
    return Check(name, "missing", f"another one is used: {place}", advice)


# ---------------------------------------------------------------- engines


def _engines() -> Iterable[Check]:
    builders = available_builders()
    for builder in builders:
        yield _builder(builder)
    gpus, reason = _gpus()
    if gpus:
        driver = f"serves CUDA {gpus[0].driver_version}, through {gpus[0].binding}"
        yield Check("CUDA driver", "ok", driver)
        for gpu in gpus:
            yield _gpu(gpu)
    else:
        yield Check(
            "CUDA driver",
            "missing",
            reason,
            "where there is a GPU: install its driver (a Jetson: JetPack)",
        )
    yield _kernel_compiler()
    yield _runtime(builders, bool(gpus))


def _kernel_compiler() -> Check:
    name = "compiler of the GPU's kernels"
    cache = compile.cache_folder()
    kept = f"{len(list(cache.glob('*')))} images kept in {cache}"
    found = [each.name for each in (compile.nvrtc(), compile.nvcc()) if each is not None]
    if found:
        return Check(name, "ok", f"{', '.join(found)}; {kept}")
    advice = 'pip install "edge-deploy[cuda]"; a Jetson has it from JetPack: cuda-nvrtc'
    return Check(name, "missing", f"neither NVRTC nor nvcc; {kept}", advice)


def _builder(builder: BuilderInfo) -> Check:
    name = f"builder {builder.name}"
    if builder.ok:
        return Check(name, "ok", ", ".join(filter(None, (builder.version, builder.reason))))
    extra = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}.get(builder.name)
    advice = f'pip install "edge-deploy[{extra}]"' if extra and not builder.version else ""
    return Check(name, "missing", builder.reason, advice)


def _gpus() -> tuple[list[Device], str]:
    """Every GPU, closed again, or the reason why there is none."""
    found: list[Device] = []
    try:
        while True:
            with open_device(len(found)) as device:
                found.append(device)
    except DeviceError as error:
        return found, str(error)


def _gpu(gpu: Device) -> Check:
    capability = ".".join(map(str, gpu.compute_capability))
    kind = "shares memory with the CPU" if gpu.integrated else "has its own memory"
    return Check(f"GPU {gpu.index}", "ok", f"{gpu.name}, compute capability {capability}, {kind}")


def _runtime(builders: list[BuilderInfo], gpu: bool) -> Check:
    name = "engines run here"
    libraries = [f"{one.name} {one.version}" for one in builders if one.version]
    if libraries and gpu:
        return Check(name, "ok", ", ".join(libraries))
    lacking = [*([] if libraries else ["TensorRT"]), *([] if gpu else ["an NVIDIA GPU"])]
    return Check(name, "missing", f"needs {' and '.join(lacking)}", "the .onnx beside it runs here")


# ---------------------------------------------------------------- cameras


def _cameras() -> Iterable[Check]:
    yield _gst_launch()
    devices = sorted(DEV.glob("video*"))
    if not devices:
        advice = "plug one in, or take a file or a stream as the source"
        yield Check("cameras", "missing", "no /dev/video*", advice)
    for device in devices:
        yield _camera(device)


def _gst_launch() -> Check:
    name = "gst-launch-1.0"
    if shutil.which(name) is None:
        return Check(
            name,
            "missing",
            "for CSI cameras",
            "apt install gstreamer1.0-tools gstreamer1.0-plugins-good",
        )
    done = _run([name, "--version"])
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Check(name, "problem", lines[-1][:300], "apt install --reinstall gstreamer1.0-tools")
    return Check(name, "ok", (done.stdout.splitlines() or ["present"])[0])


def _camera(device: Path) -> Check:
    label = VIDEO4LINUX / device.name / "name"
    found = label.read_text(errors="replace").strip() if label.is_file() else "no name"
    if os.access(device, os.R_OK | os.W_OK):
        return Check(str(device), "ok", found)
    advice = "sudo usermod -aG video $USER, then log in again"
    return Check(str(device), "problem", f"{found}: no permission", advice)


def _programs() -> Iterable[Check]:
    yield from program_checks(L4T.is_file())


_CHECKS: tuple[Callable[[], Iterable[Check]], ...] = (
    _machine,
    _jetson,
    _onnxruntime,
    _opencv,
    _engines,
    _optional,
    _cameras,
    _programs,
)


def print_doctor(result: dict[str, Any]) -> None:
    """The checks as a table on stdout, and in one line what this machine can do."""
    rows = [(c["name"], c["status"], c["found"], c["advice"]) for c in result["checks"]]
    able = [
        f"{what}: {'yes' if result[key] else 'no'}"
        for key, what in (
            ("can_run_onnx", "runs .onnx"),
            ("can_build_engines", "builds engines"),
            ("can_run_engines", "runs engines"),
        )
    ]
    listing(", ".join(able), ("what", "", "found", "what to do"), rows)
