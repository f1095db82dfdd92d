"""How much each channel matters, by the path of its convolution; more is more important."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.compress.channels.wiring import Family, Wiring
from edge.errors import CompressionError
from edge.models.hooks import hooked
from edge.train.losses.ciou import Loss

__all__ = ["Importances", "gamma", "l1", "of_family", "taylor"]

Importances = dict[str, NDArray[np.float64]]


def l1(wiring: Wiring) -> Importances:
    """Return the sum of each kernel's magnitudes (arXiv:1608.08710), batch norm folded in."""
    modules = dict(wiring.graph.named_modules())
    found = {}
    for path, conv in wiring.convolutions.items():
        size = conv.weight.detach().double().abs().sum(dim=(1, 2, 3))
        if path in wiring.norms:
            norm = modules[wiring.norms[path]]
            gain = norm.weight.detach().double().abs()
            size = size * gain / (norm.running_var.double() + norm.eps).clamp(min=1e-12).sqrt()
        found[path] = size.numpy()
    return found


def gamma(wiring: Wiring) -> Importances:
    """Return the magnitude of each batch norm's scale (network slimming, arXiv:1708.06519).

    Raises:
        CompressionError: a convolution that may be pruned has no batch norm.
    """
    modules = dict(wiring.graph.named_modules())
    for family in wiring.families:
        for path in family.members:
            if path not in wiring.norms:
                raise CompressionError(
                    f"{path} has no batch norm and so no gamma; take another importance, such as l1"
                )
    return {
        path: modules[norm].weight.detach().double().abs().numpy()
        for path, norm in wiring.norms.items()
    }


def taylor(
    model: nn.Module,
    wiring: Wiring,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss: Loss,
) -> Importances:
    """Return the mean square over images of the loss's first-order change without a channel.

    It is that of a gate behind the batch norm (arXiv:1906.10771): the sum over pixels of output
    times gradient.

    Args:
        wiring: of `model`, which stays in eval mode.
        batches: images and targets (M, 6), see `edge.train.losses.targets`.

    Raises:
        ValueError: no images.
    """
    outputs: dict[str, torch.Tensor] = {}
    sums: Importances = {}
    hooks = [
        model.get_submodule(wiring.norms.get(path, path)).register_forward_hook(
            partial(_keep, outputs, path)
        )
        for path in wiring.ends
    ]
    seen = 0
    with hooked(hooks):
        for images, targets in batches:
            total, _ = loss(model(images), targets)
            paths = list(outputs)
            gradients = torch.autograd.grad(total, [outputs[p] for p in paths], allow_unused=True)
            for path, gradient in zip(paths, gradients, strict=True):
                change = _change(outputs[path], gradient)
                sums[path] = sums.get(path, 0.0) + change
            seen += len(images)
    if not seen:
        raise ValueError("Taylor importances take at least one image")
    return {path: change / seen for path, change in sums.items()}


def _keep(
    outputs: dict[str, torch.Tensor],
    path: str,
    _module: nn.Module,
    _inputs: Any,
    output: torch.Tensor,
) -> None:
    outputs[path] = output


def _change(output: torch.Tensor, gradient: torch.Tensor | None) -> NDArray[np.float64]:
    if gradient is None:
        return np.zeros(output.shape[1])
    gates = (output * gradient).sum(dim=(2, 3)).detach().double()
    squares: NDArray[np.float64] = gates.square().sum(dim=0).numpy()
    return squares


def of_family(importance: Importances, wiring: Wiring, family: Family) -> NDArray[np.float64]:
    """Return the importance of each label of `family`, summed over all channels that leave with it.

    Raises:
        CompressionError: an importance is not a number.
    """
    found = np.zeros(len(family.labels))
    place = {label: index for index, label in enumerate(family.labels)}
    for path in family.members:
        for channel, label in enumerate(wiring.leaves[path].tolist()):
            if label in place:
                found[place[label]] += importance[path][channel]
    if np.isnan(found).any():
        raise CompressionError(f"{next(iter(family.members))}: importance is not a number")
    return found
