"""What the app's loop keeps of the bare engine's frames a second, and how it does beside another's.

    python tools/benchmarks/benchmark_stream.py # share kept, frames held in memory
    python tools/benchmarks/benchmark_stream.py small.int8.onnx      # the same of given artifacts
    python tools/benchmarks/benchmark_stream.py --ultralytics \
        /path/to/venv-with-ultralytics/bin/python

Only ratios of neighbouring blocks count: bare engine, app, bare engine, and so on. With
--ultralytics its stream loop and `edge camera` read one 1280x720 file, each in a process of its
own, with one network of about 50 and one of about 10 milliseconds; the weights are the same, and
its copy of the graph ends in the reshape that its layout asks for. ultralytics is AGPL and is only
ever run as a separate program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.camera.app import camera
from apps.camera.options import CameraOptions
from apps.commands.terminal import show
from edge.built_in import BUILT_IN
from edge.measure.frames import hold_frames
from edge.measure.host import fingerprint
from edge.runtime.detector import Detector
from edge.video.frame import Frame, Source

SIDE, CLASSES, HW = 416, 79, (720, 1280)
KEPT_LIMIT = 0.97
# Milliseconds of the network: how many times as fast as ultralytics' loop.
STREAM_LIMITS = {50.0: 1.05, 10.0: 1.25}
WARM_UP = 5
ULTRALYTICS = """
import importlib.metadata, json, sys, time, types
asked = importlib.metadata.version
try:
    asked("torchvision")
except importlib.metadata.PackageNotFoundError:
    # It asks for the version (2.13 goes with 0.28) and for suppression where boxes are found: none.
    paired = "0.%d.0" % (15 + int(asked("torch").split(".")[1]))
    importlib.metadata.version = lambda name: paired if name == "torchvision" else asked(name)
    sys.modules["torchvision"] = types.ModuleType("torchvision")
from ultralytics import YOLO
graph, video, side, warm_up = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
count, boxes = 0, 0
options = dict(stream=True, imgsz=side, device="cpu", verbose=False, conf=0.25, iou=0.45)
for result in YOLO(graph, task="detect")(video, **options):
    count, boxes = count + 1, boxes + len(result.boxes)
    if count == warm_up:
        start = time.perf_counter()
fps = (count - warm_up) / (time.perf_counter() - start)
print(json.dumps({"fps": fps, "frames": count, "boxes": boxes}))
"""
EDGE = """
import json, sys
from apps.camera.app import camera
stats = camera(sys.argv[1], [sys.argv[2] + "?fast=1"])
boxes = sum(stats.detections.values())
print(json.dumps({"fps": stats.fps, "frames": stats.frames, "boxes": boxes}))
"""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifacts", nargs="*", type=Path, help="yolov3-tiny, built-in detectors")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--block", type=int, default=60, help="frames of a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the engine")
    parser.add_argument("--ultralytics", metavar="PYTHON", help="of an environment that has it")
    parser.add_argument("--frames", type=int, default=300, help="of the video file")
    return parser.parse_args(argv)


class Held(Source):
    """A source of frames in memory, as fast as they are taken."""

    name, live, fps, damaged, note = "held", False, None, 0, ""

    def __init__(self, frames: Sequence[NDArray[np.uint8]], count: int) -> None:
        self.frames, self.count, self.index = frames, count, 0

    def open(self) -> None: ...

    def close(self) -> None: ...

    def read(self) -> Frame | None:
        if self.index == self.count:
            return None
        self.index += 1
        image = self.frames[self.index % len(self.frames)]
        return Frame(image, time.monotonic(), self.index - 1)


def engine_fps(detector: Detector, count: int) -> float:
    tensor = np.zeros((1, 3, *detector.contract.hw), np.float32)
    detector.backend.run(tensor)
    start = time.perf_counter()
    for _ in range(count):
        detector.backend.run(tensor)
    return count / (time.perf_counter() - start)


def kept(artifact: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Shares by round: the app's frames a second by the mean of the bare engine's around it."""
    held = hold_frames(None, 8)[0]
    shares, fps = [], []
    with Detector.open(artifact, threads=options.threads) as detector:
        before = engine_fps(detector, options.block)
        for _ in range(options.rounds):
            source = Held(held, options.block)
            loop = camera(artifact, [source], CameraOptions(threads=options.threads)).fps
            after = engine_fps(detector, options.block)
            shares.append(loop / ((before + after) / 2))
            fps.append((after, loop))
            before = after
    return {"name": artifact.name, "shares": shares, "fps": np.median(fps, axis=0).tolist()}


def show_kept(rows: Sequence[dict[str, Any]]) -> None:
    show(
        f"{fingerprint()['cpu']}; share of the engine's FPS that the app keeps",
        ("artifact", "FPS engine", "FPS app", "share", "lowest", "highest"),
        [
            (row["name"], *(f"{one:.1f}" for one in row["fps"]), *_three(row["shares"]))
            for row in rows
        ],
    )


def _three(values: Sequence[float]) -> tuple[str, str, str]:
    return f"{np.median(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}"


def write_yolov3_tiny(folder: Path) -> Path:
    from export.options import SourceOptions
    from export.source import fp32_onnx

    return fp32_onnx("yolov3-tiny", folder, SourceOptions(random_weights=True)).path


def cfg(width: int) -> str:
    """A plain stack down to stride 8, with as many candidates as a small YOLO has."""
    text = f"[net]\nwidth={SIDE}\nheight={SIDE}\nchannels=3\n"
    layer = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize=3\nstride=1\npad=1\n"
    for step in range(5):
        text += layer.format(width * 2**step) + "activation=leaky\n"
        text += "[maxpool]\nsize=2\nstride=2\n" if step < 3 else ""
    text += f"[convolutional]\nfilters={5 + CLASSES}\nsize=1\nstride=1\npad=1\nactivation=linear\n"
    return text + f"[yolo]\nmask=0\nanchors=60,60\nclasses={CLASSES}\nnum=1\n"


def write_network(width: int, folder: Path) -> Path:
    import torch

    from edge.models.darknet import Darknet
    from edge.models.darknet_cfg import parse_cfg
    from edge.models.initialise import initialise
    from export.graph.writer import write_onnx

    module = Darknet(parse_cfg(cfg(width), "stream.cfg"))
    spec = module.spec("stream", [f"class {number}" for number in range(CLASSES)])
    initialise(module, spec, 0)
    with torch.no_grad():
        # Nobody shall find anything: ultralytics takes classes as they are, without a sigmoid.
        module.get_submodule(spec.heads[0].tensor).bias[4:] = -20.0
    write_onnx(module.eval(), spec, target := folder / f"stream-{width}.onnx")
    return target


def network_of(wanted_ms: float, threads: int, folder: Path) -> Path:
    """A network that takes about so long on this machine now."""
    width = 8
    for _ in range(3):
        path = write_network(width, folder)
        with Detector.open(path, threads=threads) as detector:
            engine_fps(detector, WARM_UP)
            taken_ms = 1e3 / engine_fps(detector, 30)
        width = max(2, round(width * (wanted_ms / taken_ms) ** 0.5))
    return path


def for_ultralytics(path: Path) -> Path:
    """The same network, (1, 4 + classes, candidates) at its end and its metadata beside it."""
    import onnx

    model = onnx.load(path)
    channels = 5 + CLASSES
    shape = onnx.numpy_helper.from_array(np.array([1, channels, -1], np.int64), "rows")
    model.graph.initializer.append(shape)
    raw = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Reshape", [raw, "rows"], ["output0"]))
    del model.graph.output[:]
    cells = (SIDE // 8) ** 2
    output = onnx.helper.make_tensor_value_info("output0", 1, [1, channels, cells])
    model.graph.output.append(output)
    names = {number: f"class {number}" for number in range(channels - 4)}
    facts = {"stride": 32, "task": "detect", "batch": 1, "imgsz": [SIDE, SIDE], "names": names}
    onnx.helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    onnx.save(model, target := path.with_name(f"{path.stem}-ultralytics.onnx"))
    return target


def write_video(target: Path, count: int) -> Path:
    from edge.data.world.world import SceneStream

    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(target), code, 30, (HW[1], HW[0]))
    for _, scene in zip(range(count), SceneStream(1, HW), strict=False):
        writer.write(scene.image)
    writer.release()
    return target


def stream(python: str, script: str, *words: object) -> dict[str, Any]:
    environment = {**os.environ, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    done = subprocess.run(
        [python, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{python}: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def beside(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    video, rows = write_video(folder / "drive.mp4", options.frames), []
    for wanted_ms in STREAM_LIMITS:
        path = network_of(wanted_ms, options.threads, folder)
        theirs = for_ultralytics(path)
        row: dict[str, Any] = {"ms": wanted_ms, "engine": [], "edge": [], "ultralytics": []}
        for number in range(max(2, options.rounds // 2)):
            with Detector.open(path, threads=options.threads) as detector:
                row["engine"].append(engine_fps(detector, 60))
            contestants = {
                "edge": (sys.executable, EDGE, path, video),
                "ultralytics": (options.ultralytics, ULTRALYTICS, theirs, video, SIDE, WARM_UP),
            }
            for name in list(contestants)[:: -1 if number % 2 else 1]:
                found = stream(*contestants[name])
                assert found["frames"] == options.frames and not found["boxes"], found
                row[name].append(found["fps"])
        row["ratios"] = [a / b for a, b in zip(row["edge"], row["ultralytics"], strict=True)]
        rows.append(row)
    return rows


def show_beside(rows: Sequence[dict[str, Any]]) -> None:
    show(
        "1280x720 file, same network; frames a second",
        ("network", "engine", "edge", "ultralytics", "ratio", "lowest", "highest", "aim"),
        [
            (
                f"{row['ms']:.0f} ms",
                *(f"{np.median(row[name]):.1f}" for name in ("engine", "edge", "ultralytics")),
                *_three(row["ratios"]),
                f"{STREAM_LIMITS[row['ms']]:.2f}",
            )
            for row in rows
        ],
    )


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.ultralytics:
            rows = beside(options, folder)
            show_beside(rows)
            return int(any(np.median(row["ratios"]) < STREAM_LIMITS[row["ms"]] for row in rows))
        artifacts = options.artifacts or [write_yolov3_tiny(folder), *BUILT_IN.values()]
        shares = [kept(artifact, options) for artifact in artifacts]
        show_kept(shares)
        return int(np.median(shares[0]["shares"]) < KEPT_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
