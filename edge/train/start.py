"""Where training begins: a network, its spec, and what its weights are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from edge.data.world.world import scene_set
from edge.errors import ArtifactError
from edge.files import write_file
from edge.models.builtin import NAMES, build
from edge.models.checkpoint import save_safetensors
from edge.models.darknet import Darknet
from edge.models.darknet_weights import save_weights
from edge.models.dense import load_dense
from edge.models.folding import unfold_norms
from edge.models.initialise import initialise
from edge.models.squeezedet import SqueezeDet, SqueezeDetConfig, squeezedet_spec
from edge.models.zoo import ZOO, load_model
from edge.spec import ModelSpec
from edge.train.pool import make_pool
from edge.train.transfer import transfer

__all__ = ["Start", "shipped", "start", "write_model"]


class Start(NamedTuple):
    """A network before training, its spec, and lines that say how its weights came about."""

    module: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...]


def start(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    names: str | Path | None = None,
    resize: Any = None,
    hw: tuple[int, int] | None = None,
    seed: int = 0,
) -> Start:
    """The network to train.

    Args:
        model: a built-in name, x.json (the fields of `SqueezeDetConfig`), or what `load_model`
            takes; a cfg without weights beside it and a built-in begin with random ones.
        weights: to begin with from the input upwards, see `transfer`; all else is then random,
            but for a model that is trained already.
        names, resize, hw: as `load_model` takes them.
        seed: of random weights.

    Raises:
        ArtifactError: no such model, or a file that is damaged or does not fit.
    """
    module, spec, note = _network(model, weights is not None, names, resize, hw, seed)
    if weights is None:
        return Start(module, spec, (note,))
    done = transfer(module, weights)
    loaded = f"{len(done.loaded)} layers begin as in {weights}, up to {done.loaded[-1]}"
    stopped = (f"stopped there: {done.stopped}",) if done.stopped else ()
    return Start(module, spec, (note, loaded, *stopped))


def _network(
    model: str | Path, transferred: bool, names: Any, resize: Any, hw: Any, seed: int
) -> tuple[nn.Module, ModelSpec, str]:
    path, random = Path(model), f"random weights, seed {seed}"
    if str(model) in NAMES or path.suffix == ".json":
        if names or resize or hw:
            raise ArtifactError(f"{model}: names, resize and size are its own; leave them out")
        if path.suffix == ".json":
            return (*_from_json(path, seed), random)
        module, spec, _ = build(str(model), seed)
        return module, spec, random
    untrained = path.suffix == ".cfg" and not path.with_suffix(".weights").is_file()
    drawn = untrained or (transferred and (path.suffix == ".cfg" or str(model) in ZOO))
    loaded = load_model(model, names=names, resize=resize, hw=hw, random_weights=drawn, seed=seed)
    return loaded.module, loaded.spec, random if drawn else f"the weights of {model}"


def _from_json(path: Path, seed: int) -> tuple[nn.Module, ModelSpec]:
    try:
        fields = json.loads(path.read_text("utf-8"))
        config = SqueezeDetConfig(**{key: _tuples(value) for key, value in fields.items()})
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: not the JSON of a SqueezeDet: {error}") from error
    module, spec = SqueezeDet(config), squeezedet_spec(config, path.stem)
    initialise(module, spec, seed)
    return module, spec


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def write_model(module: nn.Module, spec: ModelSpec, folder: Path, name: str) -> list[Path]:
    """Write `folder/NAME.safetensors`, and of a Darknet cfg and weights too; returns the files.

    Raises:
        ArtifactError: a file cannot be written.
    """
    target = folder / f"{name}.safetensors"
    save_safetensors(module, target, replace(spec, name=name))
    if not isinstance(module, Darknet):
        return [target]
    cfg, weights = target.with_suffix(".cfg"), target.with_suffix(".weights")
    write_file(cfg, module.cfg.text.encode())
    save_weights(module, weights)
    return [target, cfg, weights]


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
