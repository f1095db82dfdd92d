"""`export-engine` on the command line."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from apps.commands.options import add_options, json_option, read_options
from apps.commands.search import print_search
from apps.commands.terminal import show
from edge.files import write_json
from edge.reporting import say
from export.options import ExportOptions

if TYPE_CHECKING:
    from export.engine.build import DlaReport, EngineFacts
    from export.int8.score_threshold import FittedScore
    from export.pipeline import ExportResult
    from export.search.verdict import Verdict

__all__ = ["arguments", "print_dla", "print_export", "run"]

_SHOWN = 6


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `export-engine`."""
    parser.add_argument(
        "source",
        nargs="?",
        default="tiny-yolo-scenes",
        metavar="MODEL",
        help="built-in or zoo name, .cfg (weights beside it), .onnx, .npz, .safetensors, .edgez; "
        "left out: the built-in Tiny-YOLO",
    )
    precision = parser.add_mutually_exclusive_group()
    for name, text in (
        ("int8", "make an INT8 graph at calibrated scales"),
        ("fp16", "make a half-precision graph (default)"),
        ("fp32", "keep single precision"),
    ):
        precision.add_argument(
            f"--{name}", action="store_const", const=name, dest="precision", help=text
        )
    add_options(parser, ExportOptions)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Export; 1 where an accuracy budget was asked for and does not hold, else 0."""
    from export.pipeline import export_engine

    result = export_engine(args.source, read_options(args, ExportOptions))
    write_json(result, args.json)
    print_export(result)
    return 0 if result.search is None or result.search.holds else 1


def print_export(result: ExportResult) -> None:
    """Print what was made, as a table on stdout."""
    title = ", ".join([f"{result.model} {result.precision.upper()}", *result.labels])
    rows = [
        (kind, str(path), f"{path.stat().st_size / 1e6:.2f}") for kind, path in result.files.items()
    ]
    show(title, ("file", "path", "MB"), rows)
    table = result.calibration
    if table is not None:
        say(
            f"scales: {table.method} over {table.images} images, "
            f"{table.equalised_tensors} tensors equalised, {table.corrected_biases} biases "
            "corrected"
        )
    if result.search is not None:
        print_search(result.search)
    if result.scores is not None:
        _print_scores(result.scores)
    if result.engine is None:
        say(f"no engine: {result.reason}")
    else:
        _print_engine(result.engine, result.precision)
    if result.verdict is not None:
        _print_verdict(result.verdict)


def _print_verdict(verdict: Verdict) -> None:
    say(f"verdict: {verdict.sentence}")
    for reason in verdict.reasons[1:]:
        say(f"  {reason}")
    for step in verdict.advice:
        say(f"  next: {step}")


def _print_scores(scores: FittedScore) -> None:
    say(
        f"score threshold: {scores.score} fits best (F1 {scores.f1:.3f}); FP32's "
        f"{scores.score_before} would give {scores.f1_unchanged:.3f}, and gives FP32 "
        f"{scores.f1_before:.3f}"
    )


def _print_engine(engine: EngineFacts, precision: str) -> None:
    say(
        f"engine: {engine.builder} {engine.version} ({engine.reason}), "
        f"{engine.seconds} s, peak memory {engine.peak_rss_mib} MiB"
    )
    if engine.dla is not None:
        print_dla(engine.dla)
        return
    types = ", ".join(f"{number} {kind}" for kind, number in engine.convolutions.items())
    say(f"convolutions: {types}; layers: {engine.layers}, {engine.reformats} only move data")
    if engine.float_part is not None:
        say(f"outside of INT8: {engine.float_part.precision.upper()}")
    if engine.sparse:
        say(f"two of four weights are zero in {len(engine.sparse)} convolutions")
    for line in engine.sparsity:
        say(line)
    if precision in ("int8", "mixed") and engine.not_int8:
        say(f"not in INT8: {', '.join(engine.not_int8)}")


def print_dla(dla: DlaReport) -> None:
    """Print how much of the network the DLA takes, and the first layers that it does not."""
    say(
        f"DLA core {dla.core}: {dla.layers - len(dla.left)} of {dla.layers} layers; "
        f"its scales: {dla.cache}"
    )
    if dla.left:
        kinds = Counter(kind for _, kind in dla.left).most_common()
        names = ", ".join(name for name, _ in dla.left[:_SHOWN])
        more = f" and {len(dla.left) - _SHOWN} more" if len(dla.left) > _SHOWN else ""
        listed = ", ".join(f"{number} {kind}" for kind, number in kinds)
        say(f"left to the GPU ({listed}): {names}{more}; each switch between the two costs a copy")
    if dla.unscaled:
        say(f"without an INT8 scale: {', '.join(dla.unscaled[:_SHOWN])}")
