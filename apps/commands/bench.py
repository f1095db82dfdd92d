"""`edge bench` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apps.commands.options import add_options, json_option, read_options
from apps.commands.terminal import show
from edge.errors import DataError
from edge.files import write_json
from edge.measure.bench import BenchOptions, BenchResult, BenchRow, LayerTime, bench
from edge.reporting import say

if TYPE_CHECKING:
    from export.engine.rebuilds import Rebuilds

__all__ = ["arguments", "print_bench", "print_layers", "print_rebuilds", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge bench`."""
    parser.add_argument("artifacts", nargs="+", metavar="ARTIFACT", help=".onnx or .engine of edge")
    add_options(parser, BenchOptions)
    parser.add_argument(
        "--rebuilds",
        type=int,
        default=0,
        metavar="N",
        help="build the engine of ARTIFACT (.onnx) N times: spread of its latency and mAP",
    )
    parser.add_argument("--data", metavar="DIR", help="labelled images for the mAP of --rebuilds")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge bench`; 1 where `--compare` found something worse."""
    options = read_options(args, BenchOptions)
    if args.rebuilds:
        return _rebuild(args, options)
    result = bench(args.artifacts, options)
    write_json(result, args.json)
    print_bench(result)
    return int(any(one.verdict == "worse" for one in result.comparison or ()))


def _rebuild(args: argparse.Namespace, options: BenchOptions) -> int:
    from export.engine.rebuilds import rebuild

    if len(args.artifacts) > 1 or options.baseline or options.compare or options.layers:
        raise DataError("--rebuilds takes one .onnx, without --baseline, --compare and --layers")
    result = rebuild(args.artifacts[0], args.rebuilds, data=args.data, options=options)
    print_rebuilds(result)
    write_json(result, args.json)
    return 0


def print_bench(result: BenchResult) -> None:
    """Print the result as a table, with the host it was measured on."""
    host = result.host
    title = f"{host['cpu']}, {host['cores']} cores, {result.threads} threads; {result.source}"
    columns: tuple[str, ...] = (
        "model",
        "backend",
        "FPS engine",
        "FPS pipeline",
        "p50 ms",
        "p99 ms",
        "MB",
        "speed-up",
    )
    # Most machines have no sensor that an ordinary user may read.
    counted = any(row.energy_j is not None for row in result.rows)
    columns += ("J / frame",) * counted
    show(title, columns, [_cells(row)[: len(columns)] for row in result.rows])
    stages = list(result.rows[0].stages_ms)
    rows = [
        (row.label, *(f"{row.stages_ms.get(stage, 0):.2f}" for stage in stages))
        for row in result.rows
    ]
    show("stages, ms", ("model", *stages), rows)
    for row in result.rows:
        if row.layers is not None:
            print_layers(row.label, row.layers)
    for one in result.comparison or ():
        say(f"{one.verdict.upper():>12}  {one.label}: {one.text}")
    for text in result.warnings:
        say(f"warning: {text}")


def _cells(row: BenchRow) -> tuple[str, ...]:
    return (
        row.label,
        row.backend,
        f"{row.fps_engine:.1f}",
        f"{row.fps_pipeline:.1f}",
        _with_interval(row.latency_ms["p50"], row.interval_ms["p50"]),
        _with_interval(row.latency_ms["p99"], row.interval_ms["p99"]),
        f"{row.bytes / 1e6:.1f}",
        f"{row.speedup:.2f}x",
        "-" if row.energy_j is None else f"{row.energy_j:.3f}",
    )


def _with_interval(value: float, ends: Sequence[float]) -> str:
    return f"{value:.2f} ({ends[0]:.2f} to {ends[1]:.2f})"


_SHOWN = 20


def print_layers(label: str, layers: Sequence[LayerTime]) -> None:
    """Print the slowest layers as a table, and the others' sum."""
    rows = [(one.name, f"{one.ms:.3f}", f"{one.share * 100:.1f}") for one in layers]
    if len(rows) > _SHOWN + 1:
        rest = layers[_SHOWN:]
        ms, share = sum(one.ms for one in rest), sum(one.share for one in rest)
        others = f"{len(rows) - _SHOWN} others"
        rows = [*rows[:_SHOWN], (others, f"{ms:.3f}", f"{share * 100:.1f}")]
    total = sum(one.ms for one in layers)
    show(f"{label}: {len(layers)} layers, {total:.2f} ms", ("layer", "ms", "share %"), rows)


def print_rebuilds(result: Rebuilds) -> None:
    """Print the spread of each figure as a table on stdout."""
    rows = [
        (name, *(f"{one:.4g}" for one in (s.lowest, s.median, s.highest)), f"{s.apart:.1%}")
        for name, s in result.spread.items()
    ]
    title = f"{result.artifact}: {len(result.builds)} builds"
    show(title, ("figure", "lowest", "median", "highest", "apart"), rows)
