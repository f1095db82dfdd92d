"""Fit the weights of a pruned network, layer by layer, to what the full network computes.

Linear regression goes from the remaining channels, as they are in the pruned network, to each
convolution's outputs in the full one (arXiv:1707.06168, section 3.1). It takes no labels and no
gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.wiring import read_wiring
from edge.models.hooks import hooked

__all__ = ["refit"]

# Times the mean square of the inputs: pulls what the pictures leave open to the old weights.
_RIDGE = 1e-2
_POINTS = 192
# With more inputs to one output than this, the equations take gigabytes and minutes.
_MOST = 5000


class _Reached(Exception):
    """Ends a forward pass: the rest of the network need not be computed."""


def refit(
    pruned: nn.Module,
    full: nn.Module,
    plan: PrunePlan,
    images: Sequence[torch.Tensor],
    follow: Any = iter,
) -> None:
    """Fit the convolutions of `pruned` in place, in the order of the data.

    Grouped and very wide convolutions keep their weights. The constant of the fit goes into the
    bias or the batch norm.

    Args:
        pruned: `prune_channels(full, plan)`, in eval mode.
        images: batches (N, 3, H, W) as the network takes them, looked at once for each layer.
        follow: takes the layers and returns them, to show progress.
    """
    wiring = read_wiring(pruned)
    modules = dict(pruned.named_modules())
    changed = _changed(full, plan)
    for path in follow([p for p, conv in wiring.convolutions.items() if conv.groups == 1]):
        if path not in changed or modules[path].weight[0].numel() > _MOST:
            continue
        kept = torch.tensor(plan.kept.get(path, range(full.get_submodule(path).out_channels)))
        norm = modules[wiring.norms[path]] if path in wiring.norms else None
        _fit(modules[path], norm, _samples(pruned, full, path, kept, images))


def _changed(full: nn.Module, plan: PrunePlan) -> set[str]:
    """Return the convolutions behind the first pruned one; those before it compute as before."""
    paths = list(read_wiring(full).ends)
    first = next((number for number, path in enumerate(paths) if path in plan.kept), len(paths))
    return set(paths[first + 1 :])


def _samples(
    pruned: nn.Module,
    full: nn.Module,
    path: str,
    kept: torch.Tensor,
    images: Iterable[torch.Tensor],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield patches (P, C*k*k) that enter a convolution, and the full network's outputs (P, O)."""
    rng = np.random.default_rng(0)
    conv = pruned.get_submodule(path)
    for batch in images:
        entering, _ = _at(pruned, path, batch)
        _, leaving = _at(full, path, batch)
        # One picture at a time: patches of a whole batch take gigabytes.
        for one, wanted in zip(entering, leaving[:, kept].flatten(2), strict=True):
            count = min(_POINTS, wanted.shape[1])
            points = torch.from_numpy(rng.choice(wanted.shape[1], count, replace=False))
            yield _patches(conv, one[None])[0][:, points].T, wanted[:, points].T


def _at(model: nn.Module, path: str, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input and output of the convolution at `path`."""
    seen: list[torch.Tensor] = []

    def stop(_module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen[:] = [inputs[0], output]
        raise _Reached

    hook = model.get_submodule(path).register_forward_hook(stop)
    with hooked([hook]), suppress(_Reached), torch.no_grad():
        model(batch)
    return seen[0], seen[1]


def _patches(conv: nn.Conv2d, entering: torch.Tensor) -> torch.Tensor:
    """Return the patches that the convolution sees, (N, C*k*k, positions)."""
    down, across = conv.padding
    top, left, bottom, right = getattr(conv, "pads", (down, across, down, across))
    padded = functional.pad(entering, (left, right, top, bottom))
    return functional.unfold(padded, conv.kernel_size, stride=conv.stride)


def _fit(
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    samples: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    old = conv.weight.detach().flatten(1).double().T
    products, aims, count = torch.zeros(len(old) + 1, len(old) + 1, dtype=torch.double), 0.0, 0
    for patches, wanted in samples:
        x = functional.pad(patches.double(), (0, 1), value=1.0)
        y = wanted.double() - x[:, :-1] @ old
        if conv.bias is not None:
            y = y - conv.bias.detach().double()
        products, aims, count = products + x.T @ x, aims + x.T @ y, count + len(x)
    ridge = torch.full((len(products),), _RIDGE * float(products.diagonal()[:-1].mean()))
    ridge[-1] = 1e-6 * count
    change = torch.linalg.solve(products + torch.diag(ridge.double()), aims)
    with torch.no_grad():
        conv.weight += change[:-1].T.reshape(conv.weight.shape).float()
        if norm is not None:
            norm.running_mean -= change[-1].float()
        elif conv.bias is not None:
            conv.bias += change[-1].float()
