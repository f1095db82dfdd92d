"""From importance and cost to a plan: the least important channels go until a budget is met."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.compress.channels.cost import Cost
from edge.compress.channels.importance import Importances, of_family
from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.wiring import FIXED, Wiring
from edge.compress.options import ChannelOptions
from edge.errors import CompressionError

__all__ = ["plan_channels", "plan_share", "total_cost", "untouched_paths"]

_SHARES = 256


def total_cost(wiring: Wiring, cost: Cost) -> float:
    """Return what the network costs as it is."""
    return sum(
        cost(path, len(wiring.enters[path]), len(wiring.leaves[path])) for path in wiring.ends
    )


def untouched_paths(wiring: Wiring, options: ChannelOptions) -> tuple[str, ...]:
    """Return the convolutions that keep all channels."""
    return tuple(wiring.ends)[: options.untouched]


def plan_channels(
    wiring: Wiring,
    importance: Importances,
    cost: Cost,
    budget: float,
    options: ChannelOptions,
    model: str = "",
) -> PrunePlan:
    """Return the plan that brings the sum of `cost` to `budget` or just below.

    With `spread` `layer` one share of every family is kept; with `global` a channel goes wherever
    the least importance is lost for what is saved. Importances by Taylor are comparable between
    layers; any others are divided by their family's mean. What is bound to an untouched
    convolution keeps its channels too.

    Args:
        importance: by path, see `edge.compress.channels.importance`.
        cost: of one convolution at some widths.
        budget: in the unit of `cost`.
        model: name for the plan.

    Raises:
        CompressionError: the budget cannot be met.
    """
    families = _families(wiring, importance, options, options.importance == "taylor")
    widths = _Widths(wiring)
    search = _greedy if options.spread == "global" else _evenly
    counts = search(families, widths, cost, budget)
    reached = sum(cost(path, *widths.at(path, counts)) for path in widths.parts)
    if reached > budget * (1 + 1e-9):
        raise CompressionError(
            f"{model}: the budget {budget:.4g} cannot be met: the smallest network still takes "
            f"{reached:.4g} of {total_cost(wiring, cost):.4g}; allow more, or lower the smallest "
            f"share of a layer's channels, {options.least:g}"
        )
    return _plan(wiring, model, families, counts)


def plan_share(
    wiring: Wiring,
    importance: Importances,
    share: float,
    options: ChannelOptions,
    model: str = "",
) -> PrunePlan:
    """Return the plan that keeps `share` of every family, as near as the options allow."""
    families = _families(wiring, importance, options, comparable=False)
    return _plan(wiring, model, families, [_nearest(each.counts, share) for each in families])


@dataclass(frozen=True, eq=False)
class _FamilyWidths:
    """The widths that a family may take.

    Attributes:
        labels: the most important first.
        counts: how many of them may stay, descending from all.
        lost: importance that is lost with each of `counts`, see `_lost`.
    """

    labels: tuple[int, ...]
    counts: tuple[int, ...]
    lost: NDArray[np.float64]


def _families(
    wiring: Wiring, importance: Importances, options: ChannelOptions, comparable: bool
) -> list[_FamilyWidths]:
    untouched = set(untouched_paths(wiring, options))
    return [
        _family(
            of_family(importance, wiring, family),
            family.labels,
            options.align,
            1.0 if set(family.members) & untouched else options.least,
            comparable,
        )
        for family in wiring.families
    ]


def _family(
    importance: NDArray[np.float64],
    labels: tuple[int, ...],
    align: int,
    least: float,
    comparable: bool,
) -> _FamilyWidths:
    order = np.argsort(-importance, kind="stable")
    size = len(labels)
    lowest = min(size, math.ceil(max(1, least * size) / align) * align)
    narrower = range((size - 1) // align * align, lowest - 1, -align)
    counts = (size, *(count for count in narrower if count > 0))
    weights = importance if comparable else _relative(importance)
    lost = _lost(weights[order])[list(counts)]
    return _FamilyWidths(tuple(labels[i] for i in order), counts, lost)


def _lost(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the importance lost when the first n channels of a family stay, for n from 0 to all.

    Each channel counts relative to what its family still has when it goes, as weights do in LAMP
    (arXiv:2010.07611): plain sums are right for one channel and far too small for most of a layer.
    """
    kept = np.append(0.0, np.cumsum(weights))
    smallest = max(float(kept[-1]) * 1e-12, 1e-30)
    return np.asarray(-kept[-1] * np.log(np.maximum(kept, smallest) / max(kept[-1], smallest)))


def _relative(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide by the mean; where numbers are negative, only their ranks count."""
    weights = importance
    if (importance < 0).any():
        weights = np.argsort(np.argsort(importance, kind="stable"), kind="stable").astype(float) + 1
    return np.asarray(weights / max(float(weights.mean()), 1e-30))


class _Greedy:
    """Narrows one family at a time, that which loses the least for what it saves."""

    def __init__(self, families: list[_FamilyWidths], widths: _Widths, cost: Cost) -> None:
        self._families, self._widths, self._cost = families, widths, cost
        self._touched = [widths.touched(number) for number in range(len(families))]
        self._steps = [0] * len(families)
        self.counts = [family.counts[0] for family in families]
        self._now = self._costs(list(widths.parts), self.counts)

    def total(self) -> float:
        return sum(self._now.values())

    def narrow(self) -> bool:
        """Narrow one family; return False where narrowing any of them saves nothing."""
        able = [
            (number, step)
            for number, family in enumerate(self._families)
            for step in range(self._steps[number] + 1, len(family.counts))
        ]
        prices = [self._price(jump) for jump in able]
        if min(prices, default=math.inf) == math.inf:
            return False
        number, step = able[prices.index(min(prices))]
        self.counts = self._narrowed(number, step)
        self._steps[number] = step
        self._now.update(self._costs(self._touched[number], self.counts))
        return True

    def _price(self, jump: tuple[int, int]) -> float:
        """Return the importance that a family loses for each unit of cost that it saves.

        Jumps of any length count: a time falls in stairs, and may rise before it falls.
        """
        number, step = jump
        lost = self._families[number].lost
        then = self._costs(self._touched[number], self._narrowed(number, step))
        saved = sum(self._now[path] - cost for path, cost in then.items())
        if saved <= 0:
            return math.inf
        return float(lost[step] - lost[self._steps[number]]) / saved

    def _narrowed(self, number: int, step: int) -> list[int]:
        counts = [*self.counts]
        counts[number] = self._families[number].counts[step]
        return counts

    def _costs(self, paths: list[str], counts: list[int]) -> dict[str, float]:
        return {path: self._cost(path, *self._widths.at(path, counts)) for path in paths}


def _greedy(families: list[_FamilyWidths], widths: _Widths, cost: Cost, budget: float) -> list[int]:
    search = _Greedy(families, widths, cost)
    while search.total() > budget and search.narrow():
        pass
    return search.counts


def _evenly(families: list[_FamilyWidths], widths: _Widths, cost: Cost, budget: float) -> list[int]:
    counts = [family.counts[0] for family in families]
    for share in np.linspace(1, 0, _SHARES + 1).tolist():
        counts = [_nearest(family.counts, share) for family in families]
        if sum(cost(path, *widths.at(path, counts)) for path in widths.parts) <= budget:
            break
    return counts


def _nearest(counts: Iterable[int], share: float) -> int:
    counts = tuple(counts)
    return min(counts, key=lambda count: abs(count - share * counts[0]))


def _plan(
    wiring: Wiring, model: str, families: list[_FamilyWidths], counts: list[int]
) -> PrunePlan:
    alive = {
        label
        for family, count in zip(families, counts, strict=True)
        for label in family.labels[:count]
    }
    kept: dict[str, tuple[int, ...]] = {}
    widths: dict[str, int] = {}
    for path in wiring.ends:
        labels = wiring.leaves[path].tolist()
        keeps = tuple(c for c, label in enumerate(labels) if label == FIXED or label in alive)
        if len(keeps) < len(labels):
            kept[path], widths[path] = keeps, len(labels)
    return PrunePlan(model, kept, widths)


class _Widths:
    """Input and output channels of every convolution when some labels of each family stay.

    Attributes:
        parts: by path, channels per label of each family, entering and leaving; under -1 those
            that always stay.
    """

    def __init__(self, wiring: Wiring) -> None:
        family_of = {
            label: number
            for number, family in enumerate(wiring.families)
            for label in family.labels
        }
        self.parts: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
        sizes = [len(family.labels) for family in wiring.families]
        for path in wiring.ends:
            sides = (wiring.enters[path].tolist(), wiring.leaves[path].tolist())
            entering, leaving = (_parts(side, family_of, sizes) for side in sides)
            self.parts[path] = (entering, leaving)

    def at(self, path: str, counts: list[int]) -> tuple[int, int]:
        """Return a convolution's input and output channels, with `counts` labels of each family."""
        entering, leaving = (
            round(sum(each * (1 if f < 0 else counts[f]) for f, each in part.items()))
            for part in self.parts[path]
        )
        return entering, leaving

    def touched(self, family: int) -> list[str]:
        """Return the convolutions whose widths depend on a family's count."""
        return [path for path, sides in self.parts.items() if any(family in s for s in sides)]


def _parts(labels: list[int], family_of: dict[int, int], sizes: list[int]) -> dict[int, float]:
    """Return the channels per kept label of each family; under -1 those that always stay."""
    found: dict[int, float] = {}
    for label in labels:
        key = -1 if label == FIXED else family_of[label]
        found[key] = found.get(key, 0.0) + (1.0 if key < 0 else 1.0 / sizes[key])
    return found
