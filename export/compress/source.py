"""The networks that are made smaller, and the images that they are judged on and learn from."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edge.built_in import BUILT_IN, OF_SCENES
from edge.compress.options import ModelOptions, model_options
from edge.errors import ArtifactError, DataError
from edge.files import sha256_of
from edge.models.checkpoint import load_safetensors
from edge.models.zoo import LoadedModel, load_model
from edge.train.start import shipped_start

__all__ = ["earlier_network", "images_for", "images_or_error", "load_prunable"]

_JUDGING = "scenes"
# As in tools/train/train_builtin.py with seed 7: scenes that no evaluation sees.
_LEARNING = "scenes://?seed=800000&count=8000"


def images_for(
    model: str | Path, data: str | Path | None, train: str | Path | None
) -> tuple[str | Path | None, str | Path | None]:
    """Return the images to judge by and to learn from; a built-in detector has its scenes.

    Any other model learns from `data` without `train`.
    """
    known = str(model) in OF_SCENES
    data = data or (_JUDGING if known else None)
    return data, train or (_LEARNING if known else data)


def images_or_error(
    model: str | Path, data: str | Path | None, train: str | Path | None
) -> tuple[str | Path, str | Path]:
    """Return the images as `images_for` does, where nothing can be done without them.

    Raises:
        DataError: there are none.
    """
    data, train = images_for(model, data, train)
    if data is None or train is None:
        raise DataError(f"{model}: needs labelled images to judge by; give them with --data")
    return data, train


def load_prunable(model: str | Path, options: ModelOptions) -> LoadedModel:
    """Load a built-in detector by its name, or a model as `edge.models.zoo.load_model` takes it.

    Raises:
        ArtifactError: no such model, or a file that is damaged or does not fit.
    """
    if str(model) not in BUILT_IN:
        return load_model(model, **model_options(options))
    begun = shipped_start(str(model), **model_options(options))
    return LoadedModel(begun.module.eval(), begun.spec, sha256_of(BUILT_IN[str(model)]))


def earlier_network(path: str | Path, what: str, *likes: nn.Module) -> nn.Module:
    """Load the network that an earlier run wrote.

    Args:
        what: what the file should be, for the message.
        likes: networks, of which one must have the same tensors.

    Raises:
        ArtifactError: the file cannot be read, or is not `what`.
    """
    module = load_safetensors(path)[0]
    if _shapes(module) not in [_shapes(like) for like in likes]:
        raise ArtifactError(f"{path}: not {what}")
    return module


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
