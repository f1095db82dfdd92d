"""From importance and cost to a plan: the least important channels go until a budget is met."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.compress.channels.cost import Cost
from edge.compress.channels.importance import Importance, of_family
from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.wiring import FIXED, Wiring
from edge.errors import CompressionError

__all__ = ["Spread", "Widths", "plan_channels", "plan_share", "total_cost"]

Spread = Literal["global", "layer"]
_SHARES = 256


@dataclass(frozen=True, eq=False)
class _Choice:
    """One family's possible widths.

    Attributes:
        labels: the most important first.
        counts: how many of them may stay, descending from all.
        lost: importance that goes with each of `counts`, see `_lost`.
    """

    labels: tuple[int, ...]
    counts: tuple[int, ...]
    lost: NDArray[np.float64]


def total_cost(wiring: Wiring, cost: Cost) -> float:
    """What the network costs as it is."""
    return sum(cost(path, *_full(wiring, path)) for path in wiring.ends)


def _full(wiring: Wiring, path: str) -> tuple[int, int]:
    return len(wiring.enters[path]), len(wiring.leaves[path])


def plan_channels(
    wiring: Wiring,
    importance: Importance,
    cost: Cost,
    budget: float,
    *,
    model: str = "",
    spread: Spread = "global",
    comparable: bool = False,
    align: int = 8,
    least: float = 0.2,
    untouched: Collection[str] = (),
) -> PrunePlan:
    """The plan that brings the sum of `cost` to `budget` or just below.

    Args:
        wiring: of the network.
        importance: by path, see `edge.compress.channels.importance`.
        cost: of one convolution at some widths.
        budget: in `cost`'s unit.
        model: name for the plan.
        spread: `layer` keeps one share of every family; `global` takes, wherever it is, what
            loses least importance for what it saves.
        comparable: whether importances of different layers can be compared as they are (Taylor);
            otherwise each family's are divided by their mean.
        align: widths become multiples of this, where they were wider.
        least: share of a family that always stays.
        untouched: convolutions that keep all channels, with whatever is bound to them.

    Raises:
        CompressionError: the budget cannot be met.
    """
    choices = _choices(wiring, importance, align, least, untouched, comparable)
    widths = Widths(wiring)
    search = _greedy if spread == "global" else _evenly
    counts = search(choices, widths, cost, budget)
    reached = sum(cost(path, *widths.at(path, counts)) for path in widths.parts)
    if reached > budget * (1 + 1e-9):
        raise CompressionError(
            f"{model}: the budget {budget:.4g} cannot be met: of {total_cost(wiring, cost):.4g} it "
            f"takes {reached:.4g} at its best; allow more, or a smaller share to stay than "
            f"{least:g}"
        )
    return _plan(wiring, model, choices, counts)


def plan_share(
    wiring: Wiring,
    importance: Importance,
    share: float,
    *,
    model: str = "",
    align: int = 8,
    least: float = 0.2,
    untouched: Collection[str] = (),
) -> PrunePlan:
    """The plan that keeps one share of every family, as near as `align` and `least` allow.

    Args:
        share: of the channels that stay.
        wiring, importance, model, align, least, untouched: as `plan_channels`.
    """
    choices = _choices(wiring, importance, align, least, untouched, comparable=False)
    return _plan(wiring, model, choices, [_nearest(each.counts, share) for each in choices])


def _choices(
    wiring: Wiring,
    importance: Importance,
    align: int,
    least: float,
    untouched: Collection[str],
    comparable: bool,
) -> list[_Choice]:
    if align < 1 or not 0 < least <= 1:
        raise ValueError(f"align {align} takes 1 or more, least {least} a share above 0")
    return [
        _choice(
            of_family(importance, wiring, family),
            family.labels,
            align,
            1.0 if set(family.members) & set(untouched) else least,
            comparable,
        )
        for family in wiring.families
    ]


def _choice(
    importance: NDArray[np.float64],
    labels: tuple[int, ...],
    align: int,
    least: float,
    comparable: bool,
) -> _Choice:
    order = np.argsort(-importance, kind="stable")
    size = len(labels)
    lowest = min(size, math.ceil(max(1, least * size) / align) * align)
    narrower = range((size - 1) // align * align, lowest - 1, -align)
    counts = (size, *(count for count in narrower if count > 0))
    weights = importance if comparable else _relative(importance)
    return _Choice(tuple(labels[i] for i in order), counts, _lost(weights[order])[list(counts)])


def _lost(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Importance lost when the first n channels of a family stay, for n from 0 to all.

    Each channel counts by what its family still has when it goes, as weights do in LAMP
    (arXiv:2010.07611): plain sums are right for one channel and far too small for most of a layer.
    """
    kept = np.append(0.0, np.cumsum(weights))
    smallest = max(float(kept[-1]) * 1e-12, 1e-30)
    return np.asarray(-kept[-1] * np.log(np.maximum(kept, smallest) / max(kept[-1], smallest)))


def _relative(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """By the mean; of numbers with negative ones among them only the ranks count."""
    weights = importance
    if (importance < 0).any():
        weights = np.argsort(np.argsort(importance, kind="stable"), kind="stable").astype(float) + 1
    return np.asarray(weights / max(float(weights.mean()), 1e-30))


class _Greedy:
    """Families narrowed one step at a time, the cheapest loss for what it saves first."""

    def __init__(self, choices: list[_Choice], widths: Widths, cost: Cost) -> None:
        self._choices, self._widths, self._cost = choices, widths, cost
        self._touched = [widths.touched(number) for number in range(len(choices))]
        self._steps = [0] * len(choices)
        self.counts = [choice.counts[0] for choice in choices]
        self._now = self._costs(list(widths.parts), self.counts)

    def total(self) -> float:
        return sum(self._now.values())

    def narrow(self) -> bool:
        """Narrow one family; False where that saves nothing, whichever it is."""
        able = [
            (number, step)
            for number, choice in enumerate(self._choices)
            for step in range(self._steps[number] + 1, len(choice.counts))
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
        """Importance that a family loses for each unit of cost that it saves.

        Jumps of any length count: a time falls in stairs, and may rise before it falls.
        """
        number, step = jump
        lost = self._choices[number].lost
        then = self._costs(self._touched[number], self._narrowed(number, step))
        saved = sum(self._now[path] - cost for path, cost in then.items())
        if saved <= 0:
            return math.inf
        return float(lost[step] - lost[self._steps[number]]) / saved

    def _narrowed(self, number: int, step: int) -> list[int]:
        counts = [*self.counts]
        counts[number] = self._choices[number].counts[step]
        return counts

    def _costs(self, paths: list[str], counts: list[int]) -> dict[str, float]:
        return {path: self._cost(path, *self._widths.at(path, counts)) for path in paths}


def _greedy(choices: list[_Choice], widths: Widths, cost: Cost, budget: float) -> list[int]:
    search = _Greedy(choices, widths, cost)
    while search.total() > budget and search.narrow():
        pass
    return search.counts


def _evenly(choices: list[_Choice], widths: Widths, cost: Cost, budget: float) -> list[int]:
    counts = [choice.counts[0] for choice in choices]
    for share in np.linspace(1, 0, _SHARES + 1).tolist():
        counts = [_nearest(choice.counts, share) for choice in choices]
        if sum(cost(path, *widths.at(path, counts)) for path in widths.parts) <= budget:
            break
    return counts


def _nearest(counts: Iterable[int], share: float) -> int:
    counts = tuple(counts)
    return min(counts, key=lambda count: abs(count - share * counts[0]))


def _plan(wiring: Wiring, model: str, choices: list[_Choice], counts: list[int]) -> PrunePlan:
    alive = {
        label
        for choice, count in zip(choices, counts, strict=True)
        for label in choice.labels[:count]
    }
    kept: dict[str, tuple[int, ...]] = {}
    widths: dict[str, int] = {}
    for path in wiring.ends:
        labels = wiring.leaves[path].tolist()
        keeps = tuple(c for c, label in enumerate(labels) if label == FIXED or label in alive)
        if len(keeps) < len(labels):
            kept[path], widths[path] = keeps, len(labels)
    return PrunePlan(model, kept, widths)


class Widths:
    """Input and output channels of every convolution at some counts of the families.

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
        """Input and output channels of a convolution, with `counts` labels of each family."""
        entering, leaving = (
            round(sum(each * (1 if f < 0 else counts[f]) for f, each in part.items()))
            for part in self.parts[path]
        )
        return entering, leaving

    def touched(self, family: int) -> list[str]:
        """Convolutions whose widths depend on a family's count."""
        return [path for path, sides in self.parts.items() if any(family in s for s in sides)]


def _parts(labels: list[int], family_of: dict[int, int], sizes: list[int]) -> dict[int, float]:
    """Channels per kept label of each family; under -1 those that always stay."""
    found: dict[int, float] = {}
    for label in labels:
        key = -1 if label == FIXED else family_of[label]
        found[key] = found.get(key, 0.0) + (1.0 if key < 0 else 1.0 / sizes[key])
    return found
