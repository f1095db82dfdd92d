"""Python packages for `edge doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from apps.doctor.check import Check
from apps.doctor.machine import L4T
from apps.doctor.programs import import_apart, version_of

__all__ = ["check_onnxruntime", "check_opencv", "check_optional", "opencv_of_jetpack", "package"]

# Module, distribution, what it is for, what brings it.
_OPTIONAL = (
    ("torch", "torch", "reading and training models", "build"),
    ("onnx", "onnx", "writing ONNX files", "build"),
    ("safetensors", "safetensors", "checkpoints", "build"),
    ("pycocotools", "pycocotools", "mean average precision", "build"),
    ("cuda.bindings.driver", "cuda-python", "a CUDA binding; ctypes does without", "cuda"),
    ("pycuda.driver", "pycuda", "a CUDA binding; ctypes does without", ""),
)


def check_optional() -> Iterable[Check]:
    """Packages of the extras, each imported apart."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda row: package(*row), _OPTIONAL))


def package(module: str, distribution: str, purpose: str, extra: str) -> Check:
    """One package: installed and loadable, absent, or broken."""
    command = f'pip install "edge-deploy[{extra}]"' if extra else f"pip install {distribution}"
    version = version_of(distribution)
    found, reason = import_apart(module)
    if found:
        return Check(distribution, "ok", version or "installed")
    if not version:
        return Check(distribution, "missing", f"for {purpose}", command)
    return Check(distribution, "problem", f"{version}: {reason}", f"reinstall it: {command}")


def check_onnxruntime() -> Iterable[Check]:
    """onnxruntime and its providers."""
    found, reason = import_apart(
        "onnxruntime", "m.__version__ + ': ' + ', '.join(m.get_available_providers())"
    )
    if found:
        yield Check("onnxruntime", "ok", found)
    else:
        yield Check("onnxruntime", "problem", f"no .onnx runs: {reason}", "pip install onnxruntime")


def check_opencv() -> Iterable[Check]:
    """OpenCV, and whether it has GStreamer."""
    found, reason = import_apart(
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
        yield opencv_of_jetpack(import_apart("cv2", "m.__file__")[0])
    if streamer.startswith("YES"):
        yield Check("OpenCV with GStreamer", "ok", streamer[3:].strip(" ()") or "yes")
    else:
        advice = "CSI cameras and pipelines go through a gst-launch-1.0 child instead"
        yield Check("OpenCV with GStreamer", "missing", "built without it", advice)


def opencv_of_jetpack(place: str) -> Check:
    """pip's wheel has no GStreamer, and hides the one that has."""
    name = "OpenCV of JetPack"
    if place.startswith("/usr/lib"):
        return Check(name, "ok", place)
    advice = (
        "pip uninstall opencv-python opencv-python-headless, sudo apt install python3-opencv, and "
        "a virtual environment with --system-site-packages"
    )
    return Check(name, "missing", f"another one is used: {place}", advice)
