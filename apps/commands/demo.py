"""`edge demo` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.commands.options import add_options, read_options
from apps.commands.terminal import show
from edge.artifact import read_manifest
from edge.data.datasets import FRESH_SEED
from edge.data.world.world import render
from edge.files import write_file, write_json
from edge.measure.bench import BenchOptions, BenchRow, bench
from edge.measure.evaluate import EvaluateOptions, EvaluateResult, evaluate
from edge.measure.host import fingerprint
from edge.options import count, option, positive
from edge.reporting import say
from edge.runtime.detector import Detector
from edge.video.draw import draw
from export.engine.build import EngineFacts
from export.engine.options import BuildOptions
from export.options import ExportOptions, Precision, SourceOptions
from export.pipeline import ExportResult, export_engine

__all__ = ["DemoOptions", "DemoResult", "DemoRow", "arguments", "demo", "run"]


@dataclass(frozen=True)
class DemoOptions:
    """How long the demonstration measures, and where it writes.

    Attributes:
        output: folder of the files: graphs, engines, `demo.json` and `detections.jpg`
        images: evaluate on N fresh scenes
        seconds: time each detector for N seconds
        threads: CPU threads of onnxruntime
    """

    output: str | Path = option("out/demo", flag="-o --output", metavar="DIR")
    images: int = option(200, metavar="N", check=count)
    seconds: float = option(4.0, metavar="N", check=positive)
    threads: int = option(2, metavar="N", check=count)


@dataclass(frozen=True)
class DemoRow:
    """One detector: what `bench` measured, its accuracy, and its engine where one was built.

    Attributes:
        map50, map_backend: None of the baseline, whose weights are random.
    """

    timed: BenchRow
    map50: float | None
    map_backend: str | None
    engine: EngineFacts | None

    def to_json(self) -> dict[str, Any]:
        """JSON values: the figures of `bench` and, beside them, the others."""
        own = {"map50": self.map50, "map_backend": self.map_backend, "engine": self.engine}
        return {**self.timed.to_json(), **own}


@dataclass(frozen=True)
class DemoResult:
    """What `demo.json` holds."""

    host: dict[str, Any]
    scenes: int
    threads: int
    rows: tuple[DemoRow, ...]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge demo`."""
    add_options(parser, DemoOptions)


def run(args: argparse.Namespace) -> int:
    """`edge demo`: always 0; errors are raised."""
    demo(read_options(args, DemoOptions))
    return 0


_BASELINE = "yolov3"
_PLAN: tuple[tuple[str, Precision], ...] = (
    ("tiny-yolo-scenes", "fp32"),
    ("tiny-yolo-scenes", "fp16"),
    ("tiny-yolo-scenes", "int8"),
    ("squeezedet-scenes", "int8"),
)


def demo(options: DemoOptions) -> DemoResult:
    """Export, evaluate and time the built-in detectors beside a full-size YOLOv3, and print them.

    The baseline has random weights: honest for speed, without an accuracy, labelled so.
    """
    folder = Path(options.output)
    exported = [_export(name, precision, folder) for name, precision in _PLAN]
    artifacts = [Path(one.files[one.precision]) for one in exported]
    say(f"writing {_BASELINE} at the same input size, with random weights")
    hw = read_manifest(artifacts[0]).spec.contract.hw
    exporting = ExportOptions(
        precision="fp32",
        model=SourceOptions(random_weights=True, hw=hw),
        build=BuildOptions(builder="none"),
        output=str(folder),
    )
    full = export_engine(_BASELINE, exporting)
    baseline = Path(full.files["fp32"])
    accuracy = [_accuracy(path, options) for path in artifacts]
    timed = bench(
        artifacts,
        BenchOptions(baseline=baseline, seconds=options.seconds, threads=options.threads),
    )
    rows = [DemoRow(timed.rows[0], None, None, full.engine)]
    rows += [
        DemoRow(row, found.map50, found.backend, one.engine)
        for row, found, one in zip(timed.rows[1:], accuracy, exported, strict=True)
    ]
    result = DemoResult(fingerprint(), options.images, options.threads, tuple(rows))
    write_json(result, folder / "demo.json")
    picture = _picture(artifacts[2], folder / "detections.jpg")
    _print(result)
    say(f"picture: {picture}   figures: {folder / 'demo.json'}")
    return result


def _export(name: str, precision: Precision, folder: Path) -> ExportResult:
    say(f"{name}: {precision}")
    return export_engine(name, ExportOptions(precision=precision, output=str(folder)))


def _accuracy(path: Path, options: DemoOptions) -> EvaluateResult:
    say(f"evaluating {path.name} on {options.images} fresh scenes")
    scenes = f"scenes://?count={options.images}"
    return evaluate(path, scenes, EvaluateOptions(threads=options.threads))


def _picture(artifact: Path, target: Path) -> Path:
    """Detections of the INT8 Tiny-YOLO on four fresh scenes, drawn, two by two."""
    tiles: list[NDArray[np.uint8]] = []
    with Detector.open(artifact, score=0.4) as detector:
        for seed in range(FRESH_SEED, FRESH_SEED + 4):
            frame = render(seed, hw=(540, 960)).image
            tiles.append(draw(frame, detector(frame), detector.spec.classes))
    sheet = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
    done, encoded = cv2.imencode(".jpg", sheet)
    if done:
        write_file(target, encoded.tobytes())
    return target


def _print(result: DemoResult) -> None:
    columns = ("detector", "backend", "mAP@.5", "FPS engine", "FPS pipeline", "p99 ms", "MB")
    rows = [
        (
            row.timed.label,
            row.timed.backend,
            "-" if row.map50 is None else f"{row.map50:.3f}",
            f"{row.timed.fps_engine:.1f}",
            f"{row.timed.fps_pipeline:.1f}",
            f"{row.timed.latency_ms['p99']:.1f}",
            f"{row.timed.bytes / 1e6:.2f}",
            f"{row.timed.speedup:.1f}x",
            "-" if row.engine is None else f"{row.engine.bytes / 1e6:.2f}",
        )
        for row in result.rows
    ]
    title = f"{result.host['cpu']}, {result.threads} threads; mAP on {result.scenes} fresh scenes"
    show(title, (*columns, "speed-up", "engine MB"), rows)
    built = next((row.engine for row in result.rows if row.engine), None)
    if built:
        say(f"engines: {built.builder} {built.version}; they run where their GPU is")
