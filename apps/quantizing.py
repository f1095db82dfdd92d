"""`edge quantize`: an INT8 graph from an FP32 graph and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.kept_layers import Wanted, kept_layers, note_map
from calibration.table import read_table
from edge.reporting import say
from export.mixed import write_mixed

__all__ = ["quantize_command"]


def quantize_command(
    onnx: str | Path,
    table: str | Path,
    *,
    keep: Sequence[str] = (),
    precision_map: str | Path | None = None,
    output: str | Path | None = None,
) -> Path:
    """`edge quantize`: write the INT8 graph of an FP32 ONNX file at a table's scales; its path."""
    source = Path(onnx)
    stem = source.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(output) if output else source.with_name(f"{stem}.int8.onnx")
    layers = kept_layers(source, Wanted(keep, precision_map=precision_map))
    write_mixed(source, read_table(table), target, layers)
    note_map(source, target, Wanted(precision_map=precision_map))
    say(f"wrote {target}")
    return target
