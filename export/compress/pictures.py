"""The pictures that weights are compressed with: for training, for bits and for rounding errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from calibration.scales import network_inputs
from edge.errors import CompressionError
from edge.measure.accuracy import labelled
from edge.models.dense import Dense
from edge.reporting import say
from edge.train.augment import Labelled
from export.compress.stages import training_pictures
from export.graph.writer import write_onnx

__all__ = ["fitting_pictures", "labelled_pictures", "network_pictures", "some_of", "varied"]

# Pixels of all pictures together: they go through the network as one batch, which takes memory.
_PIXELS = 4_000_000
_FEWEST, _MOST = 8, 64


def labelled_pictures(train: str | Path | None, dense: Dense) -> Sequence[Labelled]:
    """Return the labelled pictures of a training.

    Raises:
        CompressionError: there are none to train on.
    """
    if train is None:
        raise CompressionError("training takes labelled images: give them with --train or --data")
    return training_pictures(labelled(train, dense.spec.classes), dense.spec)


def fitting_pictures(
    train: str | Path | None, dense: Dense, scratch: Path, *, for_bits: bool, for_errors: bool
) -> list[torch.Tensor]:
    """Return some pictures as the network takes them, (1, 3, H, W) each, without labels.

    Args:
        for_bits: bits are spread by them, which is impossible without any.
        for_errors: weights make up for errors on them; without any, a line is said.

    Raises:
        CompressionError: there are none to spread bits by.
    """
    if train is None and for_bits:
        raise CompressionError(
            "a fraction of bits is spread over the layers by what pictures show: give some with "
            "--train or --data, or give whole bits"
        )
    if train is None and for_errors:
        say(
            "no pictures: every weight is pruned and rounded by itself; --train DIR gives a more "
            "accurate package"
        )
    if train is None or not (for_bits or for_errors):
        return []
    height, width = dense.spec.contract.hw
    count = min(max(_PIXELS // (height * width), _FEWEST), _MOST) if for_errors else _FEWEST
    source = scratch / "fitting.onnx"
    write_onnx(dense.module, dense.spec, source)
    return varied(network_pictures(source, train, count), _FEWEST)


def some_of(images: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return eight to fifteen of the pictures, spread evenly: enough to spread bits by."""
    return images[:: max(1, len(images) // _FEWEST)]


def network_pictures(onnx: Path, data: str | Path, count: int) -> list[torch.Tensor]:
    """Return at most `count` pictures of `data` as an ONNX file takes them, (1, 3, H, W) each."""
    return [torch.from_numpy(np.array(one)) for _, one in network_inputs(onnx, data, count)]


def varied(images: Sequence[torch.Tensor], least: int, seed: int = 0) -> list[torch.Tensor]:
    """Return at least `least` pictures (1, 3, H, W): mirrored ones, then parts enlarged, are added.

    A layer that is fitted to few pictures also fits what they have by chance.
    """
    rng, found = np.random.default_rng(seed), list(images)
    if len(found) < least:
        found += [image.flip(3) for image in found]
    whole = len(found)
    while len(found) < least:
        found.append(_enlarged(found[len(found) % whole], rng))
    return found


def _enlarged(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return a part of a half to nine tenths of each side, at the size of the whole."""
    down, across = image.shape[2:]
    share = rng.uniform(0.5, 0.9)
    height, width = max(1, int(share * down)), max(1, int(share * across))
    top, left = rng.integers(0, down - height + 1), rng.integers(0, across - width + 1)
    part = image[:, :, top : top + height, left : left + width]
    return nn.functional.interpolate(part, (down, across), mode="bilinear")
