#!/usr/bin/env python3
"""Noise of the heads by each way of making scales, on images that none of them has seen.

    python tools/int8/scale_gains.py yolo.fp32.onnx --calib photos/ --data others/

Prints signal to quantization noise of the raw outputs, dB: the default recipe, without bias
correction, `--method best`, and both with `--adaround`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.commands.terminal import Terminal, show
from calibration.adaround import round_if_better
from calibration.pipeline import calibrate
from calibration.recipe import CalibrationRecipe
from calibration.scales import network_inputs
from calibration.table import CalibrationTable
from edge.data.datasets import open_dataset
from edge.measure.reference import head_decibel, reference, session
from edge.optional import require
from edge.reporting import listen, say
from export.int8.quantize import int8_graph


def recipes(
    source: Path, data: str, images: int, threads: int | None
) -> list[tuple[str, Callable[[], CalibrationTable]]]:
    made: dict[str, CalibrationTable] = {}

    def keep(name: str, recipe: CalibrationRecipe) -> CalibrationTable:
        made[name] = calibrate(source, data, recipe).table
        return made[name]

    def rounded(name: str) -> CalibrationTable:
        return round_if_better(
            source, made[name], open_dataset(data, limit=images), threads=threads
        )

    return [
        ("default", lambda: keep("default", CalibrationRecipe(images))),
        ("default without bias correction", lambda: replace(made["default"], bias=())),
        ("default, adaround", lambda: rounded("default")),
        ("best", lambda: keep("best", CalibrationRecipe(images, "best"))),
        ("best, adaround", lambda: rounded("best")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("onnx", type=Path, help="NAME.fp32.onnx of export-engine")
    parser.add_argument("--calib", required=True, help="calibration images")
    parser.add_argument("--data", required=True, help="other images, to measure on")
    parser.add_argument("--images", type=int, default=200, help="calibration images (%(default)s)")
    parser.add_argument(
        "--judges",
        type=int,
        default=32,
        help="number of images of --data to measure on (%(default)s)",
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", help="file for the rows as JSON")
    args = parser.parse_args()
    model = require("onnx").load(str(args.onnx))
    known = reference(model, network_inputs(args.onnx, args.data, args.judges), args.threads)
    rows: list[dict[str, Any]] = []
    for name, make in recipes(args.onnx, args.calib, args.images, args.threads):
        start = time.perf_counter()
        table = make()
        seconds = time.perf_counter() - start
        decibel = head_decibel(session(int8_graph(model, table), args.threads), known)
        rows.append({"recipe": name, "decibel": decibel, "seconds": seconds})
        say(f"{name}: {decibel:.2f} dB, {seconds:.0f} s")
    base = rows[0]["decibel"]
    show(
        f"{args.onnx.name}: heads on {len(known.inputs)} images of {args.data}",
        ("recipe", "dB", "against the default", "s"),
        [
            (
                r["recipe"],
                f"{r['decibel']:.2f}",
                f"{r['decibel'] - base:+.2f}",
                f"{r['seconds']:.0f}",
            )
            for r in rows
        ],
    )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    listen(Terminal())
    main()
