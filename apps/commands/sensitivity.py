"""`edge sensitivity` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from apps.commands.options import add_options, json_option, read_options, target
from apps.commands.terminal import show
from edge.files import write_file, write_json

if TYPE_CHECKING:
    from export.search.sensitivity import LayerSensitivity, SensitivityResult

__all__ = ["arguments", "print_sensitivity", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge sensitivity`."""
    from export.search.sensitivity import SensitivityOptions

    add = parser.add_argument
    add("onnx", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    add("--table", required=True, metavar="F", help="NAME.calib.json of the same model")
    add("--data", required=True, metavar="DIR", help="pictures; with labels mAP is measured too")
    add_options(parser, SensitivityOptions)
    add("--plot", type=target(), metavar="F.svg", help="draw the noise of the layers there")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the layers."""
    from apps.charts.sensitivity import chart
    from export.search.sensitivity import SensitivityOptions, sensitivity

    options = read_options(args, SensitivityOptions)
    result = sensitivity(args.onnx, args.table, args.data, options)
    write_json(result, args.json)
    if args.plot is not None:
        write_file(Path(args.plot), chart(result).encode())
    print_sensitivity(result)
    return 0


def print_sensitivity(result: SensitivityResult) -> None:
    """Print the layers as a table on stdout, the noisiest first."""
    measured = result.measured
    columns = ["layer", "own dB", "heads dB, alone in INT8", "heads dB, alone kept"]
    lost = ""
    if measured.fp32_map50 is not None and measured.int8_map50 is not None:
        columns += ["mAP@.5 % lost, alone in INT8", "won back, alone kept"]
        lost = f", mAP@.5 {measured.fp32_map50 * 100:.2f} to {measured.int8_map50 * 100:.2f} %"
    rows = [
        _cells(layer, measured.fp32_map50, measured.int8_map50)
        for layer in sorted(measured.layers, key=lambda layer: layer.alone_db)
    ]
    title = f"{result.model} on {result.data}: INT8 at {measured.int8_db:.1f} dB{lost}"
    show(title, columns, rows)


def _cells(layer: LayerSensitivity, base: float | None, whole: float | None) -> list[str]:
    own = "-" if layer.own_db is None else f"{layer.own_db:.1f}"
    cells = [layer.name, own, f"{layer.alone_db:.1f}", f"{layer.kept_db:.1f}"]
    if base is not None and whole is not None:
        cells.append(f"{(base - (layer.alone_map50 or 0)) * 100:+.2f}")
        cells.append(f"{((layer.kept_map50 or 0) - whole) * 100:+.2f}")
    return cells
