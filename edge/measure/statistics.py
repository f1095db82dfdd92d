"""How sure a difference is: mean average precision over images, latency over blocks of a run.

Average precision is COCO's (101 recall thresholds, https://cocodataset.org/#detection-eval) with a
weight for each image, so that a bootstrap is one array operation. Weights are those of the Bayesian
bootstrap (Rubin 1981, doi:10.1214/aos/1176345338): no class ever vanishes from a resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edge.measure.results import ClassResults

__all__ = [
    "FEW_OBJECTS",
    "Comparison",
    "average_precision",
    "compare_percentile",
    "compare_precision",
    "compare_ratio",
    "difference_spread",
    "interval",
    "judge",
    "mean_precision",
    "minimum_detectable_drop",
    "quantile",
    "resample",
    "thinned",
]

Results = Mapping[str, ClassResults]
Floats = NDArray[np.float64]
_RECALL = np.linspace(0.0, 1.0, 101)
# Whole numbers keep sums exact: an object found in every image gives a recall of exactly 1.
_UNIT = 1024
_CHUNK = 2_000_000
_SURE = 0.05
# A class with fewer objects gets an uncertainty by their count: a resample of one image is that
# image again, so that a bootstrap would call one lost object a certainty.
FEW_OBJECTS = 10
_PRIOR = 0.5  # Jeffreys' of each share: found before alone, found now alone, neither
# A standard error falls with the square root: ten times smaller takes a hundred times as many.
_HOPELESS = 10


@dataclass(frozen=True)
class Comparison:
    """A difference between before and now, and what it means.

    Attributes:
        verdict: better, same, worse or cannot tell.
        loss: how much worse it is now; precision lost (0..1) or log of the latency ratio.
        spread: standard error of `loss`.
        low, high: one-sided bounds of `loss` at the alarm's level.
        beyond: probability that the loss exceeds the margin.
        margin: loss that is tolerated.
        few: classes with so few objects that the verdict rests on their count.
        more: images or blocks that are still needed to tell; 0 where it can be told, and where a
            hundred times as many would not do.
    """

    verdict: str
    loss: float
    spread: float
    low: float
    high: float
    beyond: float
    margin: float
    more: int = 0
    few: tuple[str, ...] = ()


def resample(images: int, draws: int, seed: int = 0) -> Floats:
    """Bootstrap weights (draws, images): whole numbers, exponential with one mean."""
    rng = np.random.default_rng(seed)
    return np.rint(rng.exponential(size=(draws, images)) * _UNIT)


def average_precision(one: ClassResults, weights: Floats) -> Floats:
    """AP of one class for each row of image weights (B, I): (B,), nan where no object has weight.

    Weights of one give pycocotools' figure.
    """
    step = max(1, _CHUNK // max(1, len(one.image)))
    parts = [_precision(one, weights[i : i + step]) for i in range(0, len(weights), step)]
    return np.concatenate(parts)


def _precision(one: ClassResults, weights: Floats) -> Floats:
    total = weights @ one.boxes
    hits = np.flatnonzero(one.hit)
    # Precision only falls between hits, so the curve's upper hull is made of hits.
    mine = weights[:, one.image]
    seen = np.cumsum(mine, axis=1)[:, hits]
    found = np.cumsum(mine[:, hits], axis=1)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    hull = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = np.divide(found, total[:, None], out=np.zeros_like(found), where=total[:, None] > 0)
    reached = np.searchsorted(_RECALL, recall, side="right") * (found > 0)
    gained = np.diff(np.maximum.accumulate(reached, axis=1), axis=1, prepend=0)
    area = (hull * gained).sum(axis=1) / len(_RECALL)
    return np.where(total > 0, area, np.nan)


def mean_precision(results: Results, weights: Floats) -> Floats:
    """Mean AP over the classes, for each row of weights (B, I): (B,).

    Not a number for a row that weighs no image with an object.
    """
    every = np.stack([average_precision(one, weights) for one in results.values()])
    known = np.sum(~np.isnan(every), axis=0)
    mean: Floats = np.full(len(weights), np.nan)
    np.divide(np.nansum(every, axis=0), known, out=mean, where=known > 0)
    return mean


def quantile(level: float, freedom: float = np.inf) -> float:
    """Of Student's t distribution, by its expansion in 1 / freedom (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def judge(
    loss: float, spread: float, margin: float, alarm: float, count: int, freedom: float = np.inf
) -> Comparison:
    """A verdict from an estimate and its standard error.

    `worse` takes two things: the loss is real (its lower bound is above zero) and more likely than
    not beyond the margin. So a false alarm is at most as frequent as `alarm`, whatever the margin.

    Args:
        alarm: probability of `worse` where nothing changed, 0..1.
        count: images or blocks behind the estimate.
        freedom: degrees of freedom of `spread`.
    """
    far, near = quantile(1 - alarm, freedom), quantile(1 - _SURE, freedom)
    low, high = loss - far * spread, loss + far * spread
    more = 0
    if low > 0 and loss > margin:
        verdict = "worse"
    elif high < 0:
        verdict = "better"
    elif loss + near * spread <= margin:
        verdict = "same"
    else:
        verdict = "cannot tell"
        more = _more(loss, spread, margin, far, near, count)
    beyond = _beyond(loss - margin, spread)
    return Comparison(verdict, loss, spread, low, high, beyond, margin, more)


def _more(loss: float, spread: float, margin: float, far: float, near: float, count: int) -> int:
    """What `count` must grow by, as a standard error falls with its square root."""
    wanted = loss / far if loss > margin else (margin - loss) / near
    if spread > _HOPELESS * wanted:
        return 0
    return max(1, int(np.ceil(count * ((spread / wanted) ** 2 - 1))))


def _beyond(excess: float, spread: float) -> float:
    if spread > 0:
        return NormalDist().cdf(excess / spread)
    return float(excess > 0)


def compare_precision(
    before: Results,
    now: Results,
    *,
    margin: float,
    alarm: float,
    draws: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Whether mean AP fell, by a paired bootstrap over the images that both were run on.

    Raises:
        ValueError: the two were run on different images or have no class in common.
    """
    names = [name for name in before if name in now]
    if not names:
        raise ValueError("no class in common")
    before, now = ({name: side[name] for name in names} for side in (before, now))
    images = len(before[names[0]].boxes)
    if any(not np.array_equal(before[name].boxes, now[name].boxes) for name in names):
        raise ValueError("the two were run on different images")
    plain = np.ones((1, images))
    loss = float(mean_precision(before, plain)[0] - mean_precision(now, plain)[0])
    weights = resample(images, draws, seed)
    losses = mean_precision(before, weights) - mean_precision(now, weights)
    spread, freedom = difference_spread(before, now, losses)
    found = judge(loss, spread, margin, alarm, images, freedom)
    # Precision ends at 0 and at 1, and so does what can be lost of it.
    most = float(mean_precision(before, plain)[0])
    few = tuple(name for name in names if before[name].boxes.sum() < FEW_OBJECTS)
    return replace(found, low=max(found.low, most - 1.0), high=min(found.high, most), few=few)


def difference_spread(before: Results, now: Results, drawn: Floats) -> tuple[float, float]:
    """Standard error of a difference of mean AP, and its degrees of freedom.

    The bootstrap's, and for each class of fewer than `FEW_OBJECTS` objects that of a share by
    counts: the posterior of how many more are lost than gained, under Jeffreys' prior. Degrees of
    freedom are Welch's and Satterthwaite's (doi:10.2307/3002019).

    Args:
        drawn: the difference in each resample.
    """
    parts = [
        (_count_variance(before[name], now[name]) / len(before) ** 2, int(one.boxes.sum()))
        for name, one in before.items()
        if one.boxes.sum() < FEW_OBJECTS
    ]
    total = float(np.nanvar(drawn)) + sum(variance for variance, _ in parts)
    rest = sum(variance**2 / max(count, 1) for variance, count in parts)
    return total**0.5, total**2 / rest if rest > 0 else np.inf


def _count_variance(before: ClassResults, now: ClassResults) -> float:
    """Posterior variance of the share of objects that were lost minus that of those gained."""
    images = len(before.boxes)
    sides = [np.bincount(one.image[one.hit], minlength=images) for one in (before, now)]
    change = sides[1].astype(np.int64) - sides[0]
    count = int(before.boxes.sum())
    lost, gained = int(-change[change < 0].sum()), int(change[change > 0].sum())
    whole = max(count, lost + gained) + 3 * _PRIOR
    p, q = (lost + _PRIOR) / whole, (gained + _PRIOR) / whole
    return (p + q - (p - q) ** 2) / (whole + 1)


def compare_ratio(
    logs: Sequence[float],
    stored: Sequence[float] | None = None,
    *,
    margin: float,
    alarm: float,
    draws: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Whether a latency ratio is above one, or above a stored one, by a bootstrap over blocks.

    Args:
        logs: log(new / old) of each pair of neighbouring blocks.
        stored: the same of an earlier run, whose median the new one is compared with.
        margin: tolerated growth, such as 0.05.
    """
    loss, spread = _median(logs, draws, seed)
    freedom = len(logs) - 1.0
    if stored is not None:
        before, other = _median(stored, draws, seed + 1)
        loss, spread = loss - before, float(np.hypot(spread, other))
        freedom = min(freedom, len(stored) - 1.0)
    return judge(loss, spread, float(np.log1p(margin)), alarm, len(logs), max(freedom, 1.0))


def compare_percentile(
    blocks: Sequence[Sequence[float]],
    percent: float,
    limit: float,
    *,
    alarm: float,
    draws: int = 1000,
) -> Comparison:
    """Whether a percentile of all positive values exceeds `limit`, by a bootstrap over blocks.

    `loss` is the log of their ratio.
    """
    arrays = [np.asarray(block, np.float64) for block in blocks]
    loss = float(np.log(np.percentile(np.concatenate(arrays), percent) / limit))
    spread = float(np.std(np.log(_percentiles(arrays, percent, draws))))
    return judge(loss, spread, 0.0, alarm, len(arrays), max(len(arrays) - 1.0, 1.0))


def _percentiles(arrays: Sequence[Floats], percent: float, draws: int) -> Floats:
    """Of as many blocks, picked with replacement, `draws` times."""
    rng = np.random.default_rng(0)
    picked = rng.integers(0, len(arrays), (draws, len(arrays)))
    found = [np.percentile(np.concatenate([arrays[i] for i in row]), percent) for row in picked]
    return np.array(found)


def _median(values: Sequence[float], draws: int, seed: int) -> tuple[float, float]:
    data = np.asarray(values, np.float64)
    picked = np.random.default_rng(seed).integers(0, len(data), (draws, len(data)))
    return float(np.median(data)), float(np.std(np.median(data[picked], axis=1)))


def interval(
    blocks: Sequence[Sequence[float]], percent: float, level: float = 0.95, draws: int = 300
) -> tuple[float, float]:
    """Interval of a percentile of all values, by a bootstrap over the blocks they came in.

    Values of one block share what the machine was doing; blocks are what is independent.
    """
    found = _percentiles([np.asarray(block, np.float64) for block in blocks], percent, draws)
    low, high = np.quantile(found, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def thinned(results: Results, share: float, rng: np.random.Generator) -> dict[str, ClassResults]:
    """The results of a detector that loses `share` of what it found.

    Real networks with noised weights lose the objects first of which they were least sure, and
    in some images far more than in others; the standard errors that this gives are theirs.
    """
    images = len(next(iter(results.values())).boxes)
    odds = share * rng.exponential(size=images)
    kept = {}
    for name, one in results.items():
        doubt = 1 - one.score
        mean = float(doubt[one.hit].mean()) if one.hit.any() else 1.0
        lost = rng.random(len(one.hit)) < odds[one.image] * doubt / max(mean, 1e-6)
        stays = ~(one.hit & lost)
        kept[name] = replace(
            one, image=one.image[stays], score=one.score[stays], hit=one.hit[stays]
        )
    return kept


def minimum_detectable_drop(
    results: Results,
    *,
    margin: float,
    alarm: float,
    power: float = 0.95,
    churn: float = 0.02,
    trials: int = 6,
    draws: int = 200,
) -> float:
    """The loss of mean AP that `compare_precision` calls worse with probability `power`.

    Known before anything is run: two copies of `results` lose objects at random, one of them more,
    which gives the standard error for a loss of any size.

    Args:
        churn: share of objects that two runs without a loss find differently, each way.
        trials: simulated pairs for each of the two losses that are tried.
    """
    rng = np.random.default_rng(0)
    points = []
    for share in (0.0, 0.08):
        pairs = [
            (thinned(results, churn, rng), thinned(results, churn + share, rng))
            for _ in range(trials)
        ]
        found = [
            compare_precision(*pair, margin=margin, alarm=alarm, draws=draws) for pair in pairs
        ]
        mean_loss = float(np.mean([one.loss for one in found])) if share else 0.0
        points.append((mean_loss, float(np.mean([one.spread**2 for one in found]))))
    (_, still), (lost, moved) = points
    slope = max(0.0, moved - still) / max(lost, 1e-6)
    far, sure = quantile(1 - alarm), quantile(power)
    drop = margin
    for _ in range(50):
        spread = (still + slope * drop) ** 0.5
        drop = max(margin, far * spread) + sure * spread
    return drop
