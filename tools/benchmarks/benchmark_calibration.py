"""Memory and time of calibration by the number of images, each count in a process of its own.

    python tools/benchmarks/benchmark_calibration.py
    python tools/benchmarks/benchmark_calibration.py --peers     also onnxruntime's calibrators, \
        100 images,
                                                      and edge's time and memory beside Entropy's

onnxruntime's Entropy keeps every activation of every image: give --peer-images the largest count
that the machine's memory lets it survive (100 images of yolov3-tiny at 416 take 6 GB).
Peak memory is the child's ru_maxrss; what importing and loading alone take stands in the first row.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from apps.commands.terminal import Terminal, show
from edge.measure.host import fingerprint
from edge.reporting import listen, say

COUNTS = (50, 100, 200, 400)
MOST_MIB = 1024
# Peaks of the same work differ by some MiB from run to run; 350 more images that stayed would
# take 170 MiB as bytes and 690 MiB as network inputs.
GROWTH_MIB = 64
PEER_IMAGES = 100
# Of edge beside onnxruntime's Entropy on the same images.
MOST_TIME, MOST_MEMORY = 1 / 2, 1 / 10
PEERS = ("MinMax", "Entropy")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), metavar="N")
    parser.add_argument("--model", default="yolov3-tiny")
    parser.add_argument("--data", help="images; by default scenes of the built-in world")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", action="store_true", help="onnxruntime's calibrators too")
    parser.add_argument("--peer-images", type=int, default=PEER_IMAGES)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def source(data: str | None, count: int) -> str:
    return data or f"scenes://?seed=500000&count={max(count, 1)}"


def run(work: dict[str, Any]) -> dict[str, Any]:
    """Do `work` in a fresh process; its `seconds` and `peak_mib`, or why it failed."""
    command = [sys.executable, __file__, "--child", json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return {"failed": f"exit status {done.returncode}: {last[:200]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(work: dict[str, Any]) -> int:
    """One piece of work, in this process alone."""
    start = time.perf_counter()
    tasks = {"write": _write, "load": _load, "edge": _edge, "peer": _peer}
    tasks[work["task"]](work)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mib": peak_mib}))
    return 0


def _write(work: dict[str, Any]) -> None:
    from edge.models.zoo import load_model
    from export.graph.writer import write_onnx

    loaded = load_model(work["model"], random_weights=True)
    write_onnx(loaded.module, loaded.spec, work["onnx"], labels=loaded.labels)


def _load(work: dict[str, Any]) -> None:
    import onnx

    import calibration.scales  # noqa: F401
    from edge.runtime.backend_ort import OrtBackend

    onnx.load(work["onnx"])
    OrtBackend(Path(work["onnx"]), threads=work["threads"]).close()


def _edge(work: dict[str, Any]) -> None:
    from calibration.scales import measure_scales
    from edge.data.datasets import open_dataset

    dataset = open_dataset(work["data"], limit=work["images"])
    found = measure_scales(work["onnx"], dataset, threads=work["threads"])
    if found.used != work["images"]:
        raise SystemExit(f"{work['data']} holds {found.used} images, not {work['images']}")


def _peer(work: dict[str, Any]) -> None:
    from benchmark_int8 import Images
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    from edge.artifact import read_manifest

    manifest = read_manifest(work["onnx"])
    reader = Images(work["data"], work["images"], manifest.spec.contract, manifest.inputs[0].name)
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            work["onnx"],
            ["Conv"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[work["method"]],
        )
        calibrator.collect_data(reader)
        calibrator.compute_data()


def measure(options: argparse.Namespace, onnx: str) -> dict[str, dict[str, Any]]:
    """What each piece of work took, by its name."""
    common = {"model": options.model, "onnx": onnx, "threads": options.threads}
    failed = run({**common, "task": "write"}).get("failed")
    if failed:
        raise SystemExit(f"{options.model} cannot be written: {failed}")
    found = {"imports and model alone": run({**common, "task": "load"})}
    peers = [options.peer_images] if options.peers else []
    for count in sorted({*options.counts, *peers}):
        work = {**common, "task": "edge", "images": count, "data": source(options.data, count)}
        found[f"edge, {count} images"] = run(work)
    for method in PEERS if options.peers else ():
        count = options.peer_images
        work = {**common, "task": "peer", "method": method, "images": count}
        found[f"onnxruntime {method}, {count} images"] = run(
            {**work, "data": source(options.data, count)}
        )
    return found


def judge(found: dict[str, dict[str, Any]]) -> bool:
    """Whether every count stays below the limit, and all at one height."""
    ours = [one for name, one in found.items() if name.startswith("edge")]
    if any("failed" in one for one in ours):
        say("a calibration failed: MISSED")
        return False
    peaks: list[float] = [one["peak_mib"] for one in ours]
    growth = max(peaks) - min(peaks)
    low, flat = max(peaks) <= MOST_MIB, growth <= GROWTH_MIB
    say(f"peak {max(peaks):.0f} MiB, at most {MOST_MIB}: {'holds' if low else 'MISSED'}")
    say(f"spread {growth:.0f} MiB, at most {GROWTH_MIB}: {'holds' if flat else 'MISSED'}")
    return low and flat


def judge_peers(found: dict[str, dict[str, Any]], count: int) -> bool:
    """Whether edge takes so much less time and memory than onnxruntime's Entropy."""
    ours = found[f"edge, {count} images"]
    theirs = found[f"onnxruntime Entropy, {count} images"]
    if "failed" in ours or "failed" in theirs:
        say("nothing to compare: one of the two failed; try fewer --peer-images")
        return False
    held = True
    for what, key, most in (("time", "seconds", MOST_TIME), ("memory", "peak_mib", MOST_MEMORY)):
        ratio = ours[key] / theirs[key]
        held &= ratio <= most
        verdict = "holds" if ratio <= most else "MISSED"
        say(f"{what} beside onnxruntime Entropy: {ratio:.3f}, at most {most:g}: {verdict}")
    return held


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if options.child:
        return child(json.loads(options.child))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, str(Path(folder) / "model.onnx"))
    rows = [
        (name, one["failed"], "")
        if "failed" in one
        else (name, f"{one['peak_mib']:.0f}", f"{one['seconds']:.1f}")
        for name, one in found.items()
    ]
    title = f"calibrating {options.model}, {options.threads} threads, {fingerprint()['cpu']}"
    show(title, ("what", "peak MiB", "s"), rows)
    good = judge(found)
    if options.peers:
        good &= judge_peers(found, options.peer_images)
    return 0 if good else 1


if __name__ == "__main__":
    listen(Terminal())
    sys.exit(main())
