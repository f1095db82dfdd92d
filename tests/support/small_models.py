"""Small networks for the tests of export and calibration, drawn from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg
from edge.models.initialise import initialise
from edge.spec import Manifest, ModelSpec
from export.graph.writer import write_onnx

# On busy cores a second thread of so small a network waits longer than it works.
torch.set_num_threads(1)

# Every way in which quantizers meet: leaky, a pool, a residual, a group, a concat, an upsample,
# two heads of which one reads a tensor that another convolution reads too.
CFG = """[net]
width=64
height=48
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=16
size=3
stride=1
pad=1
activation=leaky
[shortcut]
from=-2
activation=linear
[route]
layers=-1
groups=2
group_id=1
[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
groups=8
activation=relu
[route]
layers=-1,-3
[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=21
size=1
stride=1
pad=1
activation=linear
[yolo]
mask=0,1,2
anchors=10,14, 23,27, 37,58
classes=2
num=3
[route]
layers=-3
[convolutional]
batch_normalize=1
filters=8
size=1
stride=1
pad=1
activation=leaky
[upsample]
stride=2
[route]
layers=-1,4
[convolutional]
filters=21
size=1
stride=1
pad=1
activation=linear
[yolo]
mask=0,1,2
anchors=10,14, 23,27, 37,58
classes=2
num=3
"""


def small(cfg: str = CFG, seed: int = 0) -> tuple[Darknet, ModelSpec]:
    module = Darknet(parse_cfg(cfg, "small.cfg"))
    spec = module.spec("small", [f"class {i}" for i in range(module.classes)])
    initialise(module, spec, seed)
    return module.eval(), spec


def write_small(target: Path, cfg: str = CFG, seed: int = 0) -> Manifest:
    module, spec = small(cfg, seed)
    return write_onnx(module, spec, target)


def picture(hw: tuple[int, int], seed: int = 0, count: int = 1) -> np.ndarray:
    """(count, 3, *hw) float32 in 0..1: smooth patches rather than noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 3, -(-hw[0] // 8), -(-hw[1] // 8)), np.float32)
    fine = coarse.repeat(8, axis=2).repeat(8, axis=3)[..., : hw[0], : hw[1]]
    return np.clip(fine + rng.normal(0, 0.05, fine.shape), 0, 1).astype(np.float32)


def run(model: Any, image: np.ndarray, outputs: list[str] | None = None, **options: Any) -> list:
    """A `ModelProto`, bytes or file through onnxruntime, one thread; INT8 sums do not overflow."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    settings.add_session_config_entry("session.x64quantprecision", "1")
    for name, value in options.items():
        setattr(settings, name, value)
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    source = str(model) if isinstance(model, Path) else model
    session = ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    return session.run(outputs, {session.get_inputs()[0].name: image})


def decibel(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to noise: 20 dB is a tenth of the signal's root mean square."""
    noise = np.square(wanted.astype(float) - found.astype(float)).mean()
    return float(10 * np.log10(np.square(wanted.astype(float)).mean() / max(noise, 1e-30)))
