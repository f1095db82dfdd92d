"""`edge demo` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.commands.options import count, threads_option
from apps.commands.terminal import show
from edge.artifact import read_manifest
from edge.data.datasets import FRESH_SEED
from edge.data.world.world import render
from edge.files import write_file, write_json
from edge.measure.bench import bench
from edge.measure.evaluate import evaluate
from edge.measure.host import fingerprint
from edge.reporting import say
from edge.runtime.detector import Detector
from edge.video.draw import draw
from export.engine.options import BuildOptions
from export.options import ExportOptions, Precision, SourceOptions
from export.pipeline import ExportResult, export_engine

__all__ = ["arguments", "demo", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge demo`."""
    parser.add_argument(
        "-o",
        "--output",
        default="out/demo",
        metavar="DIR",
        help="folder of the files (%(default)s)",
    )
    parser.add_argument(
        "--images", type=count, default=200, metavar="N", help="scenes to evaluate (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, metavar="N", help="of timing each (%(default)s)"
    )
    threads_option(parser, 2)


def run(args: argparse.Namespace) -> int:
    """`edge demo`: always 0; errors are raised."""
    demo(args.output, images=args.images, seconds=args.seconds, threads=args.threads)
    return 0


_BASELINE = "yolov3"
_PLAN: tuple[tuple[str, Precision], ...] = (
    ("tiny-yolo-scenes", "fp32"),
    ("tiny-yolo-scenes", "fp16"),
    ("tiny-yolo-scenes", "int8"),
    ("squeezedet-scenes", "int8"),
)


def demo(
    output: str | Path = "out/demo", *, images: int = 200, seconds: float = 4.0, threads: int = 2
) -> dict[str, Any]:
    """Export, evaluate and time the built-in detectors beside a full-size YOLOv3.

    The baseline has random weights: honest for speed, without an accuracy, labelled so.

    Args:
        output: folder of all files: `demo.json`, `detections.jpg`, graphs and engines.
        images: fresh scenes to evaluate on.
        seconds: of timing for each detector.
        threads: of the CPU backend.

    Returns:
        `host` and `rows`, as `demo.json` holds them.
    """
    folder = Path(output)
    exported = [_export(name, precision, folder) for name, precision in _PLAN]
    artifacts = [Path(one.files[one.precision]) for one in exported]
    say(f"writing {_BASELINE} at the same input size, with random weights")
    hw = read_manifest(artifacts[0]).spec.contract.hw
    options = ExportOptions(
        precision="fp32",
        model=SourceOptions(random_weights=True, hw=hw),
        build=BuildOptions(builder="none"),
        output=str(folder),
    )
    full = export_engine(_BASELINE, options)
    baseline = Path(full.files["fp32"])
    accuracy = [_accuracy(path, images, threads) for path in artifacts]
    timed = bench(artifacts, baseline, seconds=seconds, threads=threads)
    rows = [_row(timed["rows"][0], None, full)]
    rows += [
        _row(row, figures, one)
        for row, figures, one in zip(timed["rows"][1:], accuracy, exported, strict=True)
    ]
    result = {"host": fingerprint(), "scenes": images, "threads": threads, "rows": rows}
    write_json(result, folder / "demo.json")
    picture = _picture(artifacts[2], folder / "detections.jpg")
    _print(result)
    say(f"picture: {picture}   figures: {folder / 'demo.json'}")
    return result


def _export(name: str, precision: Precision, folder: Path) -> ExportResult:
    say(f"{name}: {precision}")
    return export_engine(name, ExportOptions(precision=precision, output=str(folder)))


def _accuracy(path: Path, images: int, threads: int) -> dict[str, Any]:
    say(f"evaluating {path.name} on {images} fresh scenes")
    return evaluate(path, f"scenes://?count={images}", threads=threads)


def _row(
    timed: dict[str, Any], accuracy: dict[str, Any] | None, exported: ExportResult
) -> dict[str, Any]:
    engine = None if exported.engine is None else exported.engine.to_json()
    return {
        **timed,
        "map50": None if accuracy is None else accuracy["map50"],
        "map_backend": None if accuracy is None else accuracy["backend"],
        "engine": engine,
    }


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


def _print(result: dict[str, Any]) -> None:
    columns = ("detector", "backend", "mAP@.5", "FPS engine", "FPS pipeline", "p99 ms", "MB")
    rows = []
    for row in result["rows"]:
        engine = row["engine"]
        rows.append(
            (
                row["label"],
                row["backend"],
                "-" if row["map50"] is None else f"{row['map50']:.3f}",
                f"{row['fps_engine']:.1f}",
                f"{row['fps_pipeline']:.1f}",
                f"{row['latency_ms']['p99']:.1f}",
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['speedup']:.1f}x",
                "-" if engine is None else f"{engine['bytes'] / 1e6:.2f}",
            )
        )
    host = result["host"]
    title = f"{host['cpu']}, {result['threads']} threads; mAP on {result['scenes']} fresh scenes"
    show(title, (*columns, "speed-up", "engine MB"), rows)
    built = next((r["engine"] for r in result["rows"] if r["engine"]), None)
    if built:
        say(f"engines: {built['builder']} {built['version']}; they run where their GPU is")
