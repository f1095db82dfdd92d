"""The calls of a build for a DLA, in the builder's process, which only TensorRT to 10.7 has.

These releases take no Q/DQ graph on a DLA, so here alone precision is a flag, and the scales come
from a calibration cache through a calibrator that only reads. Newer releases have neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import BuildError
from export.engine.layer_report import DlaLayers
from export.engine.legacy_cache import cache_text
from export.engine.protocol import DlaScales

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
    builder: trt.Builder, config: trt.IBuilderConfig, scales: DlaScales
) -> trt.IInt8EntropyCalibrator2:
    """Set flags, core and scales, and return the calibrator, which must outlive the build.

    Raises:
        BuildError: there is no such DLA core.
    """
    import tensorrt as trt

    core, cores = scales.core, builder.num_DLA_cores
    if core >= cores:
        has = f"this machine has {cores}: 0 to {cores - 1}" if cores else "this machine has none"
        raise BuildError(f"no DLA core {core}; {has}; build for the GPU without --dla")
    cache = cache_text(scales.amax, trt.__version__).encode()
    Path(scales.cache).write_bytes(cache)
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
    network: trt.INetworkDefinition, config: trt.IBuilderConfig, scales: DlaScales
) -> DlaLayers:
    """Ask TensorRT, before the build, which layers cannot run on the DLA and lack scales."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    left = tuple(
        (layer.name, layer.type.name) for layer in layers if not config.can_run_on_DLA(layer)
    )
    tensors = [layer.get_output(index) for layer in layers for index in range(layer.num_outputs)]
    unscaled = tuple(tensor.name for tensor in tensors if tensor.name not in scales.amax)
    return DlaLayers(scales.core, left, len(layers), unscaled)


def explain(calibrator: Any, said: str) -> str:
    """Say why there is no engine: TensorRT asks for images where it does not take the cache."""
    if calibrator.asked:
        return f"TensorRT did not take the calibration cache and asked for images ({said})"
    return f"TensorRT built no engine for the DLA: {said}"
