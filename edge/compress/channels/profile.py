"""Mean and variance of every feature map, gathered image by image in constant memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.compress.channels.wiring import Wiring
from edge.models.hooks import hooked

__all__ = ["Moments", "profile"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Of C feature maps over all pixels of all images: `mean` (C,), `variance` (C,), `count`."""

    mean: Array
    variance: Array
    count: int

    def __add__(self, other: Moments) -> Moments:
        """Both together, without a sum of squares (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        share = other.count / count
        spread = self.variance * (1 - share) + other.variance * share
        return Moments(
            self.mean + share * shift, spread + share * (1 - share) * shift * shift, count
        )


def profile(model: nn.Module, wiring: Wiring, images: Iterable[torch.Tensor]) -> dict[str, Moments]:
    """Moments of what each convolution's chain yields, after its activation, by its path.

    Args:
        wiring: of `model`.
        images: batches (N, 3, H, W) as the network takes them.

    Raises:
        ValueError: no images.
    """
    found: dict[str, Moments] = {}
    hooks = [
        model.get_submodule(end).register_forward_hook(partial(_gather, found, path))
        for path, end in wiring.ends.items()
    ]
    with hooked(hooks), torch.no_grad():
        for batch in images:
            model(batch)
    if not found:
        raise ValueError("a profile takes at least one image")
    return found


def _gather(
    found: dict[str, Moments], path: str, _module: nn.Module, _inputs: Any, output: torch.Tensor
) -> None:
    values = output.transpose(0, 1).flatten(1).double()
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    new = Moments(mean.numpy(), variance.numpy(), values.shape[1])
    found[path] = found[path] + new if path in found else new
