"""What stays out of INT8: layers named by hand, or those of an earlier search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.graph import Graph
from calibration.table import CalibrationTable, read_table
from edge.errors import ArtifactError
from edge.options import option
from export.int8.precision_map import read_map
from export.int8.quantize import annotate, write_mixed

__all__ = ["QuantizeOptions", "quantize", "write_quantized"]


@dataclass(frozen=True)
class QuantizeOptions:
    """What `edge quantize` takes besides the graph and its table.

    Attributes:
        keep: convolutions that stay out of INT8; first, heads or names, with commas between
        precision_map: keep the layers that an earlier search kept
        output: the INT8 graph to write (NAME.int8.onnx beside the FP32 graph)
    """

    keep: tuple[str, ...] = option((), metavar="NAMES")
    precision_map: str | Path | None = option(None, metavar="F")
    output: str | Path | None = option(None, hidden=True)


def quantize(
    onnx: Graph | str | Path,
    table: CalibrationTable | str | Path,
    options: QuantizeOptions | None = None,
) -> Graph:
    """Write the INT8 graph of an FP32 ONNX file at the scales of a table; return it.

    Args:
        onnx: the FP32 ONNX file that the table was measured on.
        table: a table, or its file.

    Raises:
        ArtifactError: `onnx` is not FP32, or has no such layer to keep.
        CalibrationError: the table is damaged, or of another graph.
    """
    source, options = Graph.open(onnx), options or QuantizeOptions()
    if not isinstance(table, CalibrationTable):
        table = read_table(table)
    stem = source.path.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(options.output or source.path.with_name(f"{stem}.int8.onnx"))
    return write_quantized(source, table, target, options.keep, options.precision_map)


def write_quantized(
    source: Graph,
    table: CalibrationTable,
    target: Path,
    keep: Sequence[str],
    precision_map: str | Path | None,
) -> Graph:
    """Write the INT8 graph, with the layers out of INT8 that `keep` or a precision map names.

    Raises:
        ArtifactError, CalibrationError: as `quantize`.
    """
    mapped = {} if precision_map is None else read_map(precision_map, source)
    layers = dict.fromkeys(kept_by_hand(source, keep), "fp32") | mapped
    if len(layers) == len(source.convolutions):
        by = "--keep" if precision_map is None else str(precision_map)
        raise ArtifactError(
            f"{source}: {by} leaves no layer in INT8; make the FP16 graph: export-engine --fp16"
        )
    graph = write_mixed(source, table, target, layers)
    # An engine keeps a map's FP32 layers in FP32; those named by hand only have to leave INT8.
    return graph if precision_map is None else annotate(graph, layers=mapped)


def kept_by_hand(source: Graph, keep: Sequence[str]) -> list[str]:
    """Return the names of the convolutions that `keep` speaks of, `first` and `heads` among them.

    Raises:
        ArtifactError: there is no such convolution.
    """
    if not keep:
        return []
    found = [node.name for node in source.convolutions]
    heads = _makers(source, set(source.manifest.spec.tensors))
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


def _makers(graph: Graph, tensors: set[str]) -> set[str]:
    """The convolutions that the values of `tensors` come from, across what lies between."""
    nodes = {name: node for node in graph.model.graph.node for name in node.output}
    found, pending, seen = set(), set(tensors), set()
    while pending:
        name = pending.pop()
        seen.add(name)
        node = nodes.get(name)
        if node is not None and node.op_type == "Conv":
            found.add(node.name)
        elif node is not None:
            pending |= set(node.input) - seen
    return found
