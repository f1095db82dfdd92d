"""`edge search` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from apps.commands.options import count, json_option, share, target, threads_option
from apps.commands.terminal import show
from calibration.table import read_table
from edge.artifact import read_manifest
from edge.errors import ArtifactError
from edge.files import write_json
from edge.measure.selection import Selection
from edge.reporting import say
from export.engine.build import Build, needed_engine
from export.engine.options import BuildOptions
from export.int8.mixed import write_map, write_mixed
from export.search.mixed import IMAGES, record, search_mixed, tell_overlap

__all__ = ["arguments", "print_search", "run", "search_command"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge search`."""
    add = parser.add_argument
    add("onnx", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    add("--table", required=True, metavar="F", help="NAME.calib.json of the same model")
    add("--data", required=True, metavar="DIR", help="labelled images to hold the budget on")
    add(
        "--max-map-drop",
        type=share,
        default=0.005,
        metavar="D",
        help="mAP@.5 that may be lost against FP32, 0..1 (%(default)s)",
    )
    add("--images", type=count, default=200, metavar="N", help="at most so many (%(default)s)")
    add(
        "--keep-as",
        choices=("fp16", "fp32"),
        default="fp16",
        help="precision of kept layers (%(default)s; beyond its range fp32)",
    )
    add(
        "--engines",
        nargs=2,
        metavar=("INT8", "FP16"),
        help="of this GPU, to go by their layers' times and to time candidates as engines; "
        "without: onnxruntime",
    )
    threads_option(parser)
    add(
        "--precision-map",
        type=target(),
        metavar="F",
        help="where to write the map (beside the graph)",
    )
    add(
        "-o",
        "--output",
        type=target(".onnx"),
        metavar="F",
        help="the mixed graph (NAME.mixed.onnx)",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge search`: 0 where the budget holds, 1 where no mixture is sure to keep it."""
    result = search_command(
        args.onnx,
        args.table,
        args.data,
        budget=args.max_map_drop,
        images=args.images,
        keep_as=args.keep_as,
        engines=None if args.engines is None else tuple(args.engines),
        threads=args.threads,
        output=args.output,
        map_path=args.precision_map,
        json_path=args.json,
    )
    print_search(result)
    return 0 if result["holds"] else 1


def print_search(report: dict[str, Any]) -> None:
    """The Pareto table on stdout, the choice on stderr."""
    chosen = report["chosen"]
    rows = [
        (
            f"{one['kept']} of {report['all_layers']}" + (" <" if one == chosen else ""),
            f"{one['map50'] * 100:.2f}",
            f"{one['drop'] * 100:+.2f}",
            f"{one['drop_upper'] * 100:.2f}",
            f"{one['head_db']:.1f}",
            f"{one['ms']:.2f}",
            f"{one['mb']:.2f}",
            str(one["pictures"]),
        )
        for one in ([] if chosen in report["pareto"] else [chosen]) + report["pareto"]
    ]
    columns = (
        "kept layers",
        "mAP@.5 %",
        "lost",
        "lost at most",
        "heads dB",
        "ms",
        "MB",
        "pictures",
    )
    show(f"mixed precision on {report['images']} images of {report['data']}", columns, rows)
    if len({one["pictures"] for one in report["pareto"]}) > 1:
        say("mAP@.5 is over so many pictures, moved copies of the images among them: compare lost")
    if not report["holds"]:
        say(
            f"no mixture is sure to lose at most {report['budget'] * 100:g} points on these "
            f"{report['images']} images; more labelled images tell closer"
        )
    if chosen["kept"] == report["all_layers"]:
        say("no mixture that fits is faster than keeping every layer: ship the FP16 graph instead")
    kept = ", ".join(report["layers"]) or "none"
    say(f"kept out of INT8 (<): {kept}; costs by {report['costs']}; {report['tried']} graphs tried")


def search_command(
    onnx: str | Path,
    table: str | Path,
    data: str | Path,
    *,
    budget: float,
    images: int = IMAGES,
    keep_as: str = "fp16",
    engines: tuple[str | Path, str | Path] | None = None,
    threads: int | None = None,
    output: str | Path | None = None,
    map_path: str | Path | None = None,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """`edge search`: write the mixed graph and its precision map; the report.

    Raises:
        DataError: no labelled images; else as `search_mixed`.
    """
    source, calibrated = Path(onnx), read_table(table)
    if read_manifest(source).precision != "fp32":
        raise ArtifactError(f"{source}: not FP32; give the file that the table was measured on")
    selection = Selection.open(data, read_manifest(source).spec.classes, images, threads)
    tell_overlap(selection, calibrated)
    with tempfile.TemporaryDirectory() as folder:
        build = Build(Path(folder), BuildOptions())
        searched = search_mixed(
            source,
            calibrated,
            selection,
            budget=budget,
            keep_as=keep_as,
            engines=engines,
            engine=None if engines is None else partial(needed_engine, build=build),
        )
    stem = source.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(output) if output else source.with_name(f"{stem}.mixed.onnx")
    write_mixed(source, calibrated, target, searched.layers)
    record(target, searched)
    where = Path(map_path) if map_path else target.with_suffix(".precision.json")
    write_map(where, source, searched.layers, budget=budget)
    result = {
        **searched.report,
        "model": read_manifest(source).spec.name,
        "files": {"onnx": str(target), "precision_map": str(where)},
    }
    write_json(result, json_path)
    return result
