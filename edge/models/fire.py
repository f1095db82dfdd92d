"""SqueezeNet's fire module (Iandola et al., arXiv:1602.07360) and its convolutions."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from edge.models.blocks import Concat

__all__ = ["Fire", "Triple", "activated", "conv_act"]

# Filters of a fire module: squeeze, expand 1x1, expand 3x3.
Triple = tuple[int, int, int]


def conv_act(channels: int, filters: int, size: int, normed: bool) -> nn.Sequential:
    """A convolution that keeps the size, batch norm if `normed`, ReLU."""
    conv = nn.Conv2d(channels, filters, size, padding=size // 2, bias=not normed)
    return activated(conv, normed)


def activated(conv: nn.Conv2d, normed: bool) -> nn.Sequential:
    """`conv`, batch norm if `normed`, ReLU, named conv, norm and act."""
    modules = OrderedDict[str, nn.Module](conv=conv)
    if normed:
        modules["norm"] = nn.BatchNorm2d(conv.out_channels)
    modules["act"] = nn.ReLU()
    return nn.Sequential(modules)


class Fire(nn.Module):
    """A fire module: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, channels: int, widths: Triple, normed: bool = False) -> None:
        super().__init__()
        squeeze, expand1, expand3 = widths
        self.squeeze = conv_act(channels, squeeze, 1, normed)
        self.expand1 = conv_act(squeeze, expand1, 1, normed)
        self.expand3 = conv_act(squeeze, expand3, 3, normed)
        self.concat = Concat()

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        squeezed = self.squeeze(tensor)
        return self.concat(self.expand1(squeezed), self.expand3(squeezed))
