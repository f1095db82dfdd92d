"""Where a training starts: a network, its spec, and how its weights came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from edge.built_in import BUILT_IN
from edge.data.world.world import scene_set
from edge.errors import ArtifactError
from edge.files import read_file, write_file
from edge.models.adapt import adapt_cfg
from edge.models.builtin import NAMES, build
from edge.models.cfgs import CFGS
from edge.models.checkpoint import save_safetensors
from edge.models.darknet import Darknet, build_darknet
from edge.models.darknet_weights import save_weights
from edge.models.dense import load_dense
from edge.models.folding import unfold_norms
from edge.models.initialise import initialise
from edge.models.squeezedet import SqueezeDet, read_config, squeezedet_spec
from edge.models.zoo import ZOO, load_cfg, load_model
from edge.spec import ModelSpec
from edge.train.augment import Labelled
from edge.train.batches import as_tensor, resized
from edge.train.options import TrainOptions
from edge.train.transfer import transfer

__all__ = ["Start", "shipped_start", "start_from", "write_model"]

# Scenes that measure a shipped detector's batch norms: clear of the scenes of training, from
# 100 000 on, and of evaluation, from five million on.
_SCENES, _SCENES_SEED = 16, 90_000


class Start(NamedTuple):
    """A network before training, its spec, and lines that say how its weights came about."""

    module: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...]


def start_from(
    model: str | Path, options: TrainOptions | None = None, classes: Sequence[str] = ()
) -> Start:
    """Return the network to train.

    Args:
        model: a built-in name, x.json (the fields of `SqueezeDetConfig`), or what `load_model`
            takes; a cfg without weights beside it starts with random ones.
        options: of them `weights` (see `transfer`), `random_weights`, `names`, `resize`, `hw` and
            `seed` count.
        classes: names to give a Darknet network in place of its own, see `classes_from_data`.

    Raises:
        ArtifactError: no such model, or a file that is damaged or does not fit.
    """
    options = options or TrainOptions()
    if classes:
        return _adapted(model, options, classes)
    if str(model) in BUILT_IN and options.weights is None and not options.random_weights:
        _refuse_shape_options(model, options)
        return shipped_start(str(model))
    module, spec, note = _network(model, options)
    if options.weights is None:
        return Start(module, spec, (note,))
    return Start(module, spec, (note, *_transferred(module, options.weights)))


def _adapted(model: str | Path, options: TrainOptions, classes: Sequence[str]) -> Start:
    """Return a Darknet network with other classes; what still fits keeps its weights."""
    path, resize = Path(model), options.resize
    if path.suffix == ".cfg":
        cfg = load_cfg(path, options.hw)
        beside: str | Path | None = path.with_suffix(".weights")
        beside = beside if path.with_suffix(".weights").is_file() else None
    elif str(model) in ZOO and str(model) in CFGS:
        cfg, beside = load_cfg(str(model), options.hw), str(model)
        resize = resize or ZOO[str(model)].resize
    else:
        raise ArtifactError(f"{model}: only a .cfg or a Darknet of the zoo takes other classes")
    cfg = adapt_cfg(cfg, len(classes))
    network = build_darknet(cfg, None)
    spec = network.spec(path.stem, classes, resize or "letterbox")
    initialise(network, spec, options.seed)
    note = f"{len(classes)} classes of the data; random weights, seed {options.seed}"
    source = options.weights if options.weights is not None else beside
    if source is None or options.random_weights:
        return Start(network, spec, (note,))
    return Start(network, spec, (note, *_transferred(network, source)))


def _transferred(module: nn.Module, source: str | Path) -> tuple[str, ...]:
    done = transfer(module, source)
    loaded = f"{len(done.loaded)} layers begin as in {source}, up to {done.loaded[-1]}"
    return (loaded, f"stopped there: {done.stopped}") if done.stopped else (loaded,)


def _refuse_shape_options(model: str | Path, options: TrainOptions) -> None:
    if options.names or options.resize or options.hw:
        raise ArtifactError(f"{model}: names, resize and size are its own; leave them out")


def _network(model: str | Path, options: TrainOptions) -> tuple[nn.Module, ModelSpec, str]:
    path, seed = Path(model), options.seed
    random = f"random weights, seed {seed}"
    if path.suffix == ".json":
        _refuse_shape_options(model, options)
        config = read_config(read_file(path), str(path))
        network, spec = SqueezeDet(config), squeezedet_spec(config, path.stem)
        initialise(network, spec, seed)
        return network, spec, random
    if str(model) in NAMES:
        _refuse_shape_options(model, options)
        module, spec, _ = build(str(model), seed)
        return module, spec, random
    untrained = path.suffix == ".cfg" and not path.with_suffix(".weights").is_file()
    replaced = options.weights is not None and (path.suffix == ".cfg" or str(model) in ZOO)
    drawn = untrained or replaced
    loaded = load_model(
        model,
        names=options.names,
        resize=options.resize,
        hw=options.hw,
        random_weights=drawn,
        seed=seed,
    )
    return loaded.module, loaded.spec, random if drawn else f"the weights of {model}"


def write_model(module: nn.Module, spec: ModelSpec, folder: Path, name: str) -> list[Path]:
    """Write `folder/NAME.safetensors`, and of a Darknet cfg and weights too; return the files.

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


def shipped_start(name: str, **options: Any) -> Start:
    """Return a built-in detector with the weights of its ONNX file.

    That file has no batch norms left; they come back with the statistics of some scenes, so that
    the network computes the same and can learn on.

    Raises:
        ArtifactError: the file is damaged, or an option of other models is given.
    """
    dense = load_dense(name, Path(), **options)
    module, note = dense.module, f"the shipped weights of {name}"
    if dense.normed is not None:
        contract = dense.spec.contract
        boxes = np.empty((0, 5), np.float32)
        frames = [
            resized(Labelled(scene.image, boxes), contract).image
            for scene in scene_set(_SCENES, _SCENES_SEED)
        ]
        module = unfold_norms(module, dense.normed, as_tensor(np.stack(frames), contract))
    return Start(module, dense.spec, (note,))
