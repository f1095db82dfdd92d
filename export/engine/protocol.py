"""What the caller of a build and the builder's own process say to each other, as lines of JSON.

The caller writes one `ProbeRequest` or `BuildRequest` to the child's stdin. The child answers with
events: any number of `Step`, then `Builders`, `Built` or `Failed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edge.runtime.device import DriverFacts
from export.engine.layer_report import DlaLayers, LayerInfo, LayerSummary

__all__ = [
    "BuildRequest",
    "BuilderInfo",
    "Builders",
    "Built",
    "DlaScales",
    "Failed",
    "ProbeRequest",
    "Step",
]


@dataclass(frozen=True)
class ProbeRequest:
    """Say which builders are here."""

    probe: Literal["builders"] = "builders"


@dataclass(frozen=True)
class DlaScales:
    """What a build for a DLA takes besides the graph.

    Attributes:
        core: of the DLA, from 0.
        amax: clipping threshold of every tensor.
        cache: the file to leave the calibration cache in.
    """

    core: int
    amax: Mapping[str, float]
    cache: str


@dataclass(frozen=True)
class BuildRequest:
    """Build the engine of `onnx` and leave it in the file `plan`.

    Attributes:
        compute_capabilities: targets of TensorRT-RTX such as `SM86`.
        sparse: take kernels for weights with the 2:4 pattern.
    """

    builder: Literal["auto", "tensorrt", "rtx"]
    workspace_mib: int
    onnx: str
    plan: str
    compute_capabilities: tuple[str, ...] = ()
    sparse: bool = False
    dla: DlaScales | None = None


@dataclass(frozen=True)
class BuilderInfo:
    """A builder and whether it can build here; `reason` says why not."""

    name: str
    version: str
    ok: bool
    reason: str


@dataclass(frozen=True)
class Builders:
    """Answer to a `ProbeRequest`."""

    builders: tuple[BuilderInfo, ...]


@dataclass(frozen=True)
class Step:
    """The build has come this far in one of its phases."""

    phase: str
    step: int
    of: int


@dataclass(frozen=True)
class Built:
    """The engine is built.

    Attributes:
        builder, version: `tensorrt` or `tensorrt_rtx`, and its version.
        reason: why that builder was taken.
        gpu: the first GPU, where there is one.
        seconds: of parsing and building.
        peak_rss_mib: the most memory that the builder's process held.
        summary, layers: what the builder made of the graph.
        sparsity: TensorRT's own lines about sparse weights.
        dla: which layers a DLA takes, of a build for one.
    """

    builder: str
    version: str
    reason: str
    gpu: DriverFacts | None
    seconds: float
    peak_rss_mib: int
    summary: LayerSummary
    layers: tuple[LayerInfo, ...]
    sparsity: tuple[str, ...] = ()
    dla: DlaLayers | None = None


@dataclass(frozen=True)
class Failed:
    """There is no engine.

    Attributes:
        kind: name of the class in `edge.errors`.
        text: what is wrong and what to do.
        cancelled: whether the caller asked for the end.
    """

    kind: str
    text: str
    cancelled: bool
