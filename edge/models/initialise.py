"""Random weights that keep activations in range, for timing, quantization and training.

Convolutions are drawn after He et al. (arXiv:1502.01852). Batch norm statistics are then measured
on random pictures, so that activations have the spread of a trained network at any depth.
"""

from __future__ import annotations

import torch
from torch import nn

from edge.spec import HeadSpec, InputContract, ModelSpec

__all__ = ["initialise"]

# A trained detector finds few objects; sigmoid(-5) leaves hardly a cell above usual thresholds.
_OBJECTNESS_BIAS = -5.0
_PROBE_PIXELS = 192


def initialise(model: nn.Module, spec: ModelSpec, seed: int) -> None:
    """Fill `model` in place; the same seed gives the same weights. Torch's own state is kept."""
    generator = torch.Generator().manual_seed(seed)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for conv in convolutions:
        _draw(conv, generator)
    pictures = _pictures(spec.contract, generator)
    with torch.no_grad():
        convolutions[0].weight /= pictures.square().mean().sqrt()
    for head in spec.heads:
        _quieten(_head_module(model, head.tensor), head, len(spec.classes))
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        _measure_norms(model, pictures)


def _head_module(model: nn.Module, tensor: str) -> nn.Module:
    """Return what makes a head: the module of that name, or the convolution of its layer."""
    layer = model.get_submodule(tensor.rpartition(".")[0])
    before = getattr(layer, "conv", None)
    return before if isinstance(before, nn.Module) else model.get_submodule(tensor)


def _draw(conv: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        fan_in = conv.weight[0].numel()
        conv.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
        if conv.bias is not None:
            conv.bias.zero_()


def _quieten(module: nn.Module, head: HeadSpec, classes: int) -> None:
    """Make a head find few boxes: half the usual spread of outputs, and a low objectness."""
    bias = getattr(module, "bias", None)
    if not isinstance(module, nn.Conv2d) or bias is None:
        return
    anchors = len(head.anchors)
    with torch.no_grad():
        module.weight *= 0.5
        if head.kind == "convdet":
            bias[anchors * classes : anchors * (classes + 1)] = _OBJECTNESS_BIAS
        else:
            bias.view(anchors, 5 + classes)[:, 4] = _OBJECTNESS_BIAS


def _pictures(contract: InputContract, generator: torch.Generator) -> torch.Tensor:
    """Return two pictures of noise as network inputs, small ones where the strides allow."""
    small = all(side % 32 == 0 and side > _PROBE_PIXELS for side in contract.hw)
    hw = (_PROBE_PIXELS, _PROBE_PIXELS) if small else contract.hw
    levels = 255 * torch.rand((2, 3, *hw), generator=generator)
    mean, scale = (torch.tensor(v).view(3, 1, 1) for v in (contract.mean, contract.scale))
    return (levels - mean) * scale


def _measure_norms(model: nn.Module, pictures: torch.Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(pictures)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()
