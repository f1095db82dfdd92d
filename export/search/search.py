"""Which convolutions to keep in floating point so that an accuracy budget holds at least cost.

Layers are ordered by the noise that keeping them takes from the heads for each millisecond that it
costs; noise powers of layers add up, near enough to order them. Along that order accuracy is
measured, not estimated: the shortest prefix that fits is found by bisection, then layers whose
keeping costs most are tried without.

Milliseconds of layers do not add up: each border between precisions costs a conversion, and fused
layers part. So they only order; what is chosen is the fastest of the graphs that fit, each timed
as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "FEW_PICTURES",
    "SearchTrials",
    "Trial",
    "fastest",
    "fits",
    "hopeless",
    "keep_order",
    "most_int8",
    "pareto",
    "search",
    "upper_drop",
    "within",
    "worth_timing",
]

# One-sided 95 % of a normal distribution.
_SURE = 1.645
# Fewer pictures than this can all agree by chance; then the heads must be close too.
FEW_PICTURES = 200
FEW_PICTURES_DB = 30.0
# Graphs whose times differ by less are equally fast, by a short measurement.
_SAME_MS = 0.03
# What a sound network keeps to its heads whatever mAP says of a small set.
_FLOOR_DB = 12.0


@dataclass(frozen=True)
class Trial:
    """A set of kept layers and what was measured of it.

    Attributes:
        kept: convolutions out of INT8.
        map50: on the selection pictures.
        drop: mAP lost against FP32 on them, 0..1.
        spread: standard error of `drop`, of the paired bootstrap.
        head_db: signal to noise of the heads.
        kept_ms: what keeping costs by the layers' milliseconds, an estimate.
        pictures: how many were judged.
        size: bytes of the graph.
    """

    kept: frozenset[str]
    map50: float
    drop: float
    spread: float
    head_db: float
    kept_ms: float
    pictures: int
    size: int = 0

    @property
    def upper(self) -> float:
        """Bound of the drop, see `upper_drop`."""
        return upper_drop(self.drop, self.spread)


@dataclass(frozen=True)
class SearchTrials:
    """The cheapest trial that fits, and every trial."""

    chosen: Trial
    trials: tuple[Trial, ...]


def upper_drop(drop: float, spread: float) -> float:
    """Return the 95 % bound of the drop that pictures like these have on average.

    Rounding adds noise and no knowledge, so a gain is taken for luck.
    """
    return max(drop, 0.0) + _SURE * spread


def hopeless(drop: float, spread: float, budget: float) -> bool:
    """Whether more pictures would hardly bring the drop into the budget."""
    return drop - _SURE * spread > budget


def fits(trial: Trial, budget: float) -> bool:
    """Whether a trial keeps the budget, and on few pictures the heads' noise floor as well."""
    return within(budget, trial.drop, trial.spread, trial.head_db, trial.pictures)


def within(budget: float, drop: float, spread: float, head_db: float, pictures: int) -> bool:
    """Whether a budget holds: what `fits` says, from the figures alone."""
    floor = _FLOOR_DB if pictures >= FEW_PICTURES else FEW_PICTURES_DB
    return upper_drop(drop, spread) <= budget and head_db >= floor


def keep_order(noise: Mapping[str, float], cost_ms: Mapping[str, float]) -> list[str]:
    """Return layers by the noise that keeping them removes for each millisecond that it costs."""
    least = 1e-3 * max(max(cost_ms.values(), default=0.0), 1e-6)
    return sorted(noise, key=lambda name: -noise[name] / max(cost_ms.get(name, 0.0), least))


def search(
    order: Sequence[str],
    cost_ms: Mapping[str, float],
    measure: Callable[[frozenset[str]], Trial],
    good: Callable[[Trial], bool],
    tries: int = 6,
) -> SearchTrials:
    """Find the set of kept layers that is `good` and cheapest by the estimate; keep every trial.

    All layers kept is tried too where some must be: a mixture may turn out slower than none.

    With every layer kept a network is its own reference; should not even that be good, it is
    what is returned.

    Args:
        order: of the layers, the best to keep first.
        tries: how many of the dearest kept layers to try without.
    """
    trials: dict[frozenset[str], Trial] = {}

    def at(kept: Collection[str]) -> Trial:
        key = frozenset(kept)
        if key not in trials:
            trials[key] = measure(key)
        return trials[key]

    best = at(()) if good(at(())) else _shortest(order, at, good)
    for name in sorted(best.kept, key=lambda name: -cost_ms.get(name, 0.0))[:tries]:
        without = best.kept - {name}
        if cost_ms.get(name, 0.0) > 0 and good(at(without)):
            best = at(without)
    if best.kept:
        at(order)
    return SearchTrials(best, tuple(trials.values()))


def _shortest(
    order: Sequence[str],
    at: Callable[[Collection[str]], Trial],
    good: Callable[[Trial], bool],
) -> Trial:
    """Bisect over prefixes of `order`; the empty one is known not to be good."""
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if good(at(order[:middle])):
            high = middle
        else:
            low = middle
    return at(order[:high])


def worth_timing(found: SearchTrials, good: Callable[[Trial], bool], most: int) -> list[Trial]:
    """Return the trials that may end on the front or be chosen: at most `most` and the two ends.

    Those that fit come first, by the estimate of their cost, then the estimated front.
    """
    estimate = {trial.kept: trial.kept_ms for trial in found.trials}
    fitting = sorted(filter(good, found.trials), key=lambda trial: trial.kept_ms)
    row = [found.chosen, *fitting, *pareto(found.trials, estimate)]
    ends = [min(found.trials, key=lambda one: len(one.kept))]
    ends.append(max(found.trials, key=lambda one: len(one.kept)))
    return list(dict.fromkeys([*list(dict.fromkeys(row))[:most], *ends]))


def fastest(
    trials: Sequence[Trial], ms: Mapping[frozenset[str], float], good: Callable[[Trial], bool]
) -> Trial | None:
    """Return the fastest timed trial that is `good`; of equally fast ones, that which keeps least.

    None where none is good.
    """
    fitting = [trial for trial in trials if trial.kept in ms and good(trial)]
    least = min((ms[trial.kept] for trial in fitting), default=0.0)
    near = [trial for trial in fitting if ms[trial.kept] <= least * (1 + _SAME_MS)]
    return min(near, key=lambda trial: (len(trial.kept), ms[trial.kept]), default=None)


def most_int8(trials: Sequence[Trial], good: Callable[[Trial], bool]) -> Trial | None:
    """Return, of the trials that are `good`, the one that keeps fewest layers; None if none is.

    Of as few layers, those that leave the heads with least noise.
    """
    fitting = [trial for trial in trials if good(trial)]
    return min(fitting, key=lambda trial: (len(trial.kept), -trial.head_db), default=None)


def pareto(trials: Sequence[Trial], ms: Mapping[frozenset[str], float]) -> list[Trial]:
    """Return the trials that no other one beats in both the bound of the drop and milliseconds.

    The fastest come first; trials that are not in `ms` are passed over.
    """
    front: list[Trial] = []
    timed = (trial for trial in trials if trial.kept in ms)
    for trial in sorted(timed, key=lambda one: (ms[one.kept], one.upper)):
        if not front or trial.upper < front[-1].upper:
            front.append(trial)
    return front
