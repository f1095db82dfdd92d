"""Detectors without batch norms: each is folded into the convolution before it.

What is left is a weight and a bias for each convolution, as in the ONNX files.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg
from edge.models.hooks import hooked
from edge.models.squeezedet import SqueezeDet

__all__ = ["fold_norms", "has_norms", "norm_gains", "unfold_norms", "without_norms"]


def without_norms(module: nn.Module) -> nn.Module:
    """Return the same architecture without batch norms, its weights not yet set, in eval mode.

    Raises:
        TypeError: neither a Darknet nor a SqueezeDet.
    """
    if isinstance(module, SqueezeDet):
        return SqueezeDet(replace(module.config, batch_norm=False, pyramid_norm=False)).eval()
    if not isinstance(module, Darknet):
        raise TypeError(f"{type(module).__name__} is neither Darknet nor SqueezeDet")
    text = re.sub(r"(?m)^(\s*batch_normalize\s*=\s*)\d+", r"\g<1>0", module.cfg.text)
    return Darknet(parse_cfg(text, module.cfg.source)).eval()


def fold_norms(module: nn.Module) -> nn.Module:
    """Return a new detector with the same outputs, in eval mode, without batch norms.

    Raises:
        TypeError: neither a Darknet nor a SqueezeDet.
    """
    folded = without_norms(module)
    for path, conv in folded.named_modules():
        if isinstance(conv, nn.Conv2d):
            norm = _norm_beside(module, path)
            _fold(conv, module.get_submodule(path), norm)
    return folded


def has_norms(module: nn.Module) -> bool:
    """Return whether any convolution is followed by a batch norm."""
    return any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def norm_gains(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what `fold_norms` multiplies each convolution's weights by: (O,) by its path."""
    found = {}
    for path, conv in module.named_modules():
        norm = _norm_beside(module, path) if isinstance(conv, nn.Conv2d) else None
        if norm is not None:
            found[path] = _gain(norm)
    return found


def unfold_norms(folded: nn.Module, like: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return a detector that has the batch norms of `like` and computes what `folded` does.

    It can be trained further. Each norm gets the statistics of `images`, (N, 3, H, W), and the
    scale and shift that undo them.
    """
    normed = copy.deepcopy(like).eval()
    hooks = []
    for path, conv in folded.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        target, norm = normed.get_submodule(path), _norm_beside(normed, path)
        with torch.no_grad():
            target.weight.copy_(conv.weight)
            if norm is None:
                target.bias.copy_(conv.bias)
        if norm is not None:
            hooks.append(norm.register_forward_pre_hook(_undo(conv.bias.detach())))
    with hooked(hooks), torch.no_grad():
        normed(images)
    return normed


def _undo(bias: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
    def before(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), unbiased=False)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean + bias)

    return before


def _norm_beside(module: nn.Module, path: str) -> nn.Module | None:
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), "norm", None) if name == "conv" else None


def _gain(norm: nn.Module) -> torch.Tensor:
    return norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()


def _fold(target: nn.Module, conv: nn.Module, norm: nn.Module | None) -> None:
    weight = conv.weight.double()
    bias = torch.zeros(len(weight)).double() if conv.bias is None else conv.bias.double()
    if norm is not None:
        gain = _gain(norm)
        weight = weight * gain[:, None, None, None]
        bias = (bias - norm.running_mean.double()) * gain + norm.bias.double()
    with torch.no_grad():
        target.weight.copy_(weight)
        target.bias.copy_(bias)
