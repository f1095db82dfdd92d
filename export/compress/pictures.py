"""The pictures that `edge compress` learns from, trains on and spreads bits by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from calibration.calibrate import network_inputs
from edge.compress.finetune import FineTuning
from edge.compress.weights.pictures import varied
from edge.errors import CompressionError
from edge.measure.accuracy import labelled
from edge.models.dense import Dense
from edge.reporting import say
from edge.train.augment import Labelled
from export.compress.stages import pictures_of
from export.graph.writer import write_onnx

__all__ = ["few_of", "network_pictures", "pictures_seen", "pictures_to_train"]

# Of all pictures together: they go through the network as one batch, which takes memory.
_PIXELS = 4_000_000
_FEWEST, _MOST = 8, 64


def pictures_to_train(
    train: str | Path | None, dense: Dense, tuning: FineTuning | None
) -> Sequence[Labelled]:
    """The labelled pictures of a training; none without one.

    Raises:
        CompressionError: there are none to train on.
    """
    if tuning is None:
        return ()
    if train is None:
        raise CompressionError("training takes labelled images: give them with --train or --data")
    return pictures_of(labelled(train, dense.spec.classes), dense.spec)


def pictures_seen(
    train: str | Path | None, dense: Dense, scratch: Path, *, for_bits: bool, for_errors: bool
) -> list[torch.Tensor]:
    """Some pictures as the network takes them, (1, 3, H, W); their labels are not looked at.

    Args:
        for_bits: they spread bits, and have to be there.
        for_errors: they tell what makes up for errors; none are left out with a word.

    Raises:
        CompressionError: there are none to spread bits by.
    """
    if train is None and for_bits:
        raise CompressionError(
            "bits that are not whole are spread by what pictures tell: give some with --train or "
            "--data, or whole bits"
        )
    if train is None and for_errors:
        say("no pictures: every weight is pruned and rounded alone; --train DIR does it better")
    if train is None or not (for_bits or for_errors):
        return []
    height, width = dense.spec.contract.hw
    count = min(max(_PIXELS // (height * width), _FEWEST), _MOST) if for_errors else _FEWEST
    source = scratch / "seen.onnx"
    write_onnx(dense.module, dense.spec, source)
    return varied(network_pictures(source, train, count), _FEWEST)


def few_of(images: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Eight to fifteen of them, spread evenly: enough to spread bits by."""
    return images[:: max(1, len(images) // _FEWEST)]


def network_pictures(onnx: Path, data: str | Path, count: int) -> list[torch.Tensor]:
    """At most `count` pictures of `data` as an ONNX file's network takes them, (1, 3, H, W)."""
    return [torch.from_numpy(np.array(one)) for _, one in network_inputs(onnx, data, count)]
