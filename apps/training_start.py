"""The shipped detectors, to be trained further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.dense_model import load_dense
from edge.compress.folding import unfold_norms
from edge.data.scenes import scene_set
from edge.train.pool import make_pool
from edge.train.start import Start

__all__ = ["shipped"]

# Clear of the scenes of training, from 100 000 on, and of evaluation, from five million on.
_SCENES, _SEED = 16, 90_000


def shipped(name: str, **options: Any) -> Start:
    """A built-in detector with the weights of its ONNX file.

    That file has no batch norms left; they come back with the statistics of some scenes, so that
    the network computes the same and learns as it did.

    Raises:
        ArtifactError: the file is damaged, or an option of other models is given.
    """
    dense = load_dense(name, Path(), **options)
    module, note = dense.module, f"the shipped weights of {name}"
    if dense.normed is not None:
        pool = make_pool(scene_set(_SCENES, _SEED), _SCENES, dense.spec.contract)
        module = unfold_norms(module, dense.normed, pool.tensor(pool.images))
    return Start(module, dense.spec, (note,))
