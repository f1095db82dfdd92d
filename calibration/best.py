"""The method `best`: measure every recipe on pictures held back, and keep the one of least noise.

First each tensor's threshold by its own noise, then whole recipes by the noise of the heads, then
the winner's thresholds one by one. The default recipe is among them, so nothing worse is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.collect import collect
from calibration.correction import correct_bias
from calibration.graph import Graph
from calibration.histogram import Histogram
from calibration.int8_graph import int8_graph
from calibration.qdq import QMAX, shared_scales
from calibration.scales import Calibration, inputs_of, measure_scales
from calibration.table import CalibrationTable
from calibration.threshold import METHODS, ThresholdChoice, best_thresholds, candidate
from edge.data.distinct import Seen, pictures
from edge.data.items import Dataset, Item, thin
from edge.errors import CalibrationError
from edge.measure.reference import Reference, head_decibel, reference, session
from edge.optional import require

__all__ = ["BestRecipe", "calibrate_best", "refine"]

# One picture of four is held back. Of these at most 12 judge; of the others 8 refine.
_HELD = 4
_JUDGES = 12
_TUNERS = 8
_BIAS_IMAGES = 16
DEFAULT = "mse, equalised"
Array = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Trial:
    """One recipe on trial: the candidate and factor of each tensor's threshold."""

    made: Calibration
    merged: Mapping[str, Histogram]
    choices: Mapping[str, ThresholdChoice]
    factors: Mapping[str, float]

    def table(self, histograms: Mapping[str, Histogram]) -> CalibrationTable:
        amax = tuple(
            (name, candidate(found, self.choices[name].name) * self.factors[name])
            for name, found in histograms.items()
        )
        gains = ((name, round(one.gain_db, 3)) for name, one in self.choices.items())
        return replace(
            self.made.table,
            amax=amax,
            gain_db=tuple((name, gain) for name, gain in gains if gain),
        )


@dataclass(frozen=True)
class BestRecipe:
    """The recipe of least noise, and all that were tried.

    Attributes:
        calibration: with the table of the best recipe, over all pictures.
        decibel: signal to noise of the heads on the pictures held back, by recipe.
        best: key of `decibel`.
    """

    calibration: Calibration
    decibel: dict[str, float]
    best: str


def calibrate_best(
    onnx: Graph | str | Path,
    dataset: Dataset,
    *,
    equalise: bool = True,
    bias: bool = True,
    progress: Progress | None = None,
    threads: int | None = None,
) -> BestRecipe:
    """Measure every recipe and calibrate with the best.

    Args:
        onnx: FP32 ONNX file that edge wrote.
        dataset: calibration pictures, eight or more.
        equalise: whether equalised recipes are among them.
        bias: judge each with its biases corrected.
        progress: called with (done, of).

    Raises:
        CalibrationError: too few pictures, none that can be read, or an activation not finite.
    """
    if len(dataset) < 2 * _HELD:
        raise CalibrationError(
            f"{dataset.source}: {len(dataset)} images; --method best holds some back to judge by "
            f"and takes {2 * _HELD} or more: give more, or --method mse"
        )
    contest = _Contest(Graph.open(onnx), dataset, bias, threads)
    trials: dict[str, _Trial] = {}
    for even in (True, False) if equalise else (False,):
        trials |= contest.collect(even)
    decibel = {}
    for done, (name, trial) in enumerate(trials.items()):
        decibel[name] = contest.heads_db(trial)
        if progress:
            progress(done + 1, 2 * len(trials))
    ranked = max(decibel, key=lambda name: decibel[name])
    tuned = contest.tune(trials[ranked], progress, len(trials))
    name = f"{ranked}, refined"
    trials[name], decibel[name] = tuned, contest.heads_db(tuned)
    best = max(decibel, key=lambda name: decibel[name])
    return BestRecipe(contest.whole(trials[best], decibel), decibel, best)


class _Contest:
    """The pictures in their three parts, and what the FP32 graph makes of them."""

    def __init__(self, graph: Graph, dataset: Dataset, bias: bool, threads: int | None) -> None:
        self.graph, self.bias, self.threads = graph, bias, threads
        self.contract = graph.manifest.spec.contract
        items = dataset.items
        held = items[_HELD - 1 :: _HELD]
        fit = [item for index, item in enumerate(items) if (index + 1) % _HELD]
        self.all, self.fit = dataset, replace(dataset, items=tuple(fit))
        self.held = replace(dataset, items=tuple(held))
        self.judges = self.known(held, _JUDGES)
        self.tuners = self.known(fit, _TUNERS)

    def known(self, items: Sequence[Item], most: int) -> Reference:
        few = replace(self.all, items=tuple(thin(items, most)))
        return reference(self.graph.model, inputs_of(few, self.contract), self.threads)

    def collect(self, equalise: bool) -> dict[str, _Trial]:
        """Return every recipe that one run over the pictures serves, by name."""
        made = measure_scales(self.graph, self.fit, equalise=equalise, threads=self.threads)
        gains = {name: np.asarray(gain, np.float32) for name, gain in made.table.gains}
        seen = Seen()
        held = collect(self.graph, pictures(self.held, seen), gains=gains, threads=self.threads)
        table = replace(
            made.table,
            images=tuple(sorted([*made.table.images, *seen.digests])),
            hashes=tuple(sorted([*made.table.hashes, *seen.hashes])),
        )
        made = replace(
            made,
            table=table,
            used=made.used + len(seen.digests),
            skipped=(*made.skipped, *seen.skipped),
        )
        merged = {name: one.merge(held[name]) for name, one in made.histograms.items()}
        ones = dict.fromkeys(merged, 1.0)
        plain = {name: dict.fromkeys(merged, ThresholdChoice(name, 0.0)) for name in METHODS}
        plain["by tensor"] = best_thresholds(made.histograms, held)
        end = ", equalised" if equalise else ""
        return {
            f"{name}{end}": _Trial(made, merged, choices, ones) for name, choices in plain.items()
        }

    def corrected(self, table: CalibrationTable, dataset: Dataset) -> CalibrationTable:
        if not self.bias:
            return table
        few = replace(dataset, items=tuple(thin(dataset.items, _BIAS_IMAGES)))
        return correct_bias(self.graph, table, inputs_of(few, self.contract))

    def heads_db(self, trial: _Trial) -> float:
        """Signal to noise of the heads on the pictures held back, which gave the trial nothing."""
        table = self.corrected(trial.table(trial.made.histograms), self.fit)
        runs = session(int8_graph(self.graph.model, table), self.threads)
        return head_decibel(runs, self.judges)

    def tune(self, trial: _Trial, progress: Progress | None, before: int) -> _Trial:
        """The trial with its thresholds refined one by one, on pictures that do not judge."""
        table = self.corrected(trial.table(trial.made.histograms), self.fit)
        shown = progress and (lambda done, of: progress(before * (of + done), 2 * before * of))
        factors = refine(self.graph.model, table, self.tuners, progress=shown, threads=self.threads)
        return replace(trial, factors=factors)

    def whole(self, trial: _Trial, decibel: Mapping[str, float]) -> Calibration:
        """The calibration with the trial's table over all pictures."""
        table = replace(
            trial.table(trial.merged),
            method="best",
            head_db=tuple((name, round(value, 3)) for name, value in decibel.items()),
        )
        return replace(trial.made, table=table, histograms=dict(trial.merged))


_FACTORS = (0.8, 0.9, 1.1, 1.25)
# What a dozen images cannot tell from chance.
_LEAST_DB = 0.01


@dataclass(frozen=True)
class _HeadNoise:
    """Signal to noise of the heads at given thresholds."""

    model: Any
    runs: Any
    known: Reference

    def __call__(self, amax: Mapping[str, float]) -> float:
        shared = shared_scales(self.model, amax)
        feeds = {
            f"{name}.scale": np.asarray(value / QMAX, np.float32) for name, value in shared.items()
        }
        wanted = {value.name for value in self.runs.get_overridable_initializers()}
        return head_decibel(
            self.runs, self.known, {name: v for name, v in feeds.items() if name in wanted}
        )


def refine(
    model: Any,
    table: CalibrationTable,
    known: Reference,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> dict[str, float]:
    """Return factors of the table's thresholds, by tensor, that raise the heads' signal to noise.

    Args:
        model: the FP32 `ModelProto` of the table.
        known: pictures to judge on, which nothing else is judged on.
        progress: called with (done, of).
    """
    heads_db = _HeadNoise(model, session(_open(int8_graph(model, table), table), threads), known)
    amax = dict(table.amax)
    factors = dict.fromkeys(amax, 1.0)
    best = heads_db(amax)
    for done, name in enumerate(amax, 1):
        start = amax[name]
        for factor in _FACTORS:
            found = heads_db({**amax, name: start * factor})
            if found > best + _LEAST_DB:
                best, amax[name], factors[name] = found, start * factor, factor
        if progress:
            progress(done, len(factors))
    return factors


def _open(quantized: Any, table: CalibrationTable) -> Any:
    """Return the graph with the scales of its activations as inputs that a run may set."""
    helper, kinds = require("onnx.helper"), require("onnx").TensorProto
    constants = {initializer.name for initializer in quantized.graph.initializer}
    names = [f"{name}.scale" for name, _ in table.amax]
    quantized.graph.input.extend(
        helper.make_tensor_value_info(name, kinds.FLOAT, []) for name in names if name in constants
    )
    return quantized
