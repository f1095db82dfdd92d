"""A run on disk, so that it can go on as if it had never stopped.

A `.safetensors` file: `model.*`, `average.*`, `optimizer.STATE.PARAMETER` and `rng.torch` as
tensors; step, architecture and the caller's facts as JSON in its metadata. Batches are a function
of the step (`edge.train.batches`) and need nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge.errors import ArtifactError
from edge.files import write_file
from edge.optional import require
from edge.train.fit import Run

__all__ = ["resume", "save_checkpoint"]

Tensors = dict[str, torch.Tensor]


def save_checkpoint(run: Run, path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write the run; `facts` (JSON values) come back from `resume`.

    Raises:
        ArtifactError: the file cannot be written; an older one stays as it was.
    """
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.state_dict().items()}
    tensors |= _optimizer_tensors(run)
    tensors["rng.torch"] = torch.get_rng_state()
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"step": str(run.step), "facts": json.dumps(dict(facts))}
    write_file(Path(path), require("safetensors.torch").save(plain, metadata=metadata))


def resume(run: Run, path: str | Path) -> dict[str, Any]:
    """Put `run`, fresh from `begin`, where the checkpoint was left; returns its facts.

    Raises:
        ArtifactError: no such file, damaged, of another architecture (the first tensor that
            differs is named) or of a run in which other parts learnt.
    """
    metadata, tensors = _read(Path(path))
    try:
        step, facts = int(metadata["step"]), json.loads(metadata["facts"])
        rng = tensors.pop("rng.torch")
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{path}: not a checkpoint of edge train: {error}") from error
    for prefix, module in (("model.", run.model), ("average.", run.average)):
        own = _below(tensors, prefix)
        _check(own, module, path)
        module.load_state_dict(own)
    _load_optimizer(run, _below(tensors, "optimizer."), path)
    torch.set_rng_state(rng)
    run.step = step
    return dict(facts)


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def _check(own: Tensors, module: nn.Module, path: str | Path) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in own.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            here, there = (shapes.get(name, "absent") for shapes in (wanted, found))
            raise ArtifactError(
                f"{path}: of another architecture: {name} is {there} in it and {here} in the "
                "model; resume with the model it was made from, or start with --weights"
            )


def _names(run: Run) -> dict[int, str]:
    return {id(parameter): name for name, parameter in run.model.named_parameters()}


def _optimizer_tensors(run: Run) -> Tensors:
    names = _names(run)
    return {
        f"optimizer.{key}.{names[id(parameter)]}": torch.as_tensor(value)
        for parameter, state in run.optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def _load_optimizer(run: Run, tensors: Tensors, path: str | Path) -> None:
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    names = _names(run)
    learning = {names[id(parameter)] for parameter in parameters}
    states: dict[str, Tensors] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        states.setdefault(name, {})[kind] = value
    if states and set(states) != learning:
        odd = sorted(set(states) ^ learning)[0]
        raise ArtifactError(f"{path}: {odd} learns in only one of the two; freeze the same layers")
    state = {
        number: states[names[id(parameter)]]
        for number, parameter in enumerate(parameters)
        if names[id(parameter)] in states
    }
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _read(path: Path) -> tuple[dict[str, str], Tensors]:
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path}: not a readable checkpoint: {error}") from error
