"""`edge bench` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apps.commands.options import json_option
from apps.commands.terminal import show
from edge.errors import DataError
from edge.files import write_json
from edge.reporting import say

if TYPE_CHECKING:
    from export.engine.rebuilds import Rebuilds

__all__ = ["arguments", "print_bench", "print_layers", "print_rebuilds", "run"]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word.strip()]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge bench`."""
    add = parser.add_argument
    add("artifacts", nargs="+", metavar="ARTIFACT", help=".onnx or .engine of edge")
    add("--baseline", metavar="ARTIFACT", help="what speed-ups are relative to")
    add("--source", metavar="S", help="video or folder; left out: scenes held in memory")
    add("--seconds", type=float, default=5.0, metavar="N", help="of each artifact (%(default)s)")
    add("--rounds", type=int, default=10, metavar="N", help="turns of each (%(default)s)")
    add("--score", type=float, default=0.25, metavar="S", help="leave out lower (%(default)s)")
    add(
        "--iou",
        type=float,
        metavar="I",
        help="IoU above which two boxes of one class count as one object (0.45, or what an "
        "imported network was made for)",
    )
    add("--threads", type=int, default=2, metavar="N", help="CPU threads (%(default)s)")
    add("--cores", type=_numbers, default=[], metavar="0,1", help="stay on these CPU cores")
    add("--layers", action="store_true", help="show which layers take the time")
    add("--compare", metavar="F", help="--json of an earlier run to hold this one against")
    add(
        "--rebuilds",
        type=int,
        default=0,
        metavar="N",
        help="build the engine of ARTIFACT (.onnx) N times: spread of its latency and mAP",
    )
    add("--data", metavar="DIR", help="labelled images for the mAP of --rebuilds")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge bench`; 1 where `--compare` found something worse."""
    from edge.measure.bench import bench

    if args.seconds <= 0 or args.rounds < 2 or args.threads < 1:
        raise DataError("--seconds and --threads take positive numbers, --rounds at least 2")
    options: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("source", "seconds", "rounds", "score", "iou", "threads", "cores")
    }
    if args.rebuilds:
        return _rebuild(args, options)
    result = bench(
        args.artifacts,
        args.baseline,
        compare=args.compare,
        layers=args.layers,
        json_path=args.json,
        **options,
    )
    print_bench(result)
    return int(any(line["verdict"] == "worse" for line in result.get("comparison", ())))


def _rebuild(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from export.engine.rebuilds import rebuild

    if len(args.artifacts) > 1 or args.baseline or args.compare or args.layers:
        raise DataError("--rebuilds takes one .onnx, without --baseline, --compare and --layers")
    result = rebuild(args.artifacts[0], args.rebuilds, data=args.data, **options)
    print_rebuilds(result)
    write_json(result, args.json)
    return 0


def print_bench(result: dict[str, Any]) -> None:
    """The result as a table on stdout, with the host it was measured on."""
    host = result["host"]
    title = f"{host['cpu']}, {host['cores']} cores, {result['threads']} threads; {result['source']}"
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
    counted = any(row["energy_j"] is not None for row in result["rows"])
    columns += ("J / frame",) * counted
    show(title, columns, [_cells(row)[: len(columns)] for row in result["rows"]])
    stages = list(result["rows"][0]["stages_ms"])
    rows = [
        (row["label"], *(f"{row['stages_ms'].get(stage, 0):.2f}" for stage in stages))
        for row in result["rows"]
    ]
    show("stages, ms", ("model", *stages), rows)
    for row in result["rows"]:
        if "layers" in row:
            print_layers(row["label"], row["layers"])
    for line in result.get("comparison", ()):
        say(f"{line['verdict'].upper():>12}  {line['label']}: {line['text']}")
    for text in result["warnings"]:
        say(f"warning: {text}")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["label"],
        row["backend"],
        f"{row['fps_engine']:.1f}",
        f"{row['fps_pipeline']:.1f}",
        _with_interval(row["latency_ms"]["p50"], row["interval_ms"]["p50"]),
        _with_interval(row["latency_ms"]["p99"], row["interval_ms"]["p99"]),
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['speedup']:.2f}x",
        "-" if row["energy_j"] is None else f"{row['energy_j']:.3f}",
    )


def _with_interval(value: float, ends: Sequence[float]) -> str:
    return f"{value:.2f} ({ends[0]:.2f} to {ends[1]:.2f})"


_SHOWN = 20


def print_layers(label: str, layers: Sequence[dict[str, Any]]) -> None:
    """The slowest layers as a table on stdout, and the others' sum."""
    rows = [(one["name"], f"{one['ms']:.3f}", f"{one['share'] * 100:.1f}") for one in layers]
    if len(rows) > _SHOWN + 1:
        ms, share = (sum(one[key] for one in layers[_SHOWN:]) for key in ("ms", "share"))
        others = f"{len(rows) - _SHOWN} others"
        rows = [*rows[:_SHOWN], (others, f"{ms:.3f}", f"{share * 100:.1f}")]
    total = sum(one["ms"] for one in layers)
    show(f"{label}: {len(layers)} layers, {total:.2f} ms", ("layer", "ms", "share %"), rows)


def print_rebuilds(result: Rebuilds) -> None:
    """Print the spread of each figure as a table on stdout."""
    rows = [
        (name, *(f"{one:.4g}" for one in (s.lowest, s.median, s.highest)), f"{s.apart:.1%}")
        for name, s in result.spread.items()
    ]
    title = f"{result.artifact}: {len(result.builds)} builds"
    show(title, ("figure", "lowest", "median", "highest", "apart"), rows)
