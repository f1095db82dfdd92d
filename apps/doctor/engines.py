"""What builds and runs engines, for `edge doctor`."""

from __future__ import annotations

from collections.abc import Iterable

from apps.doctor.check import Check
from edge.errors import DeviceError
from edge.runtime import compile
from edge.runtime.device import Device, open_device
from export.engine.build import BuilderInfo, available_builders

__all__ = ["check_engines", "kernel_compiler"]


def check_engines() -> Iterable[Check]:
    """Builders, driver, GPUs, and whether an engine can run."""
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
    yield kernel_compiler()
    yield _runtime(builders, bool(gpus))


def kernel_compiler() -> Check:
    """What compiles the kernels of the GPU path, and the images kept of them."""
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
