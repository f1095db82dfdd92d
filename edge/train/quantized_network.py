"""An FP32 ONNX file as a torch module that computes as its INT8 graph will, and can be trained.

The batch norms are folded in the file already, and rounding happens where the Q/DQ pairs will be,
so what is trained is what is exported. Parameters are kept in units in which one learning rate
serves them all: weights in steps of their INT8 scale, biases in what such a step can add to the
output, scales in tenths of their logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.models.onnx_steps import Step, read_constants, read_steps
from edge.optional import require

__all__ = [
    "LOWEST",
    "QMAX",
    "TINY",
    "QuantizedNetwork",
    "Tensors",
    "fake_activation",
    "fake_weight",
    "float_network",
    "weight_scale",
]

Tensors = tuple[torch.Tensor, ...]
_TENTH = 0.1
QMAX = 127
LOWEST = -128
TINY = float(torch.finfo(torch.float32).tiny)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        steps = x / scale
        ctx.save_for_backward(steps)
        return torch.round(steps).clamp_(LOWEST, QMAX) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (steps,) = ctx.saved_tensors
        (gradient,) = gradients
        inside = (steps >= LOWEST) & (steps <= QMAX)
        slope = torch.round(steps).clamp_(LOWEST, QMAX) - torch.where(inside, steps, 0)
        # Keeps a scale's gradient beside those of single weights, whose number it counts for.
        share = 1 / math.sqrt(steps.numel() * QMAX)
        return gradient * inside, (gradient * slope).sum() * share


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.round(weight / scale).clamp_(-QMAX, QMAX) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def fake_activation(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Round x to levels of `scale` (a float32 scalar); gradients reach both."""
    result: torch.Tensor = _Activation.apply(x, scale)
    return result


def weight_scale(weight: torch.Tensor) -> torch.Tensor:
    """Return the scale (O,) of weights (O, I, kH, kW), as `export.graph.precision` makes it."""
    peak = weight.detach().flatten(1).abs().amax(dim=1)
    return torch.where(peak > QMAX * TINY, peak / QMAX, torch.ones_like(peak))


def fake_weight(weight: torch.Tensor) -> torch.Tensor:
    """Round weights (O, I, kH, kW) to their channels' levels; gradients pass straight through."""
    scale = weight_scale(weight)[:, None, None, None]
    result: torch.Tensor = _Weight.apply(weight, scale)
    return result


@dataclass(frozen=True)
class _Conv:
    """Where a convolution's parameters are in the lists; scale -1 keeps it in floating point."""

    weight: int
    scale: int


class QuantizedNetwork(nn.Module):
    """An FP32 graph whose convolutions compute as in INT8, rounded where `insert_qdq` rounds.

    Takes (N, 3, H, W) and returns the raw heads in the file's order.

    Attributes:
        levels: weights (O, I, kH, kW) divided by the INT8 scale that each channel starts with.
        offsets: biases (O,) divided by the most that one weight step can add.
        ranges: ten times the logarithm of each scale divided by its start; one for a group of
            tensors.
    """

    def __init__(
        self, model: Any, amax: Mapping[str, float], *, keep: Collection[str] = ()
    ) -> None:
        """
        Args:
            model: onnx `ModelProto` as `write_onnx` makes it, gains applied.
            amax: clipping threshold of each quantized convolution's input, after sharing; tensors
                of one value are taken to share it.
            keep: names of convolutions that stay in floating point.

        Raises:
            ArtifactError: an operation that edge does not write.
            KeyError: a quantized convolution's input has no threshold.
        """
        super().__init__()
        self.steps: list[Step] = read_steps(model)
        self.input: str = model.graph.input[0].name
        self.outputs: tuple[str, ...] = tuple(output.name for output in model.graph.output)
        self.levels, self.offsets = nn.ParameterList(), nn.ParameterList()
        self.convolutions: dict[str, _Conv] = {}
        nodes = {node.name: node for node in model.graph.node if node.op_type == "Conv"}
        used = [node.input[0] for name, node in nodes.items() if name not in keep]
        values = sorted({amax[name] for name in used})
        self.ranges = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in values)
        starts = [max(value / QMAX, TINY) for value in values]
        self.register_buffer("starts", torch.tensor(starts, dtype=torch.float32))
        self.scale_of: dict[str, int] = {name: values.index(amax[name]) for name in used}
        constants = read_constants(model)
        for name, node in nodes.items():
            self._add(name, [constants.get(i) for i in node.input[1:]], node.input[0], name in keep)

    def _add(self, name: str, given: Sequence[Any], source: str, kept: bool) -> None:
        """Add a convolution's parameters, in their units."""
        at, scale = len(self.levels), -1 if kept else self.scale_of[source]
        weight = torch.from_numpy(np.array(given[0]))
        bias = torch.from_numpy(np.array(given[1])) if len(given) > 1 else torch.zeros(len(weight))
        unit = _power_of_two(weight_scale(weight))
        peak = 1.0 if kept else float(self.starts[scale]) * QMAX
        reach = _power_of_two(unit * peak)
        self.register_buffer(f"unit_{at}", unit)
        self.register_buffer(f"reach_{at}", reach)
        levels = weight / unit[:, None, None, None]
        # Pruned weights stay zero.
        self.register_buffer(f"live_{at}", levels != 0)
        self.levels.append(nn.Parameter(levels))
        self.offsets.append(nn.Parameter(bias / reach))
        self.convolutions[name] = _Conv(at, scale)

    def weight(self, name: str) -> torch.Tensor:
        """Return the weights (O, I, kH, kW) of a convolution, before rounding."""
        at = self.convolutions[name].weight
        unit: torch.Tensor = getattr(self, f"unit_{at}")
        return self.levels[at] * unit[:, None, None, None]

    def bias(self, name: str) -> torch.Tensor:
        """Return the bias (O,) of a convolution."""
        at = self.convolutions[name].weight
        reach: torch.Tensor = getattr(self, f"reach_{at}")
        return self.offsets[at] * reach

    def scale(self, index: int) -> torch.Tensor:
        """Return the INT8 scale of a group of tensors."""
        start: torch.Tensor = self.starts[index]
        return start * torch.exp(self.ranges[index] * _TENTH)

    def amax(self) -> dict[str, float]:
        """Return the clipping threshold of each quantized tensor: 127 scales."""
        with torch.no_grad():
            scales = [float(self.scale(index)) for index in range(len(self.ranges))]
        return {name: scales[index] * QMAX for name, index in self.scale_of.items()}

    def settle(self, amax: Mapping[str, float]) -> None:
        """Set these thresholds and stop training them; in place."""
        with torch.no_grad():
            for name, index in self.scale_of.items():
                self.starts[index] = max(amax[name] / QMAX, TINY)
                self.ranges[index].zero_()
        self.ranges.requires_grad_(False)

    def prune_again(self) -> None:
        """Set the weights that are zero in the file back to zero; in place."""
        with torch.no_grad():
            for at, levels in enumerate(self.levels):
                levels.mul_(getattr(self, f"live_{at}"))

    def forward(self, images: torch.Tensor) -> Tensors:
        """Return the raw heads of images (N, 3, H, W)."""
        values, rounded = {self.input: images}, dict[str, torch.Tensor]()
        for step in self.steps:
            given = [values[name] for name in step.inputs]
            if step.is_conv:
                given = self._operands(step, given[0], rounded)
            values[step.output] = step.compute(*given)
        return tuple(values[name] for name in self.outputs)

    def _operands(
        self, step: Step, x: torch.Tensor, rounded: dict[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        weight, bias = self.weight(step.name), self.bias(step.name)
        index = self.convolutions[step.name].scale
        if index < 0:
            return [x, weight, bias]
        source = step.inputs[0]
        if source not in rounded:
            rounded[source] = fake_activation(x, self.scale(index))
        return [rounded[source], fake_weight(weight), bias]

    def store(self, model: Any) -> None:
        """Write the weights and biases into the `ModelProto` that this was read from, in place."""
        to_proto = require("onnx.numpy_helper").from_array
        constants = {initializer.name: initializer for initializer in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Conv":
                for name, value in zip(
                    node.input[1:], (self.weight(node.name), self.bias(node.name)), strict=False
                ):
                    constants[name].CopyFrom(to_proto(_array(value), name))


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().numpy()
    return array


def _power_of_two(value: torch.Tensor) -> torch.Tensor:
    """Return the nearest power of two; dividing and multiplying by it loses no bit."""
    return torch.exp2(torch.round(torch.log2(value)))


def float_network(model: Any) -> QuantizedNetwork:
    """Return the FP32 graph as it is, frozen: the teacher."""
    keep = [node.name for node in model.graph.node if node.op_type == "Conv"]
    network = QuantizedNetwork(model, {}, keep=keep)
    network.eval().requires_grad_(False)
    return network
