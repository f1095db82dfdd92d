"""A training on disk, so that it can continue as if it had never stopped.

A checkpoint is a `.safetensors` file: `model.*`, `average.*`, `optimizer.STATE.PARAMETER` and
`rng.torch` as tensors; the step and `CheckpointFacts` as JSON in its metadata. Batches are a
function of the step (`edge.train.batches`) and need nothing more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge.decoding import decode_json
from edge.errors import ArtifactError
from edge.files import to_plain, write_file
from edge.models.checkpoint import read_safetensors
from edge.models.parameters import check_weights
from edge.optional import require
from edge.train.fit import Run
from edge.train.results import EpochRecord

__all__ = ["CheckpointFacts", "resume", "save_checkpoint"]

_WHAT = "a checkpoint of edge train"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint says of its training beside the tensors.

    Attributes:
        history: one record for each epoch that is done.
        shape: what must stay the same for a resumed training to end where one run would.
    """

    history: tuple[EpochRecord, ...] = ()
    shape: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(run: Run, path: str | Path, facts: CheckpointFacts) -> None:
    """Write the run and its facts, which `resume` gives back.

    Raises:
        ArtifactError: the file cannot be written; an older one stays as it was.
    """
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.state_dict().items()}
    tensors |= _optimizer_tensors(run)
    tensors["rng.torch"] = torch.get_rng_state()
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"step": str(run.step), "facts": json.dumps(to_plain(facts))}
    write_file(Path(path), require("safetensors.torch").save(plain, metadata=metadata))


def resume(run: Run, path: str | Path) -> CheckpointFacts:
    """Put `run`, fresh from `begin`, where the checkpoint was left, and return its facts.

    Raises:
        ArtifactError: the file is missing or damaged, or belongs to another architecture (the
            first tensor that differs is named) or to a run in which other parts learned.
    """
    metadata, tensors = read_safetensors(path, "checkpoint")
    for key in ("step", "facts"):
        if key not in metadata:
            raise ArtifactError(f"{path}: not {_WHAT}: its metadata has no {key}")
    step = decode_json(metadata["step"], int, str(path), _WHAT)
    facts = decode_json(metadata["facts"], CheckpointFacts, str(path), _WHAT)
    rng = tensors.pop("rng.torch", None)
    if rng is None or step < 0:
        raise ArtifactError(f"{path}: not {_WHAT}: it has no state of the random numbers")
    for prefix, module in (("model.", run.model), ("average.", run.average)):
        own = _below(tensors, prefix)
        _check_architecture(own, module, path)
        for name, value in own.items():
            check_weights(value, f"{path}: {prefix}{name}")
        module.load_state_dict(own)
    _load_optimizer(run, _below(tensors, "optimizer."), path)
    try:
        torch.set_rng_state(rng)
    except (TypeError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not {_WHAT}: rng.torch: {error}") from error
    run.step = step
    return facts


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def _check_architecture(own: Tensors, module: nn.Module, path: str | Path) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in own.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            here, there = (shapes.get(name, "absent") for shapes in (wanted, found))
            raise ArtifactError(
                f"{path}: of another architecture: {name} is {there} in it and {here} in the "
                "model; resume with the model it was made from, or start with --weights"
            )


def _parameter_names(run: Run) -> dict[int, str]:
    return {id(parameter): name for name, parameter in run.model.named_parameters()}


def _optimizer_tensors(run: Run) -> Tensors:
    names = _parameter_names(run)
    return {
        f"optimizer.{key}.{names[id(parameter)]}": torch.as_tensor(value)
        for parameter, state in run.optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def _load_optimizer(run: Run, tensors: Tensors, path: str | Path) -> None:
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    names = _parameter_names(run)
    learning = {names[id(parameter)]: parameter for parameter in parameters}
    states: dict[str, Tensors] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        states.setdefault(name, {})[kind] = value
        check_weights(value, f"{path}: optimizer.{key}")
        if name in learning and value.shape not in (learning[name].shape, torch.Size()):
            raise ArtifactError(
                f"{path}: optimizer.{key} is {tuple(value.shape)} and its parameter "
                f"{tuple(learning[name].shape)}; the file is damaged"
            )
    if states and set(states) != set(learning):
        odd = sorted(set(states) ^ set(learning))[0]
        raise ArtifactError(
            f"{path}: {odd} learns either in the checkpoint or here, not in both; freeze the same "
            "layers"
        )
    state = {
        number: states[names[id(parameter)]]
        for number, parameter in enumerate(parameters)
        if names[id(parameter)] in states
    }
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": state, "param_groups": groups})
