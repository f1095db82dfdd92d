"""`edge sensitivity` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apps.commands.options import count, json_option, target, threads_option
from apps.commands.terminal import show
from edge.files import write_file

__all__ = ["arguments", "print_sensitivity", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge sensitivity`."""
    add = parser.add_argument
    add("onnx", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    add("--table", required=True, metavar="F", help="NAME.calib.json of the same model")
    add("--data", required=True, metavar="DIR", help="pictures; with labels mAP is measured too")
    add("--images", type=count, default=50, metavar="N", help="for mAP, at most (%(default)s)")
    add("--no-map", action="store_true", help="noise only, which takes seconds")
    add("--plot", type=target(), metavar="F.svg", help="draw the layers' noise there")
    threads_option(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge sensitivity`."""
    from apps.charts.sensitivity import chart
    from export.search.sensitivity import sensitivity

    result = sensitivity(
        args.onnx,
        args.table,
        args.data,
        images=args.images,
        with_map=not args.no_map,
        threads=args.threads,
        json_path=args.json,
    )
    if args.plot is not None:
        write_file(Path(args.plot), chart(result).encode())
    print_sensitivity(result)
    return 0


def print_sensitivity(result: dict[str, Any]) -> None:
    """The layers as a table on stdout, the noisiest first."""
    base, whole = result["fp32_map50"], result["int8_map50"]
    columns = ["layer", "own dB", "heads dB, alone in INT8", "heads dB, alone kept"]
    if base is not None:
        columns += ["mAP@.5 % lost, alone in INT8", "won back, alone kept"]
    rows = [
        _cells(layer, base, whole)
        for layer in sorted(result["layers"], key=lambda layer: layer["alone_db"])
    ]
    lost = "" if base is None else f", mAP@.5 {base * 100:.2f} to {whole * 100:.2f} %"
    title = f"{result['model']} on {result['data']}: INT8 at {result['int8_db']:.1f} dB{lost}"
    show(title, columns, rows)


def _cells(layer: dict[str, Any], base: float | None, whole: float | None) -> list[str]:
    own = "-" if layer["own_db"] is None else f"{layer['own_db']:.1f}"
    cells = [layer["name"], own, f"{layer['alone_db']:.1f}", f"{layer['kept_db']:.1f}"]
    if base is not None and whole is not None:
        cells.append(f"{(base - layer['alone_map50']) * 100:+.2f}")
        cells.append(f"{(layer['kept_map50'] - whole) * 100:+.2f}")
    return cells
