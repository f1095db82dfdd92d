"""What a detector costs as a function of its widths: bytes, multiply-adds, milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from edge.compress.channels.wiring import Wiring

__all__ = ["ConvShape", "Cost", "Site", "filters", "megabytes", "read_sites"]

# From a convolution's path, input and output channels to what it costs.
Cost = Callable[[str, int, int], float]


@dataclass(frozen=True, order=True)
class ConvShape:
    """A convolution as far as its time goes; `pads` are top, left, bottom, right, pixels."""

    channels: int
    filters: int
    size_hw: tuple[int, int]
    stride_hw: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int
    input_hw: tuple[int, int]
    activation: str


@dataclass(frozen=True)
class Site:
    """Where a convolution stands, whatever its widths.

    Attributes:
        full: its shape in the network as it is.
    """

    full: ConvShape

    def at(self, channels: int, filters: int) -> ConvShape:
        """Its shape at other widths; a grouped one keeps the channels of a group."""
        full = self.full
        groups = 1 if full.groups == 1 else max(1, channels * full.groups // full.channels)
        return ConvShape(
            channels,
            filters,
            full.size_hw,
            full.stride_hw,
            full.pads,
            groups,
            full.input_hw,
            full.activation,
        )


def read_sites(wiring: Wiring, hw: tuple[int, int]) -> dict[str, Site]:
    """The convolutions of a network that takes pictures of `hw` pixels, by path."""
    with torch.no_grad():
        ShapeProp(wiring.graph).propagate(torch.zeros(1, 3, *hw))
    entering = {
        node.target: tuple(node.args[0].meta["tensor_meta"].shape[2:])
        for node in wiring.graph.graph.nodes
        if node.op == "call_module"
    }
    modules = dict(wiring.graph.named_modules())
    return {
        path: Site(_shape(conv, entering[path], modules[wiring.ends[path]]))
        for path, conv in wiring.convolutions.items()
    }


def _shape(conv: nn.Conv2d, hw: tuple[int, ...], end: nn.Module) -> ConvShape:
    down, across = conv.padding
    return ConvShape(
        conv.in_channels,
        conv.out_channels,
        tuple(conv.kernel_size),
        tuple(conv.stride),
        getattr(conv, "pads", (down, across, down, across)),
        conv.groups,
        (hw[0], hw[1]),
        "" if isinstance(end, (nn.Conv2d, nn.BatchNorm2d)) else type(end).__name__,
    )


def megabytes(sites: dict[str, Site]) -> Cost:
    """Millions of bytes of FP32 weights and biases, batch norms folded."""

    def cost(path: str, channels: int, filters: int) -> float:
        shape = sites[path].at(channels, filters)
        kernel = shape.size_hw[0] * shape.size_hw[1] * channels // shape.groups
        return 4e-6 * filters * (kernel + 1)

    return cost


def filters(_path: str, _channels: int, filters: int) -> float:
    """Output channels."""
    return float(filters)
