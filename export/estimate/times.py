"""Milliseconds of kernels on a board: operations, bytes, tiles, waves and launches.

A product of matrices (a convolution is one, too) is cut into tiles, each of which one
multiprocessor computes; a last wave that is not full costs nearly as much as a full one. A tile
takes the time of its products on the tensor cores plus that of staging its operands, and a
beginning and an end. TensorRT times many tilings and keeps the fastest, and so does this. Memory
traffic runs beside the products. All constants of `Constants` are fitted to published figures by
`tools/estimate/fit.py`; the rest is from the boards' data sheets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.estimate.kernels import Kernel

__all__ = [
    "PRECISIONS",
    "Board",
    "Constants",
    "KernelTable",
    "Workload",
    "bound_by",
    "kernel_ms",
    "network_ms",
    "overhead_ms",
    "workload",
]

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

PRECISIONS = ("fp32", "fp16", "int8")
_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
# Channels are stored in groups of so many; a product's sum is cut into steps of so many.
_GRID = {"fp32": 4.0, "fp16": 8.0, "int8": 32.0}
_FEW = 4
_STEP = {"fp32": 8.0, "fp16": 16.0, "int8": 32.0}
# FP32 runs as TF32 on tensor cores, at half the rate of FP16.
_RATE = {"fp32": 0.5, "fp16": 1.0, "int8": 2.0}
_TILES = ((256, 128), (128, 128), (256, 64), (128, 64), (64, 64), (128, 32), (64, 32))
# Rows, columns, and how many tiles share the sum of one.
_TILINGS = tuple((*tile, split) for tile in _TILES for split in (1, 2, 4))
_SPLIT_COST = np.array([[1.0 if split == 1 else 1.5] for *_, split in _TILINGS])
# How much of a last wave's idle multiprocessors is lost; the rest runs beside other tiles.
_WAVE = 0.7
# Bandwidth of the L2 cache over that of the memory.
_CACHE_GAIN = 3.0
# Share of the CUDA cores' peak that a depthwise convolution reaches.
_CUDA_SHARE = 0.5


@dataclass(frozen=True)
class Board:
    """A board in one power mode, as its data sheet describes it.

    Attributes:
        name: as `--board` takes it.
        title: as its vendor calls it.
        family: ampere or blackwell.
        multiprocessors: of the GPU.
        gpu_mhz, cpu_mhz: highest clocks of the mode.
        tensor_macs: FP16 multiply-adds per clock and multiprocessor on tensor cores, dense.
        memory_gbs: bandwidth, 10^9 bytes per second.
        cache_mib: L2 cache of the GPU.
        watts: power budget of the mode.
        streams_1080p30: H.265 streams of that size that its decoder takes.
        source: where these figures are from.
    """

    name: str
    title: str
    family: str
    multiprocessors: int
    gpu_mhz: float
    cpu_mhz: float
    tensor_macs: float
    memory_gbs: float
    cache_mib: float
    watts: float
    streams_1080p30: int
    source: str


@dataclass(frozen=True)
class Constants:
    """What the fit finds; each is a share of a peak, a count of cycles, or a time.

    Attributes:
        tensor: share of the tensor cores' peak within a tile's main loop.
        tf32: share of that which FP32 reaches as TF32.
        staging: bytes per clock and multiprocessor at which tiles are loaded.
        tile_cycles: beginning and end of a tile.
        memory: share of the memory's bandwidth.
        cache: share of the L2 cache in which activations stay from one kernel to the next.
        kernel_cycles: of the GPU between two kernels.
        launch_us: of the CPU per kernel, at 1 GHz.
        swish: share of the swishes that run as kernels of their own in FP32 and FP16.
        swish_int8: the same in INT8.
        reformat: kernels that change the layout, per change between INT8 and float.
        call_ms: of a call besides its kernels, with a CPU of 1 GHz.
        blackwell_int8: share of INT8's rate that Blackwell reaches beyond the shares above.
        boards: logarithm of a factor per board, near zero.
    """

    tensor: float = 0.8
    tf32: float = 0.9
    staging: float = 64.0
    tile_cycles: float = 1500.0
    memory: float = 0.7
    cache: float = 0.5
    kernel_cycles: float = 3000.0
    launch_us: float = 3.0
    swish: float = 0.5
    swish_int8: float = 0.3
    reformat: float = 1.0
    call_ms: float = 0.5
    blackwell_int8: float = 1.0
    boards: dict[str, float] = field(default_factory=dict)


class KernelTable:
    """Kernels as one array a field, for a whole network at once.

    Args:
        kernels: in any order.
        counts: how often each occurs; by default once.
    """

    def __init__(self, kernels: Sequence[Kernel], counts: Sequence[int] | None = None) -> None:
        self.kernels = tuple(kernels)
        self.count: Array = np.array(counts or [1] * len(kernels), np.float64)

        def column(name: str) -> Array:
            return np.array([float(getattr(one, name)) for one in kernels])

        self.m, self.n, self.k = column("m"), column("n"), column("k")
        self.groups, self.channels = column("groups"), column("channels")
        self.read, self.written = column("read"), column("written")
        self.weights, self.swish = column("weights"), column("swish")
        self.quantizable, self.boundary = column("quantizable"), column("boundary")
        kinds = np.array([one.kind for one in kernels])
        self.product: Flags = np.isin(kinds, ("conv", "matmul"))
        self.grouped: Flags = kinds == "grouped"
        self.matmul: Flags = kinds == "matmul"


@dataclass(frozen=True)
class Workload:
    """What of a network, a board and a precision does not depend on the constants.

    Attributes:
        board, precision: as asked for.
        count: of each kernel.
        products, staged, waves: per tiling and kernel: multiply-adds of a tile, bytes it loads,
            and how many tiles a multiprocessor computes one after the other.
        product: whether the kernel is a product of matrices.
        depthwise: cycles of kernels that run on CUDA cores.
        moved: bytes of activations that a kernel moves.
        weights: bytes of its weights.
        gated: bytes of its swish.
        reformatted: bytes of a change of layout before it.
        swish: 0 or 1.
        rate: of the tensor cores at this kernel's precision over FP16.
    """

    board: Board
    precision: str
    count: Array
    products: Array
    staged: Array
    waves: Array
    product: Flags
    depthwise: Array
    moved: Array
    weights: Array
    gated: Array
    reformatted: Array
    swish: Array
    rate: Array


def _up(values: Array, grid: Array) -> Array:
    found: Array = np.ceil(values / grid) * grid
    return found


def workload(table: KernelTable, board: Board, precision: str, rest: str = "fp32") -> Workload:
    """Prepare a network for `kernel_ms`.

    Args:
        table: its kernels.
        board: on which it runs.
        precision: fp32, fp16 or int8.
        rest: what runs in INT8's place where a kernel cannot; engines that calibrate without FP16
            take fp32.
    """
    low = (table.quantizable > 0) & (precision == "int8")
    other = rest if precision == "int8" else precision

    def by(values: dict[str, float]) -> Array:
        return np.where(low, values["int8"], values[other])

    size, grid = by(_BYTES), by(_GRID)
    channels = np.maximum(table.channels, 1)
    filters = np.maximum(table.n * np.where(table.grouped, table.groups, 1), 1)
    # What a camera delivers has layouts of its own.
    few = np.where(channels <= _FEW, float(_FEW), grid)
    entering = np.where((channels > 1) & ~table.matmul, _up(channels, few) / channels, 1.0)
    convolution = (table.product | table.grouped) & ~table.matmul
    leaving = np.where(convolution, _up(filters, grid) / filters, entering)
    written = table.written * leaving * size
    k = _up(np.maximum(table.k, 1), by(_STEP))
    rows, columns, split = (np.array(one)[:, None] for one in zip(*_TILINGS, strict=True))
    depth = np.ceil(k / split / 32) * 32
    tiles = np.ceil(table.m / rows) * np.ceil(table.n / columns) * table.groups * split
    waves = tiles / board.multiprocessors
    waves = np.where(waves <= 1, 1.0, _WAVE * np.ceil(waves) + (1 - _WAVE) * waves)
    lanes = board.multiprocessors * 128 * _CUDA_SHARE
    return Workload(
        board,
        precision,
        table.count,
        depth * rows * columns,
        depth * (rows + columns) * size,
        waves,
        table.product,
        np.where(table.grouped, table.m * table.n * table.k * table.groups / lanes, 0.0),
        table.read * entering * size + written,
        table.weights * size,
        2 * written,
        np.where(table.boundary > 0, table.read * 5.0, 0.0) * (precision == "int8"),
        table.swish,
        by(_RATE),
    )


def kernel_ms(work: Workload, constants: Constants) -> dict[str, Array]:
    """Milliseconds of each kernel by cause, each occurrence: tensor, memory, launch.

    The parts add up to the kernel's time: products and memory traffic overlap in part, and the
    time that is left of the overlap is shared between them by their squares.
    """
    board = work.board
    ms_per_cycle = 1e-3 / board.gpu_mhz
    share = constants.tensor * np.where(work.rate == 0.5, constants.tf32, 1.0)
    if board.family == "blackwell":
        share = share * np.where(work.rate == 2.0, constants.blackwell_int8, 1.0)
    macs = board.tensor_macs * work.rate * share
    cycles = work.waves * (
        work.products / macs + work.staged / constants.staging + constants.tile_cycles * _SPLIT_COST
    )
    compute = np.where(work.product, cycles.min(axis=0), work.depthwise) * ms_per_cycle
    bytes_per_ms = board.memory_gbs * 1e6 * constants.memory
    kept = board.cache_mib * 2**20 * constants.cache

    def traffic(moved: Array) -> Array:
        hit = 1 / (1 + (moved / kept) ** 2)
        return moved * (1 - hit * (1 - 1 / _CACHE_GAIN)) / bytes_per_ms

    memory = traffic(work.moved) + work.weights / bytes_per_ms
    launch = constants.kernel_cycles * ms_per_cycle + constants.launch_us / board.cpu_mhz
    both = np.sqrt(compute**2 + memory**2)
    weight = compute**2 / np.maximum(both**2, 1e-30)
    swishes = work.swish * (constants.swish_int8 if work.precision == "int8" else constants.swish)
    changes = constants.reformat * (work.reformatted > 0)
    return {
        "tensor": both * weight,
        "memory": both * (1 - weight)
        + swishes * traffic(work.gated)
        + changes * work.reformatted / bytes_per_ms,
        "launch": launch * (1 + swishes + changes),
    }


def overhead_ms(board: Board, constants: Constants) -> float:
    """Milliseconds of a call besides its kernels."""
    return constants.call_ms * 1000.0 / board.cpu_mhz


def network_ms(work: Workload, constants: Constants) -> float:
    """Milliseconds of the whole network."""
    total = sum(float(part @ work.count) for part in kernel_ms(work, constants).values())
    factor = float(np.exp(constants.boards.get(work.board.name, 0.0)))
    return factor * (total + overhead_ms(work.board, constants))


def bound_by(parts: dict[str, Array], count: Array, overhead: float) -> str:
    """What takes the largest share of the time: tensor cores, memory or launches."""
    total = {name: float(np.sum(value * count)) for name, value in parts.items()}
    total["launch"] += overhead
    largest = max(total, key=lambda name: total[name])
    return {"tensor": "tensor cores", "memory": "memory", "launch": "launches"}[largest]
