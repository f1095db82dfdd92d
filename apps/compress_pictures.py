"""The pictures that `edge compress` learns from, trains on and spreads bits by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from apps.accuracy import labelled
from apps.dense_model import Dense
from apps.prune_stages import pictures_of
from apps.table import say, steps
from calibration.calibrate import network_inputs
from edge.compress.feedback import Surroundings, look
from edge.compress.finetune import FineTuning
from edge.errors import CompressionError
from edge.train.augment import Labelled
from export.onnx_writer import write_onnx

__all__ = ["pictures_for_bits", "pictures_to_train", "surroundings"]

_REFIT_IMAGES = 32
_BITS_IMAGES = 8


def pictures_to_train(
    train: str | Path | None, dense: Dense, tuning: FineTuning | None
) -> Sequence[Labelled]:
    if tuning is None:
        return ()
    if train is None:
        raise CompressionError("training takes labelled images: give them with --train or --data")
    return pictures_of(labelled(train, dense.spec.classes), dense.spec)


def surroundings(
    train: str | Path | None, dense: Dense, scratch: Path
) -> Mapping[str, Surroundings] | None:
    """What the convolutions see on a few pictures, if there are any."""
    if train is None:
        say("no pictures: every weight is pruned and rounded alone; --train DIR does it better")
        return None
    return look(
        dense.module,
        steps(_seen(train, dense, scratch, _REFIT_IMAGES), "looking at pictures", _REFIT_IMAGES),
    )


def pictures_for_bits(
    train: str | Path | None, dense: Dense, scratch: Path
) -> Sequence[torch.Tensor]:
    """The pictures that tell which layers need finer values."""
    if train is None:
        raise CompressionError(
            "bits that are not whole are spread by what pictures tell: give some with --train or "
            "--data, or whole bits"
        )
    return list(_seen(train, dense, scratch, _BITS_IMAGES))


def _seen(train: str | Path, dense: Dense, scratch: Path, count: int) -> Iterator[torch.Tensor]:
    """Pictures as the network takes them, (1, 3, H, W)."""
    source = scratch / "seen.onnx"
    write_onnx(dense.module, dense.spec, source)
    inputs = network_inputs(source, train, count)
    return (torch.from_numpy(np.array(tensor)) for _, tensor in inputs)
