"""INT8 beside FP32 and beside onnxruntime's own static quantization, as ratios of one run.

    python tools/benchmarks/benchmark_int8.py

Weights are random: they do not change what a layer costs. onnxruntime's quantizer gets the same
FP32 graph and the same images, once as it comes and once with weights per channel.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from interleave import medians_ms
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from apps.commands.terminal import Terminal, show
from calibration.scales import measure_scales
from edge.data.datasets import load, open_dataset
from edge.measure.frames import hold_frames
from edge.measure.host import fingerprint
from edge.models.zoo import load_model
from edge.reporting import listen, say
from edge.runtime.backend_ort import OrtBackend
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import preprocess
from edge.spec import InputContract
from export.graph.writer import write_onnx
from export.int8.quantize import write_int8

MODELS = ("yolov3-tiny", "yolov4-tiny", "squeezedet-kitti")
FP32, INT8, DEFAULT, CHANNEL = "FP32", "INT8, edge", "INT8, ort default", "INT8, ort per channel"
# Demanded of yolov3-tiny alone; slim nets with leaky activations gain little on a CPU.
JUDGED, LEAST_SPEEDUP, LEAST_PIPELINE = "yolov3-tiny", 1.6, 0.95
# Two runs of one graph differ by about so much.
NOISE = 1.02
Calls = dict[str, Callable[[], Any]]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block", type=int, default=10, help="calls of each in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=8, help="for calibration")
    parser.add_argument("--data", help="for calibration; by default scenes of the built-in world")
    return parser.parse_args(argv)


class Images(CalibrationDataReader):
    """The calibration images as onnxruntime's calibrators take them: `get_next` until None."""

    def __init__(self, data: str, count: int, contract: InputContract, name: str) -> None:
        self._feeds = self._read(data, count, contract, name)

    @staticmethod
    def _read(
        data: str, count: int, contract: InputContract, name: str
    ) -> Iterator[dict[str, Any]]:
        for item in open_dataset(data, limit=count).items:
            yield {name: preprocess(load(item)[0], contract)[0]}

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def write_all(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The model as FP32, as our INT8 and as onnxruntime's two; paths by label."""
    data = options.data or f"scenes://?seed=500000&count={options.images}"
    paths = {label: folder / f"{name}-{i}.onnx" for i, label in enumerate((FP32, INT8))}
    loaded = load_model(name, random_weights=True)
    manifest = write_onnx(loaded.module, loaded.spec, paths[FP32], labels=loaded.labels)
    dataset = open_dataset(data, limit=options.images)
    table = measure_scales(paths[FP32], dataset, threads=options.threads).table
    write_int8(paths[FP32], table, paths[INT8])
    prepared = folder / f"{name}-prepared.onnx"
    quant_pre_process(str(paths[FP32]), str(prepared), skip_symbolic_shape=True)
    for label, per_channel in ((DEFAULT, False), (CHANNEL, True)):
        paths[label] = folder / f"{name}-ort-{per_channel}.onnx"
        feed = Images(data, options.images, loaded.spec.contract, manifest.inputs[0].name)
        quantize_static(str(prepared), str(paths[label]), feed, per_channel=per_channel)
    return paths


def engines(paths: dict[str, Path], threads: int, stack: ExitStack) -> Calls:
    """One frame through each network; the input is the same random picture."""
    ours = {
        label: stack.enter_context(OrtBackend(paths[label], threads=threads))
        for label in (FP32, INT8)
    }
    shape = ours[FP32].manifest.inputs[0].shape
    tensor = np.random.default_rng(0).random(shape, np.float32)
    calls: Calls = {
        label: lambda backend=backend: backend.run(tensor)  # type: ignore[misc]
        for label, backend in ours.items()
    }
    for label in (DEFAULT, CHANNEL):
        session = _session(paths[label], threads)
        feed = {session.get_inputs()[0].name: tensor}
        calls[label] = lambda session=session, feed=feed: session.run(None, feed)  # type: ignore[misc]
    return calls


def _session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare_engines(name: str, paths: dict[str, Path], options: argparse.Namespace) -> bool:
    """Print what each costs, and tell whether the limits hold."""
    with ExitStack() as stack:
        calls = engines(paths, options.threads, stack)
        found = medians_ms(calls, options.rounds, options.block)
    rows = [
        (label, f"{ms:.2f}", f"{found[FP32] / ms:.2f}x", f"{paths[label].stat().st_size / 1e6:.1f}")
        for label, ms in found.items()
    ]
    show(f"{name}, random weights", ("graph", "ms", "speed-up over FP32", "MB"), rows)
    speedup = found[FP32] / found[INT8]
    best = min(found[DEFAULT], found[CHANNEL])
    say(f"INT8 of edge takes {found[INT8] / best:.2f} of onnxruntime's faster INT8")
    if name != JUDGED:
        return True
    well = _judge(f"INT8 over FP32, {name}", speedup, LEAST_SPEEDUP)
    return _judge("speed beside onnxruntime's INT8", best / found[INT8] * NOISE, 1.0) and well


def compare_pipeline(name: str, paths: dict[str, Path], options: argparse.Namespace) -> bool:
    """Frames a second of the whole pipeline as a share of the engine's alone."""
    frame = hold_frames(None, 1)[0][0]
    well = True
    for label in (FP32, INT8):
        with Detector.open(paths[label], threads=options.threads) as detector:
            tensor, _ = preprocess(frame, detector.contract)
            calls: Calls = {
                "engine": lambda run=detector.backend.run, tensor=tensor: run(tensor),  # type: ignore[misc]
                "pipeline": lambda detector=detector: detector(frame),  # type: ignore[misc]
            }
            found = medians_ms(calls, options.rounds, options.block)
            stages = ", ".join(f"{key} {ms:.2f}" for key, ms in detector.stages_ms.items())
        share = found["engine"] / found["pipeline"]
        title = f"{name} {label}, pipeline over engine (last frame: {stages} ms)"
        judged = name == JUDGED and label == FP32
        well &= _judge(title, share, LEAST_PIPELINE if judged else None)
    return well


def _judge(what: str, ratio: float, least: float | None) -> bool:
    holds = least is None or ratio >= least
    verdict = "" if least is None else f", at least {least}: {'holds' if holds else 'MISSED'}"
    say(f"{what}: {ratio:.3f}{verdict}")
    return holds


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    logging.disable(logging.WARNING)  # onnxruntime's quantizer advises on every call
    cv2.setNumThreads(options.threads)
    say(f"{fingerprint()['cpu']}, {options.threads} threads, onnxruntime {onnxruntime.__version__}")
    well = True
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_all(name, Path(folder), options)
            well &= compare_engines(name, paths, options)
            well &= compare_pipeline(name, paths, options)
    return 0 if well else 1


if __name__ == "__main__":
    listen(Terminal())
    sys.exit(main())
