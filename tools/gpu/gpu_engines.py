"""Networks on a GPU: torch, engines of TensorRT-RTX, a trace; a part of tools/gpu/gpu_check.py."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["TARGETS", "engine", "torch_inference", "trace"]

TARGETS = (("SM80", "SM86", "SM89"), (), ("SM90",))
"""What engines are built for; () is Ampere and later. TensorRT-RTX 1.7 has no SM90, and says so."""


def torch_inference() -> dict[str, Any]:
    """yolov3-tiny, FP32 (TF32 off), 416 x 416, in torch: microseconds between two events."""
    import torch

    from edge.models.zoo import load_model

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    module = load_model("yolov3-tiny", random_weights=True).module.cuda().eval()
    images, times = torch.rand(1, 3, 416, 416, device="cuda"), {}
    with torch.inference_mode():
        for name, tuned in (("p50_us", False), ("p50_us_cudnn_benchmark", True)):
            torch.backends.cudnn.benchmark = tuned
            times[name] = float(np.median([_event_us(module, images) for _ in range(60)][10:]))
    return {**times, "torch": torch.__version__}


def _event_us(module: Any, images: Any) -> float:
    import torch

    first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    module(images)
    second.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(second)) * 1e3


def engine(precision: str) -> list[dict[str, Any]]:
    """Does an engine of TensorRT-RTX for each of TARGETS load here, and is it right and fast?"""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for targets in TARGETS:
            row: dict[str, Any] = {"precision": precision, "targets": targets}
            try:
                onnx, plan = _built(precision, targets, Path(folder) / "-".join(("t", *targets)))
                row |= {"built": True} | _compare(onnx, plan)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:500]
            rows.append(row)
    return rows


def _built(precision: str, targets: tuple[str, ...], folder: Path) -> tuple[Path, Path]:
    from calibration.recipe import CalibrationRecipe
    from export.engine.options import BuildOptions
    from export.options import ExportOptions
    from export.pipeline import export_engine

    options = ExportOptions(
        precision=precision,
        recipe=CalibrationRecipe(images=32),
        build=BuildOptions(builder="rtx", targets=targets),
        verdict=False,
        output=str(folder),
    )
    made = export_engine(options=options)
    if made.engine is None:
        raise RuntimeError(made.reason)
    return made.files[precision], Path(made.engine.file)


def _compare(onnx: Path, plan: Path) -> dict[str, Any]:
    """The pipeline on the GPU beside onnxruntime on the CPU, on frames of the built-in world."""
    from edge.detections import iou_matrix
    from edge.measure.frames import hold_frames
    from edge.runtime.detector import Detector

    frames, _ = hold_frames(None, 16)
    overlaps, differ, boxes = [], 0, 0
    with Detector.open(plan) as gpu, Detector.open(onnx) as cpu:
        for frame in frames:
            ours, theirs = gpu(frame), cpu(frame)
            differ += abs(len(ours) - len(theirs))
            boxes += len(theirs)
            if len(ours) and len(theirs):
                overlaps += iou_matrix(theirs.xyxy, ours.xyxy).max(axis=1).tolist()
        p50, p95 = _times_ms(lambda number: gpu(frames[number % len(frames)]), 200)
        layers = gpu.backend.layer_times(5)
        return {
            "loads": True,
            "backend": gpu.backend.name,
            "graph_refused": gpu.pipeline.graph,
            "boxes": boxes,
            "boxes_more_or_less": differ,
            "median_iou": float(np.median(overlaps)) if overlaps else None,
            "pipeline_ms": {"p50": p50, "p95": p95},
            "stages_ms": gpu.stages_ms,
            "slowest_layers_ms": sorted(layers, key=lambda each: -each[1])[:5],
        }


def _times_ms(work: Callable[[int], Any], count: int) -> tuple[float, float]:
    times = []
    for number in range(count):
        start = time.perf_counter()
        work(number)
        times.append((time.perf_counter() - start) * 1e3)
    p50, p95 = np.percentile(times[20:], (50, 95)).tolist()
    return p50, p95


def trace() -> dict[str, Any]:
    """What the GPU did for three frames, told by torch's profiler: kernels and copies in order.

    With TensorRT-RTX the whole pipeline on an engine, else the stages around it alone.
    """
    from edge.runtime.device import open_device

    with tempfile.TemporaryDirectory() as folder:
        try:
            from edge.runtime.detector import Detector

            _, plan = _built("fp32", (), Path(folder))
            detect: Any = Detector.open(plan)
            frame = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
            with detect:
                return {"of": detect.backend.name, **_traced(lambda: detect(frame))}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:300]
        with open_device() as device:
            return {"of": f"stages without an engine ({reason})", **_traced(_stages(device))}


def _stages(device: Any) -> Callable[[], Any]:
    from gpu_times import CONTRACT, raw_heads, spec

    from edge.runtime.ops_gpu import Decoder, Kernels, Preprocessor, Suppressor

    kernels, model = Kernels.load(device), spec("yolov3-tiny")
    raw = [kernels.upload(array) for array in raw_heads(model, 40)]
    prepare, decode = Preprocessor(CONTRACT, kernels), Decoder(model, kernels, raw=raw)
    suppress = Suppressor(kernels)
    prepare.place((720, 1280))

    def work() -> Any:
        prepare.enqueue()
        suppress.enqueue(decode.enqueue(0.25), 0.45)
        device.synchronize(kernels.stream)
        return suppress.collect()

    return work


def _traced(work: Callable[[], Any], frames: int = 3) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):  # tables, compilation and the graph's capture lie before
        work()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(frames):
            work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return judged(json.loads(path.read_text())["traceEvents"], frames)


def judged(events: list[dict[str, Any]], frames: int) -> dict[str, Any]:
    """Is each frame one copy to the device, work, and one copy back, with none between?"""
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    work = sorted(
        (each for each in events if each.get("cat") in kinds), key=lambda each: each["ts"]
    )
    names = [each["name"] for each in work]
    between = [name for name in names if name.startswith("Memcpy") and "DtoD" not in name]
    up = [index for index, name in enumerate(names) if "HtoD" in name]
    down = [index for index, name in enumerate(names) if "DtoH" in name]
    apart = all(
        names.index("letterbox_bgr_float32", first) < last
        for first, last in zip(up, down, strict=False)
        if "letterbox_bgr_float32" in names
    )
    in_turn = [place for pair in zip(up, down, strict=False) for place in pair]
    ok = len(up) == len(down) == frames and in_turn == sorted(in_turn) and apart
    return {
        "ok": ok and names.count("letterbox_bgr_float32") == frames,
        "host_copies": len(between),
        "frames": frames,
        "last_frame": names[up[-1] :] if up else names[-40:],
    }
