"""What a detector costs as a function of its widths: bytes, channels, milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from edge.compress.channels.wiring import Wiring

__all__ = ["ConvShape", "Cost", "filters", "megabytes", "read_shapes"]

# Takes a convolution's path and its numbers of input and output channels.
Cost = Callable[[str, int, int], float]


@dataclass(frozen=True, order=True)
class ConvShape:
    """What the time of a convolution and its activation depends on.

    Attributes:
        channels, filters: numbers of input and output channels.
        size_hw, stride_hw: of the kernel, pixels.
        pads: top, left, bottom, right, pixels.
        groups: number of groups; as many as channels for a depthwise convolution.
        input_hw: size of the feature maps that enter.
        activation: name of the torch module behind it, empty without one.
    """

    channels: int
    filters: int
    size_hw: tuple[int, int]
    stride_hw: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int
    input_hw: tuple[int, int]
    activation: str

    def resized(self, channels: int, filters: int) -> ConvShape:
        """Return the shape with other widths; a grouped one keeps the channels of a group."""
        groups = 1 if self.groups == 1 else max(1, channels * self.groups // self.channels)
        return replace(self, channels=channels, filters=filters, groups=groups)


def read_shapes(wiring: Wiring, hw: tuple[int, int]) -> dict[str, ConvShape]:
    """Return the shapes of a network's convolutions by path, for pictures of `hw` pixels."""
    with torch.no_grad():
        ShapeProp(wiring.graph).propagate(torch.zeros(1, 3, *hw))
    entering = {
        node.target: tuple(node.args[0].meta["tensor_meta"].shape[2:])
        for node in wiring.graph.graph.nodes
        if node.op == "call_module"
    }
    modules = dict(wiring.graph.named_modules())
    return {
        path: _shape(conv, entering[path], modules[wiring.ends[path]])
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


def megabytes(shapes: dict[str, ConvShape]) -> Cost:
    """Return the cost in MB of FP32 weights and biases, batch norms folded."""

    def cost(path: str, channels: int, filters: int) -> float:
        shape = shapes[path].resized(channels, filters)
        kernel = shape.size_hw[0] * shape.size_hw[1] * channels // shape.groups
        return 4e-6 * filters * (kernel + 1)

    return cost


def filters(_path: str, _channels: int, filters: int) -> float:
    """The cost in output channels."""
    return float(filters)
