"""What stays out of INT8: layers named by hand, of an earlier search, or within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.table import read_table
from edge.artifact import read_manifest
from edge.errors import ArtifactError
from edge.optional import require
from edge.reporting import say
from export.graph.precision import convolutions
from export.int8.mixed import annotate, read_map, write_mixed

__all__ = ["Wanted", "kept_layers", "note_map", "quantize_command"]


@dataclass(frozen=True)
class Wanted:
    """What may stay out of INT8, and how accurate the rest must be: see `export_engine`."""

    keep: Sequence[str] = ()
    max_map_drop: float | None = None
    accuracy_data: str | Path | None = None
    precision_map: str | Path | None = None

    def check(self, precision: str | None) -> None:
        """Refuse options that contradict each other.

        Raises:
            ArtifactError: a budget with layers chosen by hand, or without INT8.
        """
        if self.max_map_drop is None:
            return
        if self.keep or self.precision_map is not None:
            raise ArtifactError(
                "--max-map-drop chooses the layers itself; leave out --keep and --precision-map"
            )
        if precision != "int8":
            raise ArtifactError("--max-map-drop bounds what INT8 loses; add --int8")


def kept_layers(source: Path, wanted: Wanted) -> dict[str, str]:
    """The layers that the user keeps out of INT8, by hand in FP32 or by an earlier search."""
    layers = {} if wanted.precision_map is None else read_map(wanted.precision_map, source)
    return dict.fromkeys(_kept(source, wanted.keep), "fp32") | layers


def note_map(source: Path, target: Path, wanted: Wanted) -> None:
    """The engine keeps a map's FP32 layers in FP32; those of --keep only have to leave INT8."""
    if wanted.precision_map is not None:
        annotate(target, layers=read_map(wanted.precision_map, source))


def _kept(source: Path, keep: Sequence[str]) -> list[str]:
    """Names of the convolutions that `keep` speaks of, `first` and `heads` among them."""
    if not keep:
        return []
    model = require("onnx").load(str(source))
    found = [node.name for node in convolutions(model)]
    heads = _makers(model, set(read_manifest(source).spec.tensors))
    kept: list[str] = []
    for word in keep:
        if word == "first":
            kept.append(found[0])
        elif word == "heads":
            kept.extend(name for name in found if name in heads)
        elif word in found:
            kept.append(word)
        else:
            raise ArtifactError(
                f"{source}: no convolution {word!r} to keep; edge show {source} lists them"
            )
    return list(dict.fromkeys(kept))


def _makers(model: Any, tensors: set[str]) -> set[str]:
    """The convolutions that the values of `tensors` come from, across what lies between."""
    nodes = {name: node for node in model.graph.node for name in node.output}
    found, pending = set(), set(tensors)
    while pending:
        node = nodes.get(pending.pop())
        if node is not None and node.op_type == "Conv":
            found.add(node.name)
        elif node is not None:
            pending |= set(node.input)
    return found


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
