"""Milliseconds of single convolutions, measured on the machine that counts and kept in a file.

Each convolution is timed at a few widths; between them the time is interpolated along both.
`convolution_costs` is the one way to such times.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.cache import cache_root
from edge.compress.channels.cost import ConvShape, Cost
from edge.decoding import read_json
from edge.errors import CompressionError
from edge.files import make_folder, plain_text, write_file
from edge.measure.host import fingerprint
from edge.optional import require
from edge.reporting import say, track
from edge.runtime.session import open_session

__all__ = [
    "Fixed",
    "LatencyTable",
    "convolution_costs",
    "latency_cost",
    "predicted_costs",
    "read_table",
    "table_path",
    "table_shapes",
    "time_convolution",
    "write_table",
]

_SCHEMA = 1
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
_ALIGN = 8
_LIMIT_BYTES = 64 << 20
# Larger numbers are of no convolution that fits into memory.
_MOST, _MOST_MS = 1 << 20, 1e7
# By path, whether input and output channels never change.
Fixed = Mapping[str, tuple[bool, bool]]


@dataclass(frozen=True)
class LatencyTable:
    """Times of single convolutions.

    Attributes:
        host: the machine, as reports print it.
        rows: milliseconds by shape.
    """

    host: dict[str, Any]
    rows: dict[ConvShape, float] = field(default_factory=dict)


def convolution_costs(
    shapes: Mapping[str, ConvShape], fixed: Fixed, threads: int, given: str | Path | None = None
) -> tuple[Cost, str]:
    """Return the milliseconds of convolutions as a cost, and the table that they are from.

    Args:
        shapes: the network's convolutions, see `edge.compress.channels.cost.read_shapes`.
        threads: of onnxruntime.
        given: file of a table, perhaps of another machine; left out, this machine's own in the
            cache, whose missing rows are measured now.

    Raises:
        CompressionError: the given table is damaged or lacks shapes of this network.
    """
    if given is not None:
        table = read_table(given)
        cpu = plain_text(str(table.host.get("cpu", "no host")))
        return latency_cost(table, shapes, fixed), f"{given} ({cpu})"
    path = table_path(threads)
    table = _cached_table(path, threads)
    missing = sorted(table_shapes(shapes, fixed) - set(table.rows))
    for shape in track(missing, "timing convolutions", len(missing)):
        table.rows[shape] = time_convolution(shape, threads)
    if missing:
        make_folder(path.parent)
        write_table(table, path)
    return latency_cost(table, shapes, fixed), str(path)


def predicted_costs(
    shapes: Mapping[str, ConvShape], fixed: Fixed, timer: Callable[[ConvShape], float]
) -> Cost:
    """Return the milliseconds of convolutions as a cost, from a table that `timer` fills."""
    rows = {shape: timer(shape) for shape in table_shapes(shapes, fixed)}
    return latency_cost(LatencyTable({}, rows), shapes, fixed)


def table_path(threads: int) -> Path:
    """Return the file of this machine's table in `$EDGE_CACHE` or ~/.cache/edge."""
    host = repr(sorted(_host(threads).items()))
    return cache_root() / "latency" / f"{sha256(host.encode()).hexdigest()[:16]}.json"


def _host(threads: int) -> dict[str, Any]:
    return {**fingerprint(), "threads": threads}


def _cached_table(path: Path, threads: int) -> LatencyTable:
    if path.is_file():
        try:
            return read_table(path)
        except CompressionError as error:
            say(f"{error}; the convolutions are timed again")
    return LatencyTable(_host(threads))


def table_shapes(shapes: Mapping[str, ConvShape], fixed: Fixed) -> set[ConvShape]:
    """Return all shapes that `latency_cost` needs."""
    return {point for path, shape in shapes.items() for point in _points(shape, fixed[path])}


def latency_cost(table: LatencyTable, shapes: Mapping[str, ConvShape], fixed: Fixed) -> Cost:
    """Return the milliseconds of a convolution at any width, interpolated.

    Raises:
        CompressionError: the table lacks a shape, as it was measured for another network.
    """
    missing = [shape for shape in table_shapes(shapes, fixed) if shape not in table.rows]
    if missing:
        raise CompressionError(
            f"the latency table lacks {len(missing)} shapes of this network, such as {missing[0]}; "
            "measure it again on the target"
        )

    @cache
    def cost(path: str, channels: int, filters: int) -> float:
        return _interpolated(table, shapes[path], fixed[path], channels, filters)

    return cost


def _widths(full: int, fixed: bool) -> tuple[int, ...]:
    if fixed or full <= _ALIGN:
        return (full,)
    found = {max(_ALIGN, round(full * share / _ALIGN) * _ALIGN) for share in _SHARES}
    return (*sorted(width for width in found if width < full), full)


def _grid(shape: ConvShape, fixed: tuple[bool, bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return _widths(shape.channels, fixed[0]), _widths(shape.filters, fixed[1])


def _points(shape: ConvShape, fixed: tuple[bool, bool]) -> list[ConvShape]:
    inputs, outputs = _grid(shape, fixed)
    if shape.groups == 1:
        return [shape.resized(channels, filters) for channels in inputs for filters in outputs]
    group = shape.channels // shape.groups
    return [
        shape.resized(width, width * shape.filters // shape.channels)
        for width in inputs
        if width % group == 0
    ]


def _interpolated(
    table: LatencyTable, shape: ConvShape, fixed: tuple[bool, bool], channels: int, filters: int
) -> float:
    if shape.groups > 1:
        points = _points(shape, fixed)
        times = [table.rows[point] for point in points]
        return float(np.interp(channels, [point.channels for point in points], times))
    inputs_at, outputs_at = _grid(shape, fixed)
    return sum(
        share * other * table.rows[shape.resized(c, f)]
        for c, share in _between(inputs_at, channels)
        for f, other in _between(outputs_at, filters)
    )


def _between(widths: tuple[int, ...], width: int) -> list[tuple[int, float]]:
    """Return the neighbours of `width` with their shares; outside of all, the nearest alone."""
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
    write_file(path, json.dumps(document).encode())


@dataclass(frozen=True)
class _Row(ConvShape):
    """A line of the file."""

    ms: float

    def __post_init__(self) -> None:
        sides = (*self.size_hw, *self.stride_hw, *self.input_hw)
        for name, values, least in (
            ("channels, filters and groups", (self.channels, self.filters, self.groups), 1),
            ("size_hw, stride_hw and input_hw", sides, 1),
            ("pads", self.pads, 0),
        ):
            if not all(least <= value <= _MOST for value in values):
                raise ValueError(f"{name} take whole numbers from {least} to {_MOST}, not {values}")
        if self.channels % self.groups or self.filters % self.groups:
            raise ValueError(
                f"{self.channels} channels and {self.filters} filters do not come in "
                f"{self.groups} groups"
            )
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation is none of {', '.join(filter(None, _ACTIVATIONS))}")
        if not 0 < self.ms <= _MOST_MS:
            raise ValueError(f"ms takes a number above 0 and up to {_MOST_MS:g}, not {self.ms:g}")

    @property
    def shape(self) -> ConvShape:
        return ConvShape(**{one.name: getattr(self, one.name) for one in fields(ConvShape)})


@dataclass(frozen=True)
class _TableFile:
    schema: int
    host: dict[str, Any]
    rows: tuple[_Row, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.schema <= _SCHEMA:
            raise ValueError(f"schema is {self.schema}; this version reads {_SCHEMA}")
        if len({row.shape for row in self.rows}) != len(self.rows):
            raise ValueError("rows name a shape twice")


def read_table(path: str | Path) -> LatencyTable:
    """Read what `write_table` wrote.

    Raises:
        CompressionError: the file is missing, damaged, or of a newer kind; names file and field.
    """
    found = read_json(
        path,
        _TableFile,
        what="a latency table of edge",
        error=CompressionError,
        limit=_LIMIT_BYTES,
    )
    return LatencyTable(found.host, {row.shape: row.ms for row in found.rows})


_WARM, _RUNS, _BLOCK_S = 2, 9, 0.01
# Blocks until the two fastest agree: other work on the machine only makes a convolution slower.
_MOST_BLOCKS, _NEAR = 8, 0.05
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
    """Return the milliseconds of one convolution with its activation in onnxruntime, on this CPU.

    Blocks of runs are repeated until the two fastest medians agree within 5 %; the faster counts.
    """
    session = open_session(_model(shape), "one convolution", threads=threads)
    picture = np.random.default_rng(0).random((1, shape.channels, *shape.input_hw), np.float32)
    for _ in range(_WARM):
        session.run(None, {"x": picture})
    taken: list[float] = []
    for _ in range(_MOST_BLOCKS):
        taken.append(_block_ms(session, picture))
        best = sorted(taken)[:2]
        if len(best) == 2 and best[1] < best[0] * (1 + _NEAR):
            break
    return min(taken)


def _block_ms(session: Any, picture: NDArray[np.float32]) -> float:
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < _RUNS or time.perf_counter() - began < _BLOCK_S:
        start = time.perf_counter()
        session.run(None, {"x": picture})
        taken.append((time.perf_counter() - start) * 1e3)
    return float(np.median(taken))


def _model(shape: ConvShape) -> bytes:
    """Return an ONNX graph of the convolution and its activation, with random weights, opset 19."""
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
