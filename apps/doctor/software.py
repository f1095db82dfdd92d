"""Python packages, builders of engines, GPUs and compilers for `edge doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from apps.doctor.check import Check, import_apart, version_of
from apps.doctor.machine import L4T
from edge.errors import DeviceError
from edge.runtime import compile
from edge.runtime.device import Device, open_device
from export.engine.build import BuilderInfo, available_builders

__all__ = [
    "check_engines",
    "check_onnxruntime",
    "check_opencv",
    "check_optional",
    "kernel_compiler",
    "opencv_of_jetpack",
    "package",
]

# Module, distribution, what it is for, and the extra of edge-deploy that brings it.
_OPTIONAL = (
    ("torch", "torch", "reading and training models", "build"),
    ("onnx", "onnx", "writing ONNX files", "build"),
    ("safetensors", "safetensors", "checkpoints", "build"),
    ("pycocotools", "pycocotools", "mean average precision", "build"),
    ("cuda.bindings.driver", "cuda-python", "a CUDA binding; ctypes does without", "cuda"),
    ("pycuda.driver", "pycuda", "a CUDA binding; ctypes does without", ""),
)


def check_optional() -> Iterable[Check]:
    """Check the packages of the extras, each imported in a process of its own."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda row: package(*row), _OPTIONAL))


def package(module: str, distribution: str, purpose: str, extra: str) -> Check:
    """Check one package: it is installed and can be imported, is absent, or is broken."""
    command = f'pip install "edge-deploy[{extra}]"' if extra else f"pip install {distribution}"
    version = version_of(distribution)
    found, reason = import_apart(module)
    if found:
        return Check(distribution, "ok", version or "installed")
    if not version:
        return Check(distribution, "missing", f"for {purpose}", command)
    return Check(distribution, "problem", f"{version}: {reason}", f"reinstall it: {command}")


def check_onnxruntime() -> Iterable[Check]:
    """Check onnxruntime and its providers."""
    found, reason = import_apart(
        "onnxruntime", "m.__version__ + ': ' + ', '.join(m.get_available_providers())"
    )
    if found:
        yield Check("onnxruntime", "ok", found)
    else:
        yield Check("onnxruntime", "problem", f"no .onnx runs: {reason}", "pip install onnxruntime")


def check_opencv() -> Iterable[Check]:
    """Check OpenCV, and whether it has GStreamer."""
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
        advice = "nothing: edge reads CSI cameras and pipelines through gst-launch-1.0"
        yield Check("OpenCV with GStreamer", "missing", "built without it", advice)


def opencv_of_jetpack(place: str) -> Check:
    """Check whether a wheel of pip, which has no GStreamer, hides JetPack's OpenCV."""
    name = "OpenCV of JetPack"
    if place.startswith("/usr/lib"):
        return Check(name, "ok", place)
    advice = (
        "pip uninstall opencv-python opencv-python-headless, sudo apt install python3-opencv, and "
        "use a virtual environment made with --system-site-packages"
    )
    return Check(name, "missing", f"another one is used: {place}", advice)


def check_engines() -> Iterable[Check]:
    """Check the builders, the driver, the GPUs, and whether an engine can run."""
    builders = available_builders()
    for builder in builders:
        yield _builder(builder)
    gpus, reason = _gpus()
    if gpus:
        driver = f"supports CUDA {gpus[0].driver_version}, through {gpus[0].binding}"
        yield Check("CUDA driver", "ok", driver)
        for gpu in gpus:
            yield _gpu(gpu)
    else:
        advice = "if there is a GPU, install its driver (a Jetson: JetPack)"
        yield Check("CUDA driver", "missing", reason, advice)
    yield kernel_compiler()
    yield _runtime(builders, bool(gpus))


def kernel_compiler() -> Check:
    """Check what compiles the GPU's kernels, and count the compiled images in the cache."""
    name = "compiler of the GPU's kernels"
    cache = compile.cache_folder()
    kept = f"{len(list(cache.glob('*')))} images kept in {cache}"
    found = [each.name for each in (compile.nvrtc(), compile.nvcc()) if each is not None]
    if found:
        return Check(name, "ok", f"{', '.join(found)}; {kept}")
    advice = 'pip install "edge-deploy[cuda]"; a Jetson gets it with JetPack (cuda-nvrtc)'
    return Check(name, "missing", f"neither NVRTC nor nvcc; {kept}", advice)


def _builder(builder: BuilderInfo) -> Check:
    name = f"builder {builder.name}"
    if builder.ok:
        return Check(name, "ok", ", ".join(filter(None, (builder.version, builder.reason))))
    extra = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}.get(builder.name)
    advice = f'pip install "edge-deploy[{extra}]"' if extra and not builder.version else ""
    return Check(name, "missing", builder.reason, advice)


def _gpus() -> tuple[list[Device], str]:
    """Every GPU, closed again, and the reason why there are no more."""
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
    advice = "run the .onnx beside the engine instead"
    return Check(name, "missing", f"needs {' and '.join(lacking)}", advice)
