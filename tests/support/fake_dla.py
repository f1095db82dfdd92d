"""A module `tensorrt` that builds for a DLA as far as flags, scales and calls go; no GPU in it.

Copied to a folder as `tensorrt.py`. What the builder was told is the plan that it gives. Layers are
the nodes of the ONNX file; a Resize cannot run on the DLA. `FAKE_TRT` in the environment: JSON that
replaces values below.
"""

from __future__ import annotations

import json
import os
from enum import IntEnum
from typing import Any

_SET = {"version": "10.3.0", "cores": 2, "takes_cache": True, **json.loads(os.environ["FAKE_TRT"])}
__version__ = _SET["version"]


class BuilderFlag(IntEnum):
    FP16, INT8, GPU_FALLBACK = 0, 1, 4


class DeviceType(IntEnum):
    GPU, DLA = range(2)


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class ProfilingVerbosity(IntEnum):
    DETAILED = 2


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)


class LayerType(IntEnum):
    CONVOLUTION, DECONVOLUTION, RESIZE, OTHER = range(4)


class LayerInformationFormat(IntEnum):
    JSON = 1


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


class IInt8EntropyCalibrator2:
    started = False

    def __init__(self) -> None:
        self.started = True


class _Tensor:
    def __init__(self, name: str) -> None:
        self.name = name


class _Layer:
    num_outputs = 1
    metadata = ""

    def __init__(self, node: Any) -> None:
        self.name, self.output = node.name, _Tensor(node.output[0])
        kinds = {"Conv": LayerType.CONVOLUTION, "Resize": LayerType.RESIZE}
        self.type = kinds.get(node.op_type, LayerType.OTHER)

    def get_output(self, index: int) -> _Tensor:
        assert index == 0
        return self.output


class _Network:
    num_outputs = 2

    def __init__(self, flags: int) -> None:
        self.flags, self.layers = flags, []  # type: ignore[var-annotated]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]


class OnnxParser:
    def __init__(self, network: _Network, logger: ILogger) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        import onnx

        model = onnx.load(path)
        self.network.layers = [_Layer(node) for node in model.graph.node]
        self.network.weights = {  # type: ignore[attr-defined]
            i.name: onnx.numpy_helper.to_array(i).ravel()[:4].tolist()
            for i in model.graph.initializer
            if i.name.endswith(".bias")
        }
        return True


class _Config:
    int8_calibrator: Any = None
    default_device_type = DeviceType.GPU
    DLA_core = -1

    def __init__(self) -> None:
        self.flags: list[str] = []

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        assert size > 0

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.append(flag.name)

    def can_run_on_DLA(self, layer: _Layer) -> bool:  # noqa: N802
        assert self.default_device_type == DeviceType.DLA, "asked before the device was set"
        return layer.type != LayerType.RESIZE


class Builder:
    num_DLA_cores = _SET["cores"]  # noqa: N815

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        calibrator = config.int8_calibrator
        assert calibrator.started and calibrator.get_batch_size() == 1
        cache = calibrator.read_calibration_cache().decode()
        calibrator.write_calibration_cache(b"another")
        if not _SET["takes_cache"]:
            assert not calibrator.get_batch(["images"])
            self.logger.log(ILogger.Severity.ERROR, "no scaling factors detected")
            return None
        told = {
            "network": network.flags,
            "flags": config.flags,
            "device": config.default_device_type.name,
            "core": config.DLA_core,
            "cache": cache,
            "biases": network.weights,  # type: ignore[attr-defined]
        }
        self.logger.log(ILogger.Severity.VERBOSE, "Layers:\nName: a, LayerType: DLA, Inputs: []")
        return json.dumps(told).encode()
