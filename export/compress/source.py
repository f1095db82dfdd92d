"""What is made smaller, and the images that judge and teach it, built-in detectors included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from edge.built_in import BUILT_IN, OF_SCENES
from edge.errors import ArtifactError, DataError
from edge.files import sha256_of
from edge.models.checkpoint import load_safetensors
from edge.models.zoo import LoadedModel, load_model
from edge.train.start import shipped_start

__all__ = ["earlier", "images_for", "load_prunable", "needed"]

_JUDGING = "scenes"
# As in tools/train/train_builtin.py with seed 7: scenes that no evaluation sees.
_LEARNING = "scenes://?seed=800000&count=8000"


def images_for(
    model: str | Path, data: str | Path | None, train: str | Path | None
) -> tuple[str | Path | None, str | Path | None]:
    """Labelled images to judge by and to learn from; a built-in detector has its scenes.

    Without `train` any other model learns from `data`.
    """
    known = str(model) in OF_SCENES
    data = data or (_JUDGING if known else None)
    return data, train or (_LEARNING if known else data)


def needed(
    model: str | Path, data: str | Path | None, train: str | Path | None
) -> tuple[str | Path, str | Path]:
    """As `images_for`, where there is nothing to do without images.

    Raises:
        DataError: there are none.
    """
    data, train = images_for(model, data, train)
    if data is None or train is None:
        raise DataError(f"{model}: needs labelled images to judge by; give them with --data")
    return data, train


def load_prunable(model: str | Path, **options: Any) -> LoadedModel:
    """A built-in name, or a model as `edge.models.zoo.load_model` takes it with `options`.

    Raises:
        ArtifactError: no such model, or a file that is damaged or does not fit.
    """
    if str(model) not in BUILT_IN:
        return load_model(model, **options)
    begun = shipped_start(str(model), **options)
    return LoadedModel(begun.module.eval(), begun.spec, sha256_of(BUILT_IN[str(model)]))


def earlier(path: str | Path, what: str, *likes: nn.Module) -> nn.Module:
    """The network that an earlier run wrote, to go on with; one of `likes` has its shapes.

    Raises:
        ArtifactError: it cannot be read, or is not `what`.
    """
    module = load_safetensors(path)[0]
    if _shapes(module) not in [_shapes(like) for like in likes]:
        raise ArtifactError(f"{path}: not {what}")
    return module


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
