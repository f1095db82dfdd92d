"""A feature pyramid of fire modules: one head per stride, coarse features handed to finer ones.

After arXiv:1612.03144, with fire modules (arXiv:1602.07360) and concatenation in place of sums.
Its convolutions have batch norm until that is folded, so it can be put on a body that has none.
"""

from __future__ import annotations

import torch
from torch import nn

from edge.models.blocks import Concat, DarknetMaxPool
from edge.models.fire import Fire, Triple, conv_act

__all__ = ["Pyramid"]


class _Merge(nn.Module):
    """A finer level: its own features beside the coarser level's, reduced and enlarged."""

    def __init__(self, fine: int, coarse: int, widths: Triple, normed: bool) -> None:
        super().__init__()
        self.reduce = conv_act(coarse, widths[1], 1, normed)
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        self.concat = Concat()
        self.fire = Fire(fine + widths[1], widths, normed)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        return self.fire(self.concat(fine, self.enlarge(self.reduce(coarse))))


class Pyramid(nn.Module):
    """Features of strides s, 2s, ... to raw heads of strides s, 2s, ..., and one of twice the last.

    Args:
        channels: of the features, fine to coarse.
        fires: one per head, coarse to fine; the coarsest level has two such modules.
        outputs: channels of each head.
        head_size: kernel size of the heads.
        normed: batch norm behind every convolution but the heads.

    Attributes:
        head0, head1, ...: the heads, fine to coarse.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        fires: tuple[Triple, ...],
        outputs: int,
        head_size: int,
        normed: bool = True,
    ) -> None:
        super().__init__()
        widths = [expand1 + expand3 for _, expand1, expand3 in reversed(fires)]
        top = fires[0]
        self.top = nn.Sequential(
            DarknetMaxPool(3, 2, (1, 1)),
            Fire(channels[-1], top, normed),
            Fire(widths[-1], top, normed),
        )
        merges = enumerate(zip(channels, reversed(fires[1:]), strict=True))
        self.merges = nn.ModuleList(
            _Merge(fine, widths[level + 1], fire, normed) for level, (fine, fire) in merges
        )
        for level, width in enumerate(widths):
            head = nn.Conv2d(width, outputs, head_size, padding=head_size // 2)
            self.add_module(f"head{level}", head)

    def forward(self, *features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        level = len(features)
        tensor = self.top(features[-1])
        raw = [self.get_submodule(f"head{level}")(tensor)]
        for level in range(len(features) - 1, -1, -1):
            tensor = self.merges[level](features[level], tensor)
            raw.append(self.get_submodule(f"head{level}")(tensor))
        return tuple(reversed(raw))
