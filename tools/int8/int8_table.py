#!/usr/bin/env python3
"""mAP of INT8 by each recipe, ours and onnxruntime's own, on images that no recipe has seen.

    python tools/int8/int8_table.py --model yolo.cfg --names x.names --calib photos/ --data \
        labelled/

Prints one table and, with --json, writes it. onnxruntime's graphs run on onnxruntime as its own
documentation says (quant_pre_process, then quantize_static with QDQ and weights per channel).
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.commands.terminal import Terminal, show
from calibration.pipeline import calibrate
from calibration.recipe import CalibrationRecipe
from calibration.scales import network_inputs
from calibration.threshold import METHODS
from edge.artifact import read_manifest
from edge.measure.evaluate import EvaluateOptions, evaluate
from edge.optional import require
from edge.reporting import listen, say
from export.graph.writer import attach_manifest
from export.int8.quantize import write_half, write_int8
from export.options import SourceOptions
from export.source import fp32_onnx


def _ours(source: Path, data: str, images: int, folder: Path) -> Iterator[tuple[str, Path, float]]:
    start = time.perf_counter()
    table = calibrate(source, data, CalibrationRecipe(images=images)).table
    write_int8(source, table, folder / "default.onnx")
    yield "edge: default", folder / "default.onnx", time.perf_counter() - start
    for method in METHODS:
        start = time.perf_counter()
        recipe = CalibrationRecipe(images, method, equalise=False, bias_correction=False)
        table = calibrate(source, data, recipe).table
        target = folder / f"{method}.onnx"
        write_int8(source, table, target)
        yield f"edge: {method} alone", target, time.perf_counter() - start


def _theirs(
    source: Path, data: str, images: int, folder: Path, methods: list[str]
) -> Iterator[tuple[str, Path, float]]:
    quantization = require("onnxruntime.quantization")
    prepared = folder / "prepared.onnx"
    require("onnxruntime.quantization.shape_inference").quant_pre_process(
        str(source), str(prepared), skip_symbolic_shape=True
    )
    for name in methods:
        start = time.perf_counter()
        reader = _reader(quantization, source, data, images)
        target = folder / f"ort-{name}.onnx"
        quantization.quantize_static(
            str(prepared),
            str(target),
            reader,
            per_channel=True,
            calibrate_method=getattr(quantization.CalibrationMethod, name),
        )
        _adopt(target, source)
        yield f"onnxruntime: {name}", target, time.perf_counter() - start


def _reader(quantization: Any, source: Path, data: str, images: int) -> Any:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.inputs = network_inputs(source, data, images)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self.inputs, None)
            return None if found is None else {"images": np.array(found[1])}

    return Reader()


def _adopt(target: Path, source: Path) -> None:
    """Add the manifest that evaluation reads to a foreign graph; FP32 prevents rearranging."""
    onnx = require("onnx")
    model = onnx.load(str(target))
    attach_manifest(model, replace(read_manifest(source), labels=("onnxruntime's own",)))
    onnx.save(model, str(target))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="cfg, npz or built-in name")
    parser.add_argument("--names", help="class names of a cfg")
    parser.add_argument("--resize", default="stretch", choices=("letterbox", "stretch"))
    parser.add_argument("--calib", required=True, help="calibration images")
    parser.add_argument("--data", required=True, help="labelled images, others than --calib")
    parser.add_argument("--images", type=int, default=200, help="calibration images (%(default)s)")
    parser.add_argument(
        "--peer-images",
        type=int,
        default=100,
        help="calibration images of onnxruntime's recipes, which need more memory",
    )
    parser.add_argument(
        "--peers",
        default="MinMax,Percentile",
        help="onnxruntime's methods to compare; Entropy is another one",
    )
    parser.add_argument("--json", help="file for the rows as JSON")
    return parser


def main() -> None:
    args = _parser().parse_args()
    logging.disable(logging.WARNING)
    rows: list[dict[str, Any]] = []

    def add(name: str, path: Path, seconds: float, foreign: bool = False) -> None:
        # A Q/DQ graph of another tool is left to onnxruntime as it is.
        found = evaluate(path, args.data, EvaluateOptions(rearrange=not foreign))
        rows.append(
            {"recipe": name, "map50": found.map50, "map50_95": found.map50_95, "s": seconds}
        )
        say(f"{name}: {found.map50:.4f}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = fp32_onnx(
            args.model, folder, SourceOptions(names=args.names, resize=args.resize)
        ).path
        add("FP32", source, 0.0)
        write_half(source, folder / "half.onnx")
        add("FP16", folder / "half.onnx", 0.0)
        for recipe, path, seconds in _ours(source, args.calib, args.images, folder):
            add(recipe, path, seconds)
        peers = [peer for peer in args.peers.split(",") if peer]
        for recipe, path, seconds in _theirs(source, args.calib, args.peer_images, folder, peers):
            add(recipe, path, seconds, foreign=True)
    base = rows[0]["map50"]
    show(
        f"{Path(args.model).stem}: {args.images} calibration images, evaluated on {args.data}",
        ("recipe", "mAP@.5", "against FP32", "mAP@.5:.95", "s"),
        [
            (
                row["recipe"],
                f"{row['map50']:.4f}",
                f"{row['map50'] - base:+.4f}",
                f"{row['map50_95']:.4f}",
                f"{row['s']:.0f}",
            )
            for row in rows
        ],
    )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    listen(Terminal())
    main()
