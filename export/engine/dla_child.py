"""What a build for the DLA needs in the builder's process: TensorRT 10.3 to 10.7 and nothing else.

These releases take no Q/DQ graph on a DLA, so here alone precision is a flag, and the scales come
from a calibration cache through a calibrator that only reads. Newer releases have neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import BuildError
from export.engine.legacy_cache import cache_text

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["ask_for_dla", "check_release", "explain", "what_stays"]

_LAST = (10, 7)


def check_release(name: str, version: str) -> None:
    """Refuse a library that cannot build for a DLA from calibrated scales.

    Raises:
        BuildError: says which release can.
    """
    if name != "tensorrt":
        raise BuildError(
            "TensorRT-RTX has no DLA; build on the Jetson with its own TensorRT (JetPack 6: 10.3): "
            "--builder tensorrt"
        )
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) > _LAST:
        raise BuildError(
            f"TensorRT {version} has no DLA that takes calibrated scales; 10.7 is the last "
            "(JetPack 6 has 10.3): build there, or for the GPU without --dla"
        )


def ask_for_dla(
    builder: trt.Builder, config: trt.IBuilderConfig, request: dict[str, Any]
) -> trt.IInt8EntropyCalibrator2:
    """Set flags, core and scales; the calibrator, which must outlive the build.

    Args:
        request: `core`, `amax` by tensor, and `cache`, the file to leave the scales in.

    Raises:
        BuildError: there is no such DLA core.
    """
    import tensorrt as trt

    core, cores = int(request["core"]), builder.num_DLA_cores
    if core >= cores:
        has = f"this machine has {cores}: 0 to {cores - 1}" if cores else "this machine has none"
        raise BuildError(f"no DLA core {core}; {has}; build for the GPU without --dla")
    cache = cache_text(request["amax"], trt.__version__).encode()
    Path(request["cache"]).write_bytes(cache)
    calibrator = _calibrator(cache)
    # A DLA computes in INT8 or FP16; what it cannot do falls to the GPU in either.
    for flag in (trt.BuilderFlag.INT8, trt.BuilderFlag.FP16, trt.BuilderFlag.GPU_FALLBACK):
        config.set_flag(flag)
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.int8_calibrator = calibrator
    return calibrator


def _calibrator(cache: bytes) -> trt.IInt8EntropyCalibrator2:
    """One that has this cache and no images."""
    import tensorrt as trt

    class Calibrator(trt.IInt8EntropyCalibrator2):
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self.asked = False

        def get_batch_size(self: Any) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> list[int]:
            self.asked = True
            return []

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: Any) -> None:
            """The table that the cache was made from is what is kept."""

    return Calibrator()


def what_stays(
    network: trt.INetworkDefinition, config: trt.IBuilderConfig, request: dict[str, Any]
) -> dict[str, Any]:
    """What TensorRT says before the build: layers that cannot go to the DLA, and missing scales.

    Returns:
        `core`, `left` (name and type of each layer that the GPU takes), `layers` in all, and
        `unscaled`, the tensors without a scale, which no INT8 layer can read or write.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    left = [(layer.name, layer.type.name) for layer in layers if not config.can_run_on_DLA(layer)]
    tensors = [layer.get_output(index) for layer in layers for index in range(layer.num_outputs)]
    unscaled = [tensor.name for tensor in tensors if tensor.name not in request["amax"]]
    return {"core": request["core"], "left": left, "layers": len(layers), "unscaled": unscaled}


def explain(calibrator: Any, said: str) -> str:
    """Why there is no engine, in words: a cache that is not taken makes TensorRT ask for images."""
    if calibrator.asked:
        return f"TensorRT did not take the calibration cache and asked for images ({said})"
    return f"TensorRT built no engine for the DLA: {said}"
