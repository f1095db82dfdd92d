"""INT8 rounding that gradients pass through, number for number what a Q/DQ graph computes.

Activations: levels -128..127 of one scale, as ONNX's QuantizeLinear saturates; the scale's gradient
is that of Esser et al., "Learned step size quantization" (arXiv:1902.08153, equations 3 and 5).
Weights: levels -127..127, one scale for each output channel from its largest weight.
"""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["LOWEST", "QMAX", "TINY", "fake_activation", "fake_weight", "weight_scale"]

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
    """x rounded to levels of `scale` (a float32 scalar); both learn."""
    result: torch.Tensor = _Activation.apply(x, scale)
    return result


def weight_scale(weight: torch.Tensor) -> torch.Tensor:
    """Scale (O,) of weights (O, I, kH, kW); as `export.precision.quantize_weight` has it."""
    peak = weight.detach().flatten(1).abs().amax(dim=1)
    return torch.where(peak > QMAX * TINY, peak / QMAX, torch.ones_like(peak))


def fake_weight(weight: torch.Tensor) -> torch.Tensor:
    """Weights (O, I, kH, kW) rounded to their channels' levels, straight-through."""
    scale = weight_scale(weight)[:, None, None, None]
    result: torch.Tensor = _Weight.apply(weight, scale)
    return result
