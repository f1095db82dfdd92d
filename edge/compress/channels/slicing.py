"""Make smaller networks out of larger ones: channels by a plan, head rows by classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.wiring import FIXED, Labels, Wiring, read_wiring
from edge.data.classes import match_classes
from edge.errors import CompressionError, DataError
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import with_options
from edge.models.squeezedet import SqueezeDet, squeezedet_spec
from edge.spec import HeadSpec, ModelSpec

__all__ = ["class_numbers", "head_rows", "prune_channels", "slice_classes"]


def prune_channels(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """Return a new network of the same kind, in eval mode, with only the plan's channels.

    It computes what `model` computes with the other channels at zero. Its spec is the same.

    Raises:
        CompressionError: the plan is of another network, removes a channel of a head, or removes
            a channel and keeps one that is bound to it.
    """
    wiring = read_wiring(model)
    alive = ~np.isin(np.arange(_labels(wiring)), list(_removed(wiring, plan)))
    new = _rebuild(model, wiring, alive)
    new.load_state_dict(_sliced(model, wiring, alive))
    return new.eval()


def slice_classes(
    model: nn.Module, spec: ModelSpec, classes: Sequence[str]
) -> tuple[nn.Module, ModelSpec]:
    """Return the network and spec with only some classes; scores stay the same but for softmax.

    A softmax over fewer classes gives each a larger share: an object of another class may now
    score as one of those that are left.

    Raises:
        CompressionError: the model does not have a class, or it is given twice; a head that is
            not the output of a convolution.
    """
    numbers = class_numbers(spec, classes)
    names = tuple(spec.classes[number] for number in numbers)
    rows = {head.tensor: head_rows(head, len(spec.classes), numbers) for head in spec.heads}
    state = dict(model.state_dict())
    for tensor, row in rows.items():
        if not isinstance(model.get_submodule(tensor), nn.Conv2d):
            raise CompressionError(
                f"{tensor}: this head is not the output of a convolution and cannot be sliced"
            )
        for name in (f"{tensor}.weight", f"{tensor}.bias"):
            state[name] = state[name][torch.from_numpy(row)]
    new, new_spec = _with_classes(model, spec, names, {t: len(row) for t, row in rows.items()})
    new.load_state_dict(state)
    return new.eval(), new_spec


def class_numbers(spec: ModelSpec, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the model's numbers of `classes`, ascending; VOC's and COCO's names are equal.

    Raises:
        CompressionError: the model does not have a class, or it is given twice.
    """
    if not classes:
        raise CompressionError(f"{spec.name}: no class to keep is named")
    try:
        found = match_classes(tuple(classes), spec.classes).tolist()
    except DataError:
        found = [-1] * len(classes)
    for name, number in zip(classes, found, strict=True):
        if number < 0:
            raise CompressionError(
                f"{spec.name} has no class {name}; it has {', '.join(spec.classes)}"
            )
        if found.count(number) > 1:
            raise CompressionError(f"{spec.classes[number]} is given twice")
    return tuple(sorted(found))


def head_rows(head: HeadSpec, classes: int, kept: Sequence[int]) -> NDArray[np.int64]:
    """Return the channels of a raw head of `classes` classes that belong to the `kept` ones."""
    anchors = np.arange(len(head.anchors))[:, None]
    if head.kind == "convdet":
        logits = (anchors * classes + np.asarray(kept)).ravel()
        return np.concatenate([logits, np.arange(anchors.size * classes, head.channels(classes))])
    each = np.concatenate([np.arange(5), 5 + np.asarray(kept)])
    return np.asarray((anchors * (5 + classes) + each).ravel())


def _with_classes(
    model: nn.Module, spec: ModelSpec, names: tuple[str, ...], widths: dict[str, int]
) -> tuple[nn.Module, ModelSpec]:
    if isinstance(model, SqueezeDet):
        config = replace(model.config, classes=names)
        return SqueezeDet(config), squeezedet_spec(config, spec.name)
    darknet = _darknet(model)
    changes: dict[int, dict[str, object]] = {
        int(tensor.split(".")[1]): {"filters": width} for tensor, width in widths.items()
    }
    for section in darknet.cfg.layers:
        if section.type in ("region", "yolo"):
            changes[section.index] = {"classes": len(names)}
    new = Darknet(with_options(darknet.cfg, changes))
    return new, new.spec(spec.name, names, spec.contract.resize)


def _darknet(model: nn.Module) -> Darknet:
    if not isinstance(model, Darknet):
        raise TypeError(f"{type(model).__name__} is neither Darknet nor SqueezeDet")
    return model


def _labels(wiring: Wiring) -> int:
    return 1 + max(int(labels.max()) for labels in wiring.leaves.values())


def _removed(wiring: Wiring, plan: PrunePlan) -> set[int]:
    convolutions = wiring.convolutions
    removed: set[int] = set()
    for path, kept in plan.kept.items():
        labels = wiring.leaves[path] if path in convolutions else None
        if labels is None or len(labels) != plan.widths[path]:
            there = "is not there" if labels is None else f"has {len(labels)} channels"
            raise CompressionError(
                f"plan of {plan.model}: {path} {there}, the plan is for {plan.widths[path]}; "
                "it was made for another network"
            )
        gone = set(np.delete(labels, list(kept)).tolist())
        if FIXED in gone:
            raise CompressionError(f"plan of {plan.model}: {path} feeds a head and must stay whole")
        removed |= gone
    for path in convolutions:
        _refuse_broken_bonds(wiring.leaves[path], plan, path, removed)
    return removed


def _refuse_broken_bonds(labels: Labels, plan: PrunePlan, path: str, removed: set[int]) -> None:
    kept = set(plan.kept.get(path, range(len(labels))))
    for channel, label in enumerate(labels.tolist()):
        if label in removed and channel in kept:
            raise CompressionError(
                f"plan of {plan.model}: channel {channel} of {path} is bound to one that is "
                "removed; remove or keep both"
            )


def _rebuild(model: nn.Module, wiring: Wiring, alive: NDArray[np.bool_]) -> nn.Module:
    """Return a network of the new widths, whose weights are not yet set."""
    widths = {path: int(alive[wiring.leaves[path]].sum()) for path in wiring.ends}
    if isinstance(model, SqueezeDet):
        return _narrow_squeezedet(model, widths)
    changes: dict[int, dict[str, object]] = {}
    for path, conv in wiring.convolutions.items():
        if widths[path] == conv.out_channels:
            continue
        changes[int(path.split(".")[1])] = options = dict[str, object](filters=widths[path])
        if conv.groups > 1:
            entering = int(alive[wiring.enters[path]].sum())
            options["groups"] = entering * conv.groups // conv.in_channels
    return Darknet(with_options(_darknet(model).cfg, changes))


def _narrow_squeezedet(model: SqueezeDet, widths: dict[str, int]) -> SqueezeDet:
    def triple(path: str) -> tuple[int, int, int]:
        squeeze, expand1, expand3 = (
            widths[f"{path}.{part}.conv"] for part in ("squeeze", "expand1", "expand3")
        )
        return squeeze, expand1, expand3

    config, levels = model.config, len(model.config.pyramid)
    merges = [f"pyramid.merges.{level}.fire" for level in reversed(range(levels - 1))]
    narrow = replace(
        config,
        conv1=(widths["body.conv1.conv"], config.conv1[1]),
        fires=tuple(triple(f"body.fire{n}") for n in range(2, 2 + len(config.fires))),
        pyramid=tuple(triple(path) for path in ("pyramid.top.1", *merges)[:levels]),
    )
    return SqueezeDet(narrow)


def _sliced(model: nn.Module, wiring: Wiring, alive: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
    convolutions = wiring.convolutions
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        path = name.rpartition(".")[0]
        if tensor.ndim:
            tensor = tensor[torch.from_numpy(np.flatnonzero(alive[wiring.leaves[path]]))]
        # Groups are removed whole, so all that enters a group that stays is there.
        if tensor.ndim == 4 and convolutions[path].groups == 1:
            tensor = tensor[:, torch.from_numpy(np.flatnonzero(alive[wiring.enters[path]]))]
        state[name] = tensor.clone()
    return state
