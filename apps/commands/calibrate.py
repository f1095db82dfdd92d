"""`edge calibrate` on the command line."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from apps.commands.options import add_options, json_option, read_options, target
from apps.commands.terminal import show
from calibration.recipe import TableOptions
from edge.errors import CalibrationError
from edge.files import write_file, write_json
from edge.reporting import say

if TYPE_CHECKING:
    from calibration.choose import ChosenPictures
    from calibration.compare import TableDiff
    from calibration.make_table import MadeTable
    from calibration.stability import Stability

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge calibrate`."""
    add = parser.add_argument
    add("onnx", nargs="?", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    add_options(parser, TableOptions)
    add(
        "-o",
        "--output",
        type=target(".json"),
        metavar="F",
        help="the table to write (NAME.calib.json)",
    )
    add("--svg", type=target(), metavar="F", help="draw the stability there")
    add("--diff", nargs=2, metavar=("A", "B"), help="show what differs between two tables; no ONNX")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate, or compare two tables."""
    if args.diff:
        from calibration.compare import compare_tables
        from calibration.table import read_table

        old, new = args.diff
        found = compare_tables(read_table(old), read_table(new))
        write_json(found, args.json)
        _print_diff(old, new, found)
        return 0
    if args.onnx is None:
        raise CalibrationError("edge calibrate takes NAME.fp32.onnx, or --diff A B")
    from calibration.make_table import make_table

    options = read_options(args, TableOptions)
    if args.svg is not None:
        options = replace(options, stability=True)
    made = make_table(args.onnx, options)
    write_json(made, args.json)
    _print_table(made)
    if args.svg is not None and made.stability is not None:
        from apps.charts.stability import stability_svg

        write_file(Path(args.svg), stability_svg(made.stability).encode())
    return 0


def _print_table(made: MadeTable) -> None:
    if made.chosen is not None:
        _print_chosen(made.chosen)
    table = made.table
    gains = dict(table.gain_db)
    rows = [
        (name, f"{amax:.5g}", "" if name not in gains else f"{gains[name]:.2f}")
        for name, amax in table.amax
    ]
    title = f"{made.path}: {table.method} over {made.used} images"
    show(title, ("tensor", "amax", "gain dB"), rows)
    if table.head_db:
        found = ((name, f"{value:.2f}") for name, value in table.head_db)
        show("heads on images held back", ("recipe", "signal to noise dB"), found)
    if table.rounding:
        rounded = [(name, f"{gains.get(name, 0):.2f}") for name, _ in table.rounding]
        show("adaptive rounding", ("convolution", "gain dB"), rounded)
    if made.stability is not None:
        _print_stability(made.stability)


def _print_chosen(chosen: ChosenPictures) -> None:
    covered = chosen.coverage
    say(
        f"chose {len(chosen.chosen)} of {chosen.candidates} images into {chosen.folder}; left out "
        f"{chosen.duplicates} near-duplicates and {chosen.evaluation} of the evaluation set; of "
        f"all the rest they reach {covered.ranges:.0%} of the ranges, {covered.classes:.0%} of the "
        f"classes' scores, likeness {covered.likeness:.2f}"
    )


def _print_stability(found: Stability) -> None:
    rows = [(str(p.images), f"{p.shift:.1%}", f"{p.loss_db:.3f}") for p in found.curve]
    show(
        f"scales by the number of images, against those of all {found.images}",
        ("images", "scales differ by", "noise dB more"),
        rows,
    )
    worst = sorted(found.spread.items(), key=lambda pair: -pair[1])[:5]
    show(
        "least sure scales (bootstrap)",
        ("tensor", "amax ±"),
        [(name, f"{value:.1%}") for name, value in worst],
    )
    if found.enough is None:
        say("more images still change the scales; give more")
    else:
        say(f"from {found.enough} images on, more of these no longer help")


def _print_diff(old: str, new: str, found: TableDiff) -> None:
    show(f"{old} -> {new}", ("what", "old", "new"), found.facts)
    say(f"images: {found.common} in both, {found.added} added, {found.removed} removed")
    rows = [(one.tensor, _amax(one.old), _amax(one.new), _amax(one.ratio)) for one in found.tensors]
    show(f"{len(rows)} thresholds differ", ("tensor", "old", "new", "ratio"), rows)
    if found.noise_db:
        changes = ((name, f"{change:+.2f}") for name, change in found.noise_db)
        show("signal to noise", ("convolution", "change dB"), changes)


def _amax(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"
