"""Milliseconds of single convolutions, measured on the target and kept in a file.

Each convolution is timed at a few widths; between them the time is interpolated along both.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edge.compress.channels.cost import ConvShape, Cost, Site
from edge.errors import CompressionError
from edge.files import write_file
from edge.optional import require
from edge.runtime.session import open_session

__all__ = [
    "LatencyTable",
    "latency_cost",
    "measure_table",
    "read_table",
    "table_shapes",
    "time_convolution",
    "write_table",
]

_SCHEMA = 1
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
_ALIGN = 8
Timer = Callable[[ConvShape], float]
Fixed = Mapping[str, tuple[bool, bool]]


@dataclass(frozen=True)
class LatencyTable:
    """What was measured.

    Attributes:
        host: of the target, as reports print it; a table of another host is not taken silently.
        rows: milliseconds by shape.
    """

    host: dict[str, Any]
    rows: dict[ConvShape, float] = field(default_factory=dict)


def _widths(full: int, fixed: bool) -> tuple[int, ...]:
    if fixed or full <= _ALIGN:
        return (full,)
    found = {max(_ALIGN, round(full * share / _ALIGN) * _ALIGN) for share in _SHARES}
    return (*sorted(width for width in found if width < full), full)


def _grid(site: Site, fixed: tuple[bool, bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    full = site.full
    return _widths(full.channels, fixed[0]), _widths(full.filters, fixed[1])


def _points(site: Site, fixed: tuple[bool, bool]) -> list[ConvShape]:
    inputs, outputs = _grid(site, fixed)
    if site.full.groups > 1:
        return [site.at(width, _grouped(site, width)) for width in inputs if _fits(site, width)]
    return [site.at(channels, filters) for channels in inputs for filters in outputs]


def _grouped(site: Site, channels: int) -> int:
    return channels * site.full.filters // site.full.channels


def _fits(site: Site, channels: int) -> bool:
    return channels % (site.full.channels // site.full.groups) == 0


def table_shapes(sites: Mapping[str, Site], fixed: Fixed) -> set[ConvShape]:
    """All shapes that `latency_cost` needs.

    Args:
        sites: by path, see `edge.compress.channels.cost.read_sites`.
        fixed: by path, whether input and output channels never change.
    """
    return {shape for path, site in sites.items() for shape in _points(site, fixed[path])}


def measure_table(
    shapes: Iterable[ConvShape], table: LatencyTable, timer: Timer
) -> Iterable[ConvShape]:
    """Time what `table` lacks, into it; yields each shape when it is done."""
    for shape in shapes:
        if shape not in table.rows:
            table.rows[shape] = timer(shape)
        yield shape


def latency_cost(table: LatencyTable, sites: Mapping[str, Site], fixed: Fixed) -> Cost:
    """Milliseconds of a convolution at any width, interpolated.

    Raises:
        CompressionError: the table lacks a shape: it was measured for another network.
    """
    missing = [shape for shape in table_shapes(sites, fixed) if shape not in table.rows]
    if missing:
        raise CompressionError(
            f"the latency table lacks {len(missing)} shapes of this network, such as {missing[0]}; "
            "measure it again on the target"
        )

    @cache
    def cost(path: str, channels: int, filters: int) -> float:
        return _interpolated(table, sites[path], fixed[path], channels, filters)

    return cost


def _interpolated(
    table: LatencyTable, site: Site, fixed: tuple[bool, bool], channels: int, filters: int
) -> float:
    if site.full.groups > 1:
        inputs = [point.channels for point in _points(site, fixed)]
        times = [table.rows[point] for point in _points(site, fixed)]
        return float(np.interp(channels, inputs, times))
    inputs_at, outputs_at = _grid(site, fixed)
    return sum(
        share * other * table.rows[site.at(c, f)]
        for c, share in _between(inputs_at, channels)
        for f, other in _between(outputs_at, filters)
    )


def _between(widths: tuple[int, ...], width: int) -> list[tuple[int, float]]:
    """The neighbours of `width` and their shares; outside of all, the nearest alone."""
    index = bisect_right(widths, width)
    if index in (0, len(widths)):
        return [(widths[min(index, len(widths) - 1)], 1.0)]
    low, high = widths[index - 1], widths[index]
    share = (width - low) / (high - low)
    return [(low, 1 - share), (high, share)]


def write_table(table: LatencyTable, path: str | Path) -> None:
    """Write the table as JSON."""
    rows = [{**asdict(shape), "ms": ms} for shape, ms in sorted(table.rows.items())]
    document = {"schema": _SCHEMA, "host": table.host, "rows": rows}
    write_file(Path(path), json.dumps(document).encode())


def read_table(path: str | Path) -> LatencyTable:
    """Read what `write_table` wrote.

    Raises:
        CompressionError: missing, damaged or of a newer kind.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        if data["schema"] > _SCHEMA:
            raise ValueError(f"schema {data['schema']} is newer than {_SCHEMA}")
        return LatencyTable(dict(data["host"]), dict(_row(row) for row in data["rows"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CompressionError(f"{path}: not a latency table of edge: {error}") from error


def _row(row: dict[str, Any]) -> tuple[ConvShape, float]:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    del values["ms"]
    ms = float(row["ms"])
    if not 0 < ms < float("inf"):
        raise ValueError(f"{ms} milliseconds")
    return ConvShape(**values), ms


_WARM, _RUNS, _LEAST_S = 2, 9, 0.01
_ACTIVATIONS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "": (),
    "LeakyReLU": (("LeakyRelu", ("c",)),),
    "ReLU": (("Relu", ("c",)),),
    "ReLU6": (("Relu", ("c",)),),
    "Sigmoid": (("Sigmoid", ("c",)),),
    "SiLU": (("Sigmoid", ("c",)), ("Mul", ("c", "0"))),
    "Tanh": (("Tanh", ("c",)),),
    "Mish": (("Softplus", ("c",)), ("Tanh", ("0",)), ("Mul", ("c", "1"))),
}


def time_convolution(shape: ConvShape, threads: int = 1) -> float:
    """Median milliseconds of one convolution with its activation in onnxruntime on this host."""
    session = open_session(_model(shape), "one convolution", threads=threads)
    picture = np.random.default_rng(0).random((1, shape.channels, *shape.input_hw), np.float32)
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < _WARM + _RUNS or time.perf_counter() - began < _LEAST_S:
        start = time.perf_counter()
        session.run(None, {"x": picture})
        taken.append((time.perf_counter() - start) * 1e3)
    return float(np.median(taken[_WARM:]))


def _model(shape: ConvShape) -> bytes:
    """A graph of that convolution and its activation, random weights, opset 19."""
    helper = require("onnx.helper")
    nodes = _nodes(shape)
    entering = [1, shape.channels, *shape.input_hw]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", 1, entering)],
        [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)],
        _weights(shape),
    )
    opsets = [helper.make_opsetid("", 19)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return model


def _weights(shape: ConvShape) -> list[Any]:
    from_array = require("onnx.numpy_helper").from_array
    size = (shape.filters, shape.channels // shape.groups, *shape.size_hw)
    kernel = np.random.default_rng(0).normal(0, 0.05, size).astype(np.float32)
    return [from_array(kernel, "w"), from_array(np.zeros(shape.filters, np.float32), "b")]


def _nodes(shape: ConvShape) -> list[Any]:
    make_node = require("onnx.helper").make_node
    conv = make_node(
        "Conv",
        ["x", "w", "b"],
        ["c"],
        kernel_shape=shape.size_hw,
        strides=shape.stride_hw,
        pads=shape.pads,
        group=shape.groups,
    )
    after = enumerate(_ACTIVATIONS[shape.activation])
    return [conv, *(make_node(op, list(inputs), [str(at)]) for at, (op, inputs) in after)]
