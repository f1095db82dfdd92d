"""Operations of the detectors that torch.nn has no module for; tensors are (N, C, H, W).

Each does one thing, holds plain numbers and is a leaf of `edge.models.tracing`, so a traced
network is a graph of module calls alone and every value has the path of the module that made it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

__all__ = [
    "ACTIVATIONS",
    "Add",
    "Avgpool",
    "ChannelGroup",
    "Concat",
    "DarknetMaxPool",
    "Multiply",
    "PaddedConv2d",
    "Reorg",
    "SquaredSizes",
    "activation",
]

# Darknet's names; `linear` needs no module.
ACTIVATIONS: dict[str, Callable[[], nn.Module | None]] = {
    "linear": lambda: None,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "logistic": nn.Sigmoid,
    "mish": nn.Mish,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}


def activation(name: str) -> nn.Module | None:
    """Return the module of a Darknet activation, or None for `linear`, which needs none.

    Raises:
        KeyError: no such activation.
    """
    return ACTIVATIONS[name]()


class Concat(nn.Module):
    """Joins tensors along the channels."""

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.cat(tensors, dim=1)


class Add(nn.Module):
    """Adds two tensors of one shape."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right


class Multiply(nn.Module):
    """Multiplies (N, C, H, W) by (N, C, 1, 1) or (N, C, H, W)."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left * right


class ChannelGroup(nn.Module):
    """Takes the channels from `start` up to, but not including, `stop`."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start = start
        self.stop = stop

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:, self.start : self.stop]

    def extra_repr(self) -> str:
        return f"{self.start}:{self.stop}"


class Reorg(nn.Module):
    """Darknet's `[reorg]`: C x H x W to C*s*s x H/s x W/s.

    This is not space-to-depth: Darknet's `reorg_cpu` reads the buffer as C/s/s x H*s x W*s, and
    trained weights expect that order.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        n, c, h, w = tensor.shape
        s = self.stride
        folded = tensor.reshape(n, c * h // (s * s), s, w, s).permute(0, 2, 4, 1, 3)
        return folded.reshape(n, c * s * s, h // s, w // s)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class PaddedConv2d(nn.Conv2d):
    """A convolution with its zero padding given per side, which nn.Conv2d cannot express.

    Attributes:
        pads: top, left, bottom, right, pixels; ONNX's order. `padding` stays 0.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int,
        stride: int,
        pads: tuple[int, int, int, int],
        bias: bool = True,
    ) -> None:
        super().__init__(channels, filters, size, stride, bias=bias)
        self.pads = pads

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        top, left, bottom, right = self.pads
        return super().forward(functional.pad(tensor, (left, right, top, bottom)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pads={self.pads}"


class DarknetMaxPool(nn.Module):
    """Max pooling whose total `padding` per axis has its smaller half in front, filled with -inf.

    Darknet pads `size - 1` pixels in total, so size 2 with stride 1 pads right and bottom and keeps
    the size. TensorFlow's SAME splits in the same way, but its total depends on the input's size.

    Attributes:
        size, stride: pixels.
        pads: top, left, bottom, right, pixels; ONNX's order.
    """

    def __init__(self, size: int, stride: int, padding: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.size = size
        self.stride = stride
        down, across = padding if padding is not None else (size - 1, size - 1)
        self.pads = (down // 2, across // 2, down - down // 2, across - across // 2)

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        top, left, bottom, right = self.pads
        if any(self.pads):
            tensor = functional.pad(tensor, (left, right, top, bottom), value=float("-inf"))
        return functional.max_pool2d(tensor, self.size, self.stride)

    def extra_repr(self) -> str:
        return f"size={self.size}, stride={self.stride}, pads={self.pads}"


class SquaredSizes(nn.Module):
    """Turns the raw head of a `[yolo]` with `new_coords` into that of one without.

    Such a head means a width of (2 logistic(t))^2 anchors, not of exp(t). Here its t become the
    logarithms of that, ln 4 - 2 softplus(-t), so that every decoder and loss reads it like the
    others; the other channels pass unchanged.

    Attributes:
        anchors, numbers: the head has `anchors` times `numbers` channels, and t is the third and
            fourth of each group.
    """

    is_size: torch.Tensor

    def __init__(self, anchors: int, numbers: int) -> None:
        super().__init__()
        self.anchors, self.numbers = anchors, numbers
        is_size = torch.zeros(anchors, numbers, dtype=torch.bool)
        is_size[:, 2:4] = True
        self.register_buffer("is_size", is_size.reshape(1, -1, 1, 1), persistent=False)

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        sizes = math.log(4) - 2 * functional.softplus(-tensor)
        return torch.where(self.is_size, sizes, tensor)

    def extra_repr(self) -> str:
        return f"anchors={self.anchors}, numbers={self.numbers}"


class Avgpool(nn.Module):
    """Takes the mean over the whole picture: (N, C, 1, 1)."""

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mean(dim=(2, 3), keepdim=True)
