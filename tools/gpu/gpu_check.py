"""What only a GPU can tell, written to one JSON: see tools/gpu/gpu_check.sh.

Every step is a process of its own with a limit of its own: what one lacks, breaks or hangs in is
written down, and the next one begins. The JSON is written anew after each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from edge.files import write_json
from edge.runtime.device import open_device

WHOLE_S = 560.0
LIMITS = {"copy_share": 0.6, "post_us": 60.0, "share_of_inference": 0.05}
PACKAGES = {"cuda-python": "cuda.bindings", "pycuda": "pycuda", "ctypes": "ctypes"}
# Kernels under compute-sanitizer are some ten times slower: each of them, on few cases.
SANITIZED = "odd_sizes or nms_of or decode or camera or rows or threads"


def facts() -> dict[str, Any]:
    names = ("name", "compute_capability", "integrated", "driver_version", "binding")
    with open_device(binding="ctypes") as device:
        return {name: getattr(device, name) for name in names}


def kernels() -> dict[str, Any]:
    from gpu_times import kernel_times

    with open_device(binding="ctypes") as device:
        return kernel_times(device)


def torch() -> dict[str, Any]:
    from gpu_engines import torch_inference

    return torch_inference()


def engine(precision: str) -> dict[str, Any]:
    from gpu_engines import engine as of

    return {"rows": of(precision)}


def trace() -> dict[str, Any]:
    from gpu_engines import trace as traced

    return traced()


def suite(binding: str) -> dict[str, Any]:
    """All tests marked `gpu`, with that binding."""
    _await_build()
    if not _there(PACKAGES[binding]):
        return {"skipped": f"{binding} is not installed"}
    command = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rs", "tests"]
    return tested([sys.executable, *command], EDGE_CUDA=binding)


def _there(package: str) -> bool:
    with suppress(ModuleNotFoundError):
        return importlib.util.find_spec(package) is not None
    return False


def _await_build() -> None:
    """tools/gpu/gpu_check.sh builds packages from source meanwhile; PyCUDA's step is the last."""
    builder = int(os.environ.get("BUILDING", "0"))
    while builder and not _there("pycuda") and Path(f"/proc/{builder}").is_dir():
        time.sleep(2)


def sanitized(tool: str) -> dict[str, Any]:
    """compute-sanitizer over the kernels: memcheck for addresses, racecheck for shared memory."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).is_file():
        return {"skipped": "compute-sanitizer is not installed"}
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest"]
    command += ["-m", "gpu", "-p", "no:cacheprovider", "-k", SANITIZED, "tests/test_ops_gpu.py"]
    return tested(command, EDGE_CUDA="ctypes")


def tested(command: list[str], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {"status": done.returncode, "last_lines": lines[-3 if done.returncode == 0 else -25 :]}


STEPS: dict[str, tuple[Callable[[], dict[str, Any]], float]] = {
    "device": (facts, 60),
    "kernels": (kernels, 90),
    "torch": (torch, 60),
    "tests cuda-python": (partial(suite, "cuda-python"), 90),
    "trace": (trace, 60),
    "engine fp32": (partial(engine, "fp32"), 60),
    "engine fp16": (partial(engine, "fp16"), 60),
    "engine int8": (partial(engine, "int8"), 90),
    "memcheck": (partial(sanitized, "memcheck"), 120),
    "racecheck": (partial(sanitized, "racecheck"), 90),
    "tests ctypes": (partial(suite, "ctypes"), 90),
    "tests pycuda": (partial(suite, "pycuda"), 150),
}
"""What each step is called, does, and how many seconds it may take; what matters most first."""


def run(step: str, limit_s: float) -> dict[str, Any]:
    """What that step says, or why it could not."""
    start = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, __file__, "--step", step],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complaint = child.communicate(timeout=limit_s)
        result = _answer(child.returncode, said, complaint)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # its own children, too
        child.communicate()
        result = {"error": f"not done after {limit_s:.0f} s"}
    return {**result, "took_s": round(time.monotonic() - start, 1)}


def _answer(status: int, said: str, complaint: str) -> dict[str, Any]:
    lines = said.strip().splitlines()
    with suppress(ValueError, IndexError):
        answer = json.loads(lines[-1])
        if status == 0 and isinstance(answer, dict):
            return answer
    last = (complaint.strip().splitlines() or ["no reason given"])[-1][:500]
    ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return {"error": f"{ended}: {last}"}


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """Which limits hold; None where a figure is missing."""
    times, torch_us = result.get("kernels", {}), result.get("torch", {}).get("p50_us")
    found: dict[str, Any] = dict.fromkeys(("preprocess", "postprocess", "whole", "trace"))
    if "preprocess" in times:
        large = [row for row in times["preprocess"] if row["frame_hw"][0] >= 1080]
        for key in ("share_of_copy_bandwidth", "share_of_copy_bandwidth_overlapping"):
            share = min(row[key] for row in large)
            judged = {"share": share, "ok": share >= LIMITS["copy_share"]}
            found["preprocess" + key.removeprefix("share_of_copy_bandwidth")] = judged
        post = next(row["p50_us"] for row in times["postprocess"] if row["candidates"] > 200)
        found["postprocess"] = {"p50_us": post, "ok": post <= LIMITS["post_us"]}
        if torch_us:
            share = times["whole"]["p50_us"] / torch_us
            found["whole"] = {"share": share, "ok": share <= LIMITS["share_of_inference"]}
    if "ok" in result.get("trace", {}):
        found["trace"] = {"ok": result["trace"]["ok"]}
    return {**found, "limits": LIMITS}


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--step"]:
        print(json.dumps(STEPS[arguments[1]][0]()))
        return 0
    target = Path(arguments[0] if arguments else "gpu_check.json")
    end = time.monotonic() + WHOLE_S
    result: dict[str, Any] = {}
    for step, (_, limit_s) in STEPS.items():
        left = end - time.monotonic()
        short = left < 10
        result[step] = {"skipped": "no time left"} if short else run(step, min(limit_s, left))
        result["verdict"] = verdict(result)
        write_json(result, target)
        summary = json.dumps(result[step])
        print(f"{step}: {summary if len(summary) < 600 else summary[:600] + ' ...'}", flush=True)
    print(json.dumps(result["verdict"], indent=1))
    return 0 if "name" in result["device"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
