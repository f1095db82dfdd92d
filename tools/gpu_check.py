"""What only a GPU can tell, written to one JSON: see tools/gpu_check.sh.

Times are the GPU's own: a graph of many launches between two events, so that launching is not
measured. Frames are rotated through more memory than any cache holds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge.artifact import write_atomic
from edge.errors import EdgeError
from edge.letterbox import Letterbox
from edge.runtime.cuda_driver import BINDINGS
from edge.runtime.device import Device, open_device
from edge.runtime.ops_gpu import Decoder, Kernels, Preprocessor, Suppressor, taps
from edge.spec import HeadSpec, InputContract, ModelSpec

ROUNDS = 30
ROTATED_BYTES = 512 << 20
FRAMES = ((720, 1280), (1080, 1920), (2160, 3840))
CONTRACT = InputContract((416, 416))
# pjreddie's yolov3.cfg: three heads, 10 647 candidates of 85 numbers.
ANCHORS = (
    (13, ((116, 90), (156, 198), (373, 326))),
    (26, ((30, 61), (62, 45), (59, 119))),
    (52, ((10, 13), (16, 30), (33, 23))),
)
LIMITS = {"copy_share": 0.6, "post_us": 60.0, "share_of_inference": 0.05}


def spec() -> ModelSpec:
    heads = tuple(
        HeadSpec(f"head{side}", "yolo", (side, side), tuple(anchors)) for side, anchors in ANCHORS
    )
    return ModelSpec("yolov3", "darknet", tuple(map(str, range(80))), CONTRACT, heads)


def timed_us(kernels: Kernels, work: Callable[[int], None], count: int) -> dict[str, float]:
    """Microseconds of one of `count` calls of work(i), captured into one graph: median, p95."""
    device, stream = kernels.device, kernels.stream
    first, second = device.event(), device.event()
    with device.capture(stream) as graph:
        device.record(first, stream)
        for index in range(count):
            work(index)
        device.record(second, stream)
    times = []
    for _ in range(ROUNDS):
        device.replay(graph, stream)
        device.synchronize(stream)
        times.append(device.elapsed_ms(first, second) * 1e3 / count)
    for resource in (graph, first, second):
        resource.close()
    p50, p95 = np.percentile(times, (50, 95)).tolist()
    return {"p50_us": p50, "p95_us": p95}


def copy_bandwidth(kernels: Kernels) -> dict[str, Any]:
    """Bytes read and written a second by a copy on the device, in GB/s."""
    nbytes = ROTATED_BYTES // 2
    source, target = (kernels.device.allocate(nbytes) for _ in range(2))
    copy = lambda _: kernels.device.copy_async(target, source, kernels.stream)  # noqa: E731
    took = timed_us(kernels, copy, 4)
    for buffer in (source, target):
        buffer.close()
    return {"gb_s": 2 * nbytes / took["p50_us"] / 1e3, **took}


def touched_bytes(source_hw: tuple[int, int], contract: InputContract, itemsize: int) -> int:
    """The rows of the frame that a bilinear sample needs, and the whole tensor."""
    fit = Letterbox.fit(source_hw, contract)
    rows = np.unique(taps(source_hw[0], fit.resized_hw[0], rows=True)[:, :2])
    return len(rows) * source_hw[1] * 3 + 3 * contract.hw[0] * contract.hw[1] * itemsize


def preprocessing(kernels: Kernels, gb_s: float) -> list[dict[str, Any]]:
    rows = []
    for hw in FRAMES:
        count = max(2, min(64, ROTATED_BYTES // (hw[0] * hw[1] * 3)))
        frames = [kernels.device.allocate((*hw, 3)) for _ in range(count)]
        for dtype in ("float32", "float16"):
            prepare = Preprocessor(CONTRACT, kernels, dtype=dtype)
            prepare.place(hw)

            def work(index: int, frames: Any = frames, prepare: Any = prepare) -> None:
                prepare.enqueue_from(frames[index], pitch=frames[index].shape[1] * 3)

            took = timed_us(kernels, work, count)
            moved = touched_bytes(hw, CONTRACT, 4 if dtype == "float32" else 2)
            floor = moved / gb_s / 1e3
            share = floor / took["p50_us"]
            facts = {"frame_hw": hw, "dtype": dtype, "bytes": moved, "floor_us": floor}
            rows.append({**facts, **took, "share_of_copy_bandwidth": share})
            prepare.close()
            prepare.tensor.close()
        for frame in frames:
            frame.close()
    return rows


def postprocessing(kernels: Kernels) -> list[dict[str, Any]]:
    """Decoding and suppression of 10 647 x 85, for several numbers of candidates."""
    model, rng = spec(), np.random.default_rng(0)
    decode, suppress = Decoder(model, kernels), Suppressor(kernels)
    rows = []
    for candidates in (0, 30, 300, 3000, 10647):
        raw = []
        for head in model.heads:
            array = rng.normal(0, 1, (1, head.channels(80), *head.grid_hw)).astype(np.float32)
            planes = array.reshape(3, 85, -1)
            passes = rng.random((3, planes.shape[2])) < candidates / 10647
            planes[:, 4] = np.where(passes, 6, -9)
            planes[:, 5] = 6
            raw.append(kernels.upload(array))

        def work(_: int, raw: Any = raw) -> None:
            suppress.enqueue(decode.enqueue(raw, 0.25), 0.45)

        took = timed_us(kernels, work, 8)
        found = int(kernels.download(decode.candidates.count)[0])
        rows.append({"candidates": found, "boxes": len(suppress.collect()), **took})
        for buffer in raw:
            buffer.close()
    return rows


def torch_inference_us() -> dict[str, Any]:
    """yolov3-tiny, FP32 (TF32 off), 416 x 416, in torch on the same GPU."""
    import torch

    from edge.models.zoo import load_model

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    module = load_model("yolov3-tiny", random_weights=True).module.cuda().eval()
    images, times = torch.rand(1, 3, 416, 416, device="cuda"), []
    with torch.inference_mode():
        for _ in range(60):
            first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            module(images)
            second.record()
            torch.cuda.synchronize()
            times.append(first.elapsed_time(second) * 1e3)
    return {"p50_us": float(np.median(times[10:])), "torch": torch.__version__}


def engines(folder: Path) -> list[dict[str, Any]]:
    """Does an engine of TensorRT-RTX built for Ampere and Ada load here, and is it right?"""
    rows = []
    for precision in ("fp32", "fp16", "int8"):
        for targets in (("SM80", "SM86", "SM89"), ()):
            row: dict[str, Any] = {"precision": precision, "targets": targets}
            rows.append(row | attempt(partial(engine, folder, precision, targets)))
    return rows


def engine(folder: Path, precision: str, targets: tuple[str, ...]) -> dict[str, Any]:
    from apps.exporting import export_engine

    made = export_engine(
        precision=precision, builder="rtx", targets=targets, images=32, output=folder
    )
    return compare(Path(made["files"][precision]), Path(made["engine"]["file"]))


def compare(onnx: Path, plan: Path) -> dict[str, Any]:
    """The pipeline on the GPU beside onnxruntime on the CPU, on frames of the built-in world."""
    from apps.frames import hold_frames
    from edge.detections import iou_matrix
    from edge.runtime.detector import Detector

    frames, _ = hold_frames(None, 16)
    overlaps, differ, times = [], 0, []
    with Detector.open(plan) as gpu, Detector.open(onnx) as cpu:
        for frame in frames:
            ours, theirs = gpu(frame), cpu(frame)
            differ += abs(len(ours) - len(theirs))
            if len(ours) and len(theirs):
                overlaps += iou_matrix(theirs.xyxy, ours.xyxy).max(axis=1).tolist()
        for number in range(200):
            start = time.perf_counter()
            gpu(frames[number % len(frames)])
            times.append((time.perf_counter() - start) * 1e3)
        quantiles = np.percentile(times[20:], (50, 95)).tolist()
        layers = gpu.backend.layer_times(5)
        return {
            "loads": True,
            "backend": gpu.backend.name,
            "graph_refused": gpu.pipeline.graph,
            "boxes_more_or_less": differ,
            "median_iou": float(np.median(overlaps)) if overlaps else None,
            "pipeline_ms": dict(zip(("p50", "p95"), quantiles, strict=True)),
            "stages_ms": gpu.stages_ms,
            "slowest_layers_ms": sorted(layers, key=lambda each: -each[1])[:5],
        }


def suite(binding: str) -> dict[str, Any]:
    """All tests marked `gpu`, with that binding."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    return child(command, 120, EDGE_CUDA=binding)


def sanitizer() -> dict[str, Any]:
    """compute-sanitizer's memcheck over the kernels."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).is_file():
        return {"skipped": "compute-sanitizer is not installed"}
    chosen = "odd_sizes or nms_of or decode_of or camera"
    command = [program, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m"]
    command += ["pytest", "-m", "gpu", "-k", chosen, "tests/test_ops_gpu.py"]
    return child(command, 150, EDGE_CUDA="ctypes")


def child(command: list[str], timeout_s: float, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {"status": done.returncode, "last_lines": lines[-1 if done.returncode == 0 else -25 :]}


def attempt(work: Callable[[], Any]) -> dict[str, Any]:
    """What `work` returns, or why it could not: one missing piece must not hide the others."""
    start = time.perf_counter()
    try:
        result = work()
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:500]}
    rows = result if isinstance(result, dict) else {"rows": result}
    return {**rows, "took_s": round(time.perf_counter() - start, 2)}


def kernel_times(device: Device) -> dict[str, Any]:
    kernels = Kernels.load(device)
    copy = copy_bandwidth(kernels)
    return {
        "copy": copy,
        "preprocess": preprocessing(kernels, copy["gb_s"]),
        "postprocess": postprocessing(kernels),
    }


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """The issue's three figures, None where something was missing."""
    times, found = result["kernels"], dict.fromkeys(("preprocess", "postprocess", "whole"))
    if "error" in times:
        return {**found, "limits": LIMITS}
    large = [row for row in times["preprocess"] if row["frame_hw"][0] >= 1080]
    share = min(row["share_of_copy_bandwidth"] for row in large)
    post = next(row["p50_us"] for row in times["postprocess"] if row["candidates"] > 200)
    whole = max(row["p50_us"] for row in large) + post
    torch_us = result["torch"].get("p50_us")
    return {
        "preprocess": {"share_of_copy_bandwidth": share, "ok": share >= LIMITS["copy_share"]},
        "postprocess": {"p50_us": post, "ok": post <= LIMITS["post_us"]},
        "whole": torch_us
        and {"share": whole / torch_us, "ok": whole / torch_us <= LIMITS["share_of_inference"]},
        "limits": LIMITS,
    }


def facts(device: Device) -> dict[str, Any]:
    names = ("name", "compute_capability", "integrated", "driver_version", "binding")
    return {name: getattr(device, name) for name in names}


def main() -> int:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "gpu_check.json")
    result: dict[str, Any] = {}
    with open_device(binding="ctypes") as device:
        result["device"] = facts(device)
        result["kernels"] = attempt(lambda: kernel_times(device))
    result["torch"] = attempt(torch_inference_us)
    result["verdict"] = verdict(result)
    print(json.dumps(result["verdict"], indent=1))
    result["tests"] = {name: attempt(partial(suite, name)) for name in BINDINGS}
    result["sanitizer"] = attempt(sanitizer)
    write_atomic(target, json.dumps(result, indent=1).encode())
    with tempfile.TemporaryDirectory() as folder:
        result["engines"] = attempt(lambda: engines(Path(folder)))
    write_atomic(target, json.dumps(result, indent=1).encode())
    print(json.dumps({name: result[name] for name in ("tests", "sanitizer", "engines")}, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeError as error:
        sys.exit(f"gpu_check: {error}")
