"""How long a network takes on a board: low, likely and high, and why."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.built_in import BUILT_IN, PACKAGED
from edge.errors import ArtifactError, DataError
from edge.options import height_width, option
from export.estimate.facts import Fit, board_named, read_facts, read_fit
from export.estimate.graph import Operator, read_operators
from export.estimate.kernels import Kernel, fuse
from export.estimate.times import (
    PRECISIONS,
    Board,
    Constants,
    KernelTable,
    bound_by,
    kernel_ms,
    network_ms,
    overhead_ms,
    workload,
)

__all__ = [
    "Estimate",
    "EstimateOptions",
    "Layer",
    "Measurement",
    "Network",
    "estimate",
    "kernel_time_ms",
    "read_measurements",
    "read_network",
]

# 80 % of a normal distribution lie within so many standard deviations.
_Z80 = 1.2816
# Standard deviation of the logarithm of a board's factor, as in tools/estimate/fit.py; of a
# measurement of the very network that is asked about, against another run of it.
_BOARD_DEVIATION = 0.06
_RUN_DEVIATION = 0.03
# An operator that is not known moves its bytes at least once; it may take so much longer.
_UNKNOWN_FACTOR = 10.0
# Kernels of `edge.runtime.ops_gpu`: one prepares a frame; five decode, collect, rank and suppress.
_PREPARE_KERNELS, _FINISH_KERNELS = 1, 5


@dataclass(frozen=True)
class EstimateOptions:
    """What is estimated.

    Attributes:
        precision: fp32, fp16 and int8, or some of them, with commas between
        hw: input size of a cfg, of a zoo name, or of a graph that leaves it open
        frame_hw: size of the camera's frames, for the time before the network
    """

    precision: tuple[str, ...] = option(PRECISIONS, metavar="P,...")
    hw: tuple[int, int] | None = option(None, flag="--size", metavar="HxW", check=height_width)
    frame_hw: tuple[int, int] = option(
        (1080, 1920), flag="--frame", metavar="HxW", check=height_width
    )

    def __post_init__(self) -> None:
        if not self.precision:
            raise ValueError(f"no precision given; known are {', '.join(PRECISIONS)}")
        for name in self.precision:
            if name not in PRECISIONS:
                raise ValueError(f"{name}: no such precision; known are {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Network:
    """A network as the estimate sees it.

    Attributes:
        name: as the user named it.
        kernels: what TensorRT makes of it.
        unknown: operators of which nothing is known but the bytes that they move.
        input_elements, output_elements: of all inputs and outputs.
    """

    name: str
    kernels: tuple[Kernel, ...]
    unknown: tuple[str, ...]
    input_elements: int
    output_elements: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of one frame."""
        return sum(kernel.operations for kernel in self.kernels)


@dataclass(frozen=True)
class Layer:
    """What one kernel costs: its node's name, milliseconds, share of the network, and its limit."""

    name: str
    kind: str
    ms: float
    share: float
    bound_by: str


@dataclass(frozen=True)
class Estimate:
    """A network on a board in a precision.

    Attributes:
        low_ms, likely_ms, high_ms: of the network alone; 80 % of such figures lie between the
            first and the last.
        bound_by: tensor cores, memory or launches: what takes the largest share.
        shares: of the time, by these three.
        like: the published row of the network that is most alike, as a dict.
        prepare_ms, finish_ms: before and after the network, on the GPU, from the bytes they move.
        layers: the kernels, in the graph's order.
        notes: what widens the interval.
    """

    board: Board
    precision: str
    low_ms: float
    likely_ms: float
    high_ms: float
    bound_by: str
    shares: Mapping[str, float]
    like: Mapping[str, Any]
    prepare_ms: float
    finish_ms: float
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()

    def costliest(self, count: int) -> list[Layer]:
        """The layers that take longest, the longest first."""
        return sorted(self.layers, key=lambda layer: -layer.ms)[:count]

    @property
    def fps(self) -> float:
        """Frames a second of the network alone."""
        return 1e3 / self.likely_ms

    def to_json(self) -> dict[str, Any]:
        """The row of `edge estimate --json`."""
        return {
            "board": self.board.name,
            "precision": self.precision,
            "ms": {
                "low": round(self.low_ms, 4),
                "likely": round(self.likely_ms, 4),
                "high": round(self.high_ms, 4),
            },
            "fps": round(self.fps, 2),
            "bound_by": self.bound_by,
            "like": dict(self.like),
            "shares": {name: round(value, 4) for name, value in self.shares.items()},
            "prepare_ms": round(self.prepare_ms, 4),
            "finish_ms": round(self.finish_ms, 4),
            "notes": list(self.notes),
            "layers": [
                {
                    "name": one.name,
                    "kind": one.kind,
                    "ms": round(one.ms, 5),
                    "share": round(one.share, 4),
                    "bound_by": one.bound_by,
                }
                for one in self.layers
            ],
        }


@dataclass(frozen=True)
class Measurement:
    """A row of the user's own `edge bench --json`: a network, its precision, milliseconds."""

    network: Network
    precision: str
    ms: float


def read_network(model: str | Path, hw: tuple[int, int] | None = None) -> Network:
    """Return a network from an ONNX graph, a cfg or package, or a built-in or zoo name.

    Args:
        model: as the user names it; an ONNX graph needs shapes alone, a cfg no weights.
        hw: input size, for a cfg, a zoo name, or a graph that leaves it open.

    Raises:
        ArtifactError: no such model, no shapes, or nothing in it that is a product of matrices.
        MissingDependency: onnx (and, for a cfg, torch) is not installed.
    """
    path = BUILT_IN.get(str(model), Path(model))
    if path.suffix == ".onnx":
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; give an ONNX graph, a cfg or a name")
        return _network(str(model), read_operators(path, hw))
    if path.suffix in (".engine", ".plan"):
        raise ArtifactError(f"{model}: an engine shows no graph; give the ONNX file it is from")
    # Imported here: only what must be converted first needs torch.
    from export.options import SourceOptions
    from export.source import fp32_onnx

    with tempfile.TemporaryDirectory() as folder:
        # What a cfg and a name of the zoo leave to a file of weights costs no time.
        drawn = path.suffix == ".cfg" or not (path.suffix or str(model) in PACKAGED)
        written = fp32_onnx(model, Path(folder), SourceOptions(random_weights=drawn, hw=hw))
        return _network(str(model), read_operators(written.path))


def _network(name: str, operators: Sequence[Operator]) -> Network:
    kernels = tuple(fuse(operators))
    if not any(one.kind in ("conv", "grouped", "matmul") for one in kernels):
        raise ArtifactError(f"{name}: no convolution or matrix product in it; not a detector")
    made = {output for one in operators for output in one.outputs}
    used = {name for one in operators for name in one.inputs}
    strange = {one.name for one in kernels if one.kind == "unknown"}
    entering = {
        tensor: math.prod(shape)
        for one in operators
        for tensor, shape in zip(one.inputs, one.entering, strict=True)
        if tensor not in made
    }
    leaving = sum(
        math.prod(shape)
        for one in operators
        for tensor, shape in zip(one.outputs, one.shapes, strict=True)
        if tensor not in used
    )
    return Network(
        name,
        kernels,
        tuple(sorted({one.kind for one in operators if one.name in strange})),
        sum(entering.values()),
        leaving,
    )


def estimate(
    network: Network,
    boards: Iterable[str],
    options: EstimateOptions | None = None,
    *,
    measured: Sequence[Measurement] = (),
) -> list[Estimate]:
    """Estimate a network on boards, in precisions.

    Args:
        network: see `read_network`.
        boards: names.
        options: see `EstimateOptions`; its size is that of `read_network`.
        measured: the user's own figures; they are of the board asked for, so only one may be.

    Raises:
        ArtifactError: an unknown board.
        DataError: measurements with several boards.
    """
    options = options or EstimateOptions()
    chosen = [board_named(name) for name in boards]
    if not chosen:
        raise ArtifactError(f"no board given; known are {', '.join(read_facts().boards)}, or all")
    if measured and len(chosen) != 1:
        raise DataError(f"measurements are of one board, and {len(chosen)} were asked for")
    fit = read_fit()
    table = KernelTable(network.kernels)
    return [
        _estimate(network, table, board, precision, fit, measured, options.frame_hw)
        for board in chosen
        for precision in options.precision
    ]


def _estimate(
    network: Network,
    table: KernelTable,
    board: Board,
    precision: str,
    fit: Fit,
    measured: Sequence[Measurement],
    frame_hw: tuple[int, int],
) -> Estimate:
    work = workload(table, board, precision)
    constants = fit.constants
    parts = kernel_ms(work, constants)
    overhead = overhead_ms(board, constants)
    factor = math.exp(constants.boards.get(board.name, 0.0))
    predicted = network_ms(work, constants)
    shift, width, notes = _interval(network, board, precision, fit, measured)
    likely = predicted * math.exp(shift)
    each = factor * math.exp(shift) * (parts["tensor"] + parts["memory"] + parts["launch"])
    kinds = np.array([one.kind for one in network.kernels])
    strange = float(np.sum(each[kinds == "unknown"]))
    high = likely * math.exp(width) + (_UNKNOWN_FACTOR - 1) * strange
    if network.unknown:
        notes = [
            *notes,
            f"nothing is known of {', '.join(network.unknown)} but the bytes: up to "
            f"{_UNKNOWN_FACTOR:.0f} times their time is in the upper bound",
        ]
    totals = {name: float(part.sum()) for name, part in parts.items()}
    totals["launch"] += overhead
    whole = sum(totals.values())
    prepare, finish = _around(network, board, precision, constants, frame_hw)
    return Estimate(
        board,
        precision,
        likely * math.exp(-width),
        likely,
        high,
        bound_by(parts, work.count, overhead),
        {name: value / whole for name, value in totals.items()},
        _like(network, board, precision),
        prepare,
        finish,
        _layers(network, parts, each, likely),
        tuple(notes),
    )


def _layers(
    network: Network, parts: Mapping[str, Any], each: Any, likely: float
) -> tuple[Layer, ...]:
    one_count = np.ones(1)
    return tuple(
        Layer(
            kernel.name,
            kernel.kind,
            float(each[at]),
            float(each[at]) / likely,
            bound_by({name: part[at : at + 1] for name, part in parts.items()}, one_count, 0.0),
        )
        for at, kernel in enumerate(network.kernels)
    )


def _interval(
    network: Network,
    board: Board,
    precision: str,
    fit: Fit,
    measured: Sequence[Measurement],
) -> tuple[float, float, list[str]]:
    """Shift and half width of the logarithm, and what widened it."""
    rows = [row for row in read_facts().rows if row.board == board.name]
    width, notes = fit.spread, []
    if not rows:
        width, notes = fit.new_board, ["no published row of this board"]
    elif all(row.precision != precision for row in rows):
        width = fit.new_precision[board.family]
        notes = [f"no published row of this board in {precision}"]
    shift = 0.0
    if measured:
        shift, width = _refined(network, board, precision, fit, measured)
        notes = [f"refined with {len(measured)} measurements"]
    beyond = _beyond(network, fit)
    if beyond and not any(_same(one.network, network) for one in measured):
        width = math.hypot(width, fit.extrapolation * beyond)
        notes = [
            *notes,
            f"{network.operations / 1e9:.2f} GFLOP lie {math.exp(beyond):.1f} times outside the "
            "range of the published networks",
        ]
    return shift, width, notes


def _beyond(network: Network, fit: Fit) -> float:
    """How far, as a logarithm, the network's operations lie outside those of the fit."""
    low, high = fit.operations
    return max(0.0, math.log(low / network.operations), math.log(network.operations / high))


def _same(one: Network, other: Network) -> bool:
    return [k.operations for k in one.kernels] == [k.operations for k in other.kernels]


def _refined(
    network: Network,
    board: Board,
    precision: str,
    fit: Fit,
    measured: Sequence[Measurement],
) -> tuple[float, float]:
    """Shift and half width with the user's own figures.

    The error of a row is that of its board, which all rows share, and that of its network. A
    measurement of the same network in the same precision tells both.
    """
    errors, exact = [], []
    for one in measured:
        work = workload(KernelTable(one.network.kernels), board, one.precision)
        error = math.log(one.ms / network_ms(work, fit.constants))
        errors.append(error)
        if one.precision == precision and _same(one.network, network):
            exact.append(error)
    if exact:
        return float(np.mean(exact)), _Z80 * _RUN_DEVIATION
    own = fit.spread / _Z80
    board_variance = _BOARD_DEVIATION**2
    weight = board_variance / (board_variance + own**2 / len(errors))
    left = own**2 + board_variance * (1 - weight)
    return weight * float(np.mean(errors)), min(_Z80 * math.sqrt(left), fit.new_board)


def _around(
    network: Network,
    board: Board,
    precision: str,
    constants: Constants,
    frame_hw: tuple[int, int],
) -> tuple[float, float]:
    """Milliseconds before and after the network: bytes moved, and launches."""
    bytes_per_ms = board.memory_gbs * 1e6 * constants.memory
    launch = constants.kernel_cycles * 1e-3 / board.gpu_mhz + constants.launch_us / board.cpu_mhz
    frame = 3 * math.prod(frame_hw)
    prepare = (frame + 4 * network.input_elements) / bytes_per_ms
    finish = 4 * network.output_elements / bytes_per_ms
    return prepare + _PREPARE_KERNELS * launch, finish + _FINISH_KERNELS * launch


def _traits(kernels: Sequence[Kernel], counts: Sequence[float]) -> Any:
    """What makes networks alike: operations, elements moved, kernels; logarithms."""
    operations = sum(k.operations * c for k, c in zip(kernels, counts, strict=True))
    moved = sum((k.read + k.written + k.weights) * c for k, c in zip(kernels, counts, strict=True))
    return np.log([operations, moved, sum(counts)])


def _like(network: Network, board: Board, precision: str) -> dict[str, Any]:
    """The published row of the most alike network: on this board and in this precision, or near."""
    facts = read_facts()
    mine = _traits(network.kernels, [1.0] * len(network.kernels))
    ranked = []
    for row in facts.rows:
        table = facts.networks[row.network, row.size]
        theirs = _traits(table.kernels, table.count.tolist())
        elsewhere = 2.0 * (row.precision != precision) + 1.0 * (row.board != board.name)
        ranked.append((elsewhere, float(np.linalg.norm(mine - theirs)), row))
    *_, row = min(ranked, key=lambda one: one[:2])
    return {
        "network": row.model,
        "board": row.board,
        "precision": row.precision,
        "ms": row.ms,
        "source": facts.sources[row.source],
    }


def kernel_time_ms(kernel: Kernel, board: Board, precision: str, constants: Constants) -> float:
    """Milliseconds of one kernel on a board."""
    work = workload(KernelTable([kernel]), board, precision)
    parts = kernel_ms(work, constants)
    factor = math.exp(constants.boards.get(board.name, 0.0))
    return factor * float(sum(part[0] for part in parts.values()))


def read_measurements(path: str | Path) -> list[Measurement]:
    """Return the TensorRT rows of an `edge bench --json` file, with their networks.

    The graph of an engine is the ONNX file of the same name, beside the engine or beside `path`.

    Raises:
        DataError: not a file of `edge bench`, or no row of TensorRT.
        ArtifactError: the graph of a row is not there.
    """
    try:
        rows = json.loads(Path(path).read_text("utf-8"))["rows"]
        wanted = [
            (Path(row["artifact"]), str(row["precision"]), 1e3 / float(row["fps_engine"]))
            for row in rows
            if str(row["backend"]).startswith("TensorRT ")
        ]
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise DataError(f"{path}: not what edge bench --json writes: {error}") from error
    if not wanted:
        raise DataError(f"{path}: no row of TensorRT in it; measure an engine on the board")
    found = []
    for artifact, precision, ms in wanted:
        if precision not in PRECISIONS or not 0 < ms < math.inf:
            raise DataError(f"{path}: {artifact.name}: {precision}, {ms} ms; measure it again")
        graph = next(
            (
                folder / f"{artifact.stem}.onnx"
                for folder in (artifact.parent, Path(path).parent)
                if (folder / f"{artifact.stem}.onnx").is_file()
            ),
            None,
        )
        if graph is None:
            raise ArtifactError(
                f"{path}: the graph {artifact.stem}.onnx of a measured row is not there; "
                "put it beside the file"
            )
        found.append(Measurement(read_network(graph), precision, ms))
    return found
