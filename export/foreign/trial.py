"""The labelled run: which reading and which input contract find the objects on real pictures.

A swapped channel order costs four to five points of average precision and draws perfectly sensible
boxes; only labels tell. A contract that the family or the file states is changed only where another
one is better beyond chance.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import Dataset, Item, load
from edge.data.items import thin
from edge.data.metrics import evaluate_detections
from edge.detections import Detections
from edge.errors import DataError
from edge.letterbox import Letterbox
from edge.reporting import track
from edge.runtime.ops_cpu import Decoder, Preprocessor
from edge.spec import InputContract, ModelSpec
from export.foreign.forms import Hypothesis

__all__ = ["Trial", "better", "scales_of", "variants"]

Frame = NDArray[np.uint8]
_SCORE = 0.01
_LIMIT = 100
# Pictures for a choice between scales, which differ widely, and between all else.
_FEW, _MOST = 24, 100
_SECONDS = 60.0
# By how much another contract must be better than the family's own: absolutely and relatively.
_MARGIN, _RATIO = 0.015, 1.06
_IMAGENET = ((123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375))


class Trial:
    """Labelled pictures, read once, and the session that is judged on them."""

    def __init__(self, session: Any, dataset: Dataset) -> None:
        """Read at most a hundred pictures of `dataset`, spread evenly.

        Raises:
            DataError: no picture can be read.
        """
        self._session = session
        (self._input,) = [each.name for each in session.get_inputs()]
        self._dataset = dataset
        frames: list[Frame] = []
        items: list[Item] = []
        for item in thin(dataset.items, _MOST):
            try:
                frame, known = load(item)
            except DataError:
                continue
            frames.append(frame)
            items.append(known)
        if not items:
            raise DataError(f"{dataset.source}: no picture of it can be read")
        self._frames, self._items = frames, items
        self._seconds: float | None = None

    def __len__(self) -> int:
        return len(self._items)

    def pictures(self, contracts: int) -> int:
        """How many of the pictures so many contracts can be tried on in a minute."""
        if self._seconds is None:
            shape = self._session.get_inputs()[0].shape
            names = [each.name for each in self._session.get_outputs()]
            feed = {self._input: np.zeros(shape, np.float32)}
            self._session.run(names, feed)
            start = time.perf_counter()
            self._session.run(names, feed)
            self._seconds = time.perf_counter() - start
        return int(np.clip(_SECONDS / (self._seconds + 1e-3) / contracts, _FEW, _MOST))

    def ap(
        self,
        readings: Sequence[tuple[Hypothesis, InputContract]],
        classes: Sequence[str],
        count: int,
    ) -> list[tuple[float, float]]:
        """AP and AP50 of each reading on `count` pictures.

        Raises:
            DataError: the labels and the network share no class.
        """
        chosen = thin(range(len(self._items)), min(count, len(self._items)))
        part = replace(self._dataset, items=tuple(self._items[i] for i in chosen))
        found: list[list[Detections]] = [[] for _ in readings]
        tools = [
            (Preprocessor(contract), _decoder(each, contract, classes), each)
            for each, contract in readings
        ]
        for i in track(chosen, "trying readings on labelled pictures", len(chosen)):
            known: dict[str, Any] = {}
            for kept, (preprocess, decoder, each) in zip(found, tools, strict=True):
                digest = preprocess.contract.digest
                if digest not in known:
                    known[digest] = self._run(preprocess, self._frames[i])
                outputs, fit = known[digest]
                kept.append(_detect(decoder, each, outputs, fit, self._frames[i].shape[:2]))
        names = tuple(classes)
        results = [evaluate_detections(part, each, names) for each in found]
        return [(float(one.map50_95), float(one.map50)) for one in results]

    def _run(self, preprocess: Preprocessor, frame: Frame) -> tuple[dict[str, Any], Letterbox]:
        names = [each.name for each in self._session.get_outputs()]
        tensor, fit = preprocess(frame)
        values = self._session.run(names, {self._input: tensor})
        return dict(zip(names, values, strict=True)), fit


def _decoder(found: Hypothesis, contract: InputContract, classes: Sequence[str]) -> Decoder:
    return Decoder(ModelSpec("trial", found.kind, tuple(classes), contract, found.heads))


def _detect(
    decoder: Decoder,
    found: Hypothesis,
    outputs: dict[str, Any],
    fit: Letterbox,
    hw: tuple[int, ...],
) -> Detections:
    raw = [outputs[name] for head in found.heads for name in head.tensors]
    seen = decoder.suppress(decoder(raw, _SCORE), found.iou, _LIMIT)
    sides = np.array((hw[1], hw[0], hw[1], hw[0]))
    boxes: Any = np.clip(fit.to_source(seen.xyxy), 0, sides)
    return Detections(boxes, seen.score, seen.class_id)


def scales_of(own: InputContract) -> list[InputContract]:
    """`own` and the scales and means that networks commonly take."""
    mean, scale = _IMAGENET
    flip = own.channel_order == "BGR"
    tried = [
        ((0.0,) * 3, (1 / 255,) * 3),
        ((0.0,) * 3, (1.0,) * 3),
        ((127.5,) * 3, (1 / 127.5,) * 3),
        (mean[::-1], scale[::-1]) if flip else (mean, scale),
        ((104.0, 117.0, 123.0) if flip else (123.0, 117.0, 104.0), (1.0,) * 3),
    ]
    contracts = [own]
    for its_mean, its_scale in tried:
        other = replace(own, mean=its_mean, scale=its_scale)
        alike = np.allclose(own.mean, its_mean, atol=2) and np.allclose(
            own.scale, its_scale, rtol=0.05
        )
        if not alike:
            contracts.append(other)
    return contracts


def variants(own: InputContract) -> list[tuple[str, InputContract]]:
    """The other channel order, ways of resizing and placements, each alone."""
    order: Any = "BGR" if own.channel_order == "RGB" else "RGB"
    swapped = replace(own, channel_order=order, mean=own.mean[::-1], scale=own.scale[::-1])
    found = [(f"channels {order}", swapped)]
    if own.resize == "letterbox":
        place: Any = "top left" if own.placement == "centre" else "centre"
        found.append(("stretch", replace(own, resize="stretch")))
        found.append((f"letterbox {place}", replace(own, placement=place)))
    else:
        places: Any = ("centre", "top left")
        for place in places:
            found.append((f"letterbox {place}", replace(own, resize="letterbox", placement=place)))
    return found


def better(one: float, other: float) -> bool:
    """Whether `one` beats `other` by more than these few pictures could show by chance."""
    return one > other + _MARGIN and one > other * _RATIO
