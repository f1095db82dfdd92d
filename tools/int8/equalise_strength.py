#!/usr/bin/env python3
"""mAP@.5 of INT8 by the strength of equalisation, over several draws of the calibration images.

    python tools/int8/equalise_strength.py yolo.fp32.onnx --calib photos/ --data labelled/

Draw k takes every sixth picture of --calib, beginning with the k-th. The spread over the draws
shows how much of a difference between two strengths is chance.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

import calibration.scales as scales
from apps.commands.terminal import Terminal, show
from calibration.correction import correct_bias
from calibration.equalise import DEPTHWISE_STRENGTH, STRENGTH, find_gains
from calibration.scales import inputs_of, measure_scales
from edge.artifact import read_manifest
from edge.data.datasets import open_dataset
from edge.data.items import Dataset, thin
from edge.measure.evaluate import EvaluateOptions, evaluate
from edge.reporting import listen, say
from export.int8.quantize import write_int8

_EVERY, _BIAS_IMAGES = 6, 32


def judged(source: Path, calib: Dataset, strength: float, data: str, threads: int) -> float:
    """Return mAP@.5 of the INT8 graph that this strength and these images give."""
    scales.find_gains = partial(find_gains, strength=strength)
    made = measure_scales(source, calib, threads=threads)
    few = replace(calib, items=tuple(thin(calib.items, _BIAS_IMAGES)))
    table = correct_bias(source, made.table, inputs_of(few, read_manifest(source).spec.contract))
    with tempfile.TemporaryDirectory() as folder:
        write_int8(source, table, target := Path(folder) / "int8.onnx")
        return float(evaluate(target, data, EvaluateOptions(threads=threads)).map50)


def main() -> None:
    """Print a row for each strength."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path, help="FP32 ONNX file that edge wrote")
    parser.add_argument("--calib", required=True, help="calibration pictures")
    parser.add_argument("--data", required=True, help="other, labelled pictures")
    parser.add_argument(
        "--strengths",
        default=f"{STRENGTH},{DEPTHWISE_STRENGTH}",
        help="strengths to compare, with commas between",
    )
    parser.add_argument("--draws", type=int, default=4, help="number of draws, 1..6")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    whole = open_dataset(args.calib)
    options = EvaluateOptions(threads=args.threads)
    say(f"FP32: {evaluate(args.artifact, args.data, options).map50:.4f}")
    rows = []
    for strength in map(float, args.strengths.split(",")):
        found = []
        for draw in range(args.draws):
            calib = replace(whole, items=tuple(whole.items[draw::_EVERY]))
            found.append(judged(args.artifact, calib, strength, args.data, args.threads))
            say(f"strength {strength}, draw {draw}: {found[-1]:.4f}")
        rows.append((f"{strength}", f"{np.mean(found):.4f}", *(f"{one:.4f}" for one in found)))
    columns = ("strength", "mean mAP@.5", *(f"draw {draw}" for draw in range(args.draws)))
    show(args.artifact.name, columns, rows)


if __name__ == "__main__":
    listen(Terminal())
    main()
