"""Class dissection: which feature maps answer to the classes that are kept, and their images.

A map's mean m and variance v over images of these classes alone give its score m²/v + log v. A map
that is silent or the same everywhere tells nothing about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.compress.channels.importance import Importances
from edge.compress.channels.wiring import Wiring
from edge.data.classes import match_classes
from edge.data.datasets import Dataset, Item, load
from edge.data.items import EVERY_CLASS
from edge.errors import DataError
from edge.models.hooks import hooked

__all__ = ["Moments", "of_classes", "only_classes", "profile", "scores"]

# A variance below this is rounding: such a map is constant.
_CONSTANT = 1e-12
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance (C,) of C feature maps over `count` pixels of all images."""

    mean: Array
    variance: Array
    count: int

    def __add__(self, other: Moments) -> Moments:
        """Combine both, without a sum of squares (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        share = other.count / count
        spread = self.variance * (1 - share) + other.variance * share
        return Moments(
            self.mean + share * shift, spread + share * (1 - share) * shift * shift, count
        )


def profile(model: nn.Module, wiring: Wiring, images: Iterable[torch.Tensor]) -> dict[str, Moments]:
    """Return the moments of each convolution's feature maps, after its activation, by its path.

    They are gathered batch by batch in constant memory.

    Args:
        wiring: of `model`.
        images: batches (N, 3, H, W) as the network takes them.

    Raises:
        ValueError: no images.
    """
    found: dict[str, Moments] = {}
    hooks = [
        model.get_submodule(end).register_forward_hook(partial(_gather, found, path))
        for path, end in wiring.ends.items()
    ]
    with hooked(hooks), torch.no_grad():
        for batch in images:
            model(batch)
    if not found:
        raise ValueError("a profile takes at least one image")
    return found


def _gather(
    found: dict[str, Moments], path: str, _module: nn.Module, _inputs: Any, output: torch.Tensor
) -> None:
    values = output.transpose(0, 1).flatten(1).double()
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    new = Moments(mean.numpy(), variance.numpy(), values.shape[1])
    found[path] = found[path] + new if path in found else new


def scores(moments: dict[str, Moments]) -> Importances:
    """Return m²/v + log v of every feature map, by the path of its convolution.

    A constant map gets minus infinity.
    """
    return {path: _score(one.mean, one.variance) for path, one in moments.items()}


def _score(mean: Array, variance: Array) -> Array:
    safe = np.maximum(variance, _CONSTANT)
    return np.where(variance > _CONSTANT, mean * mean / safe + np.log(safe), -np.inf)


def of_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the images with at least one of `classes`, and of their boxes only those.

    Crowds and regions of every class stay: nothing inside them is right or wrong.

    Raises:
        DataError: there is no such image.
    """
    join = match_classes(dataset.classes, classes)
    items = [_of_item(_labelled(item), join) for item in dataset.items]
    kept = tuple(item for item in items if (item.class_id != EVERY_CLASS).any())
    if not kept:
        raise DataError(f"{dataset.source}: no image with {', '.join(classes)}")
    # KITTI's rule for neighbouring classes needs the names of classes that are gone.
    kind = "yolo" if dataset.kind == "kitti" else dataset.kind
    return replace(dataset, kind=kind, classes=tuple(classes), items=kept)


def only_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the images that hold `classes` and no others.

    Raises:
        DataError: there is no such image.
    """
    join = match_classes(dataset.classes, classes)
    pure = tuple(
        item
        for item in map(_labelled, dataset.items)
        if len(item) and (join[item.class_id[item.class_id != EVERY_CLASS]] >= 0).all()
    )
    if not pure:
        raise DataError(
            f"{dataset.source}: no image holds only {', '.join(classes)}; give images that do"
        )
    return of_classes(replace(dataset, items=pure), classes)


def _labelled(item: Item) -> Item:
    """Return the item with its boxes; those of a built-in scene are known once it is rendered."""
    if item.seed is None or item.hw is not None:
        return item
    return replace(load(item)[1], seed=item.seed)


def _of_item(item: Item, join: NDArray[np.int32]) -> Item:
    every = item.class_id == EVERY_CLASS
    pick = np.flatnonzero(every | (join[np.where(every, 0, item.class_id)] >= 0))
    class_id = np.where(every, EVERY_CLASS, join[np.where(every, 0, item.class_id)])[pick]
    return replace(
        item,
        xyxy=item.xyxy[pick],
        class_id=class_id.astype(np.int32),
        crowd=item.crowd[pick],
        ignore=item.ignore[pick],
        area=item.area[pick],
    )
