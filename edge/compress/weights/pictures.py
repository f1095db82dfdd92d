"""The pictures that `edge compress` learns from, trains on and spreads bits by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

__all__ = ["varied"]


def varied(images: Sequence[torch.Tensor], least: int, seed: int = 0) -> list[torch.Tensor]:
    """At least so many pictures (1, 3, H, W): mirrored, then parts of them enlarged.

    A layer that is fitted to few pictures fits their chance too.
    """
    rng, found = np.random.default_rng(seed), list(images)
    if len(found) < least:
        found += [image.flip(3) for image in found]
    whole = len(found)
    while len(found) < least:
        found.append(_enlarged(found[len(found) % whole], rng))
    return found


def _enlarged(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A part of a half to nine tenths of each side, at the size of the whole."""
    down, across = image.shape[2:]
    share = rng.uniform(0.5, 0.9)
    height, width = max(1, int(share * down)), max(1, int(share * across))
    top, left = rng.integers(0, down - height + 1), rng.integers(0, across - width + 1)
    part = image[:, :, top : top + height, left : left + width]
    return nn.functional.interpolate(part, (down, across), mode="bilinear")
