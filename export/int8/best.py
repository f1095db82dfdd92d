"""`--method best`: every recipe measured on images held back, and the one with the least noise.

First each tensor's threshold by its own noise, then whole recipes by the noise of the heads, then
the winner's thresholds one by one. The default recipe is among them, so nothing worse is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.best import Choice, best_thresholds, candidate
from calibration.calibrate import Calibration, calibrate_dataset, inputs_of
from calibration.collect import collect
from calibration.histogram import Histogram
from calibration.table import CalibrationTable
from calibration.threshold import METHODS
from edge.artifact import read_manifest
from edge.data.distinct import Seen, pictures
from edge.data.items import Dataset, thin
from edge.errors import CalibrationError
from edge.measure.reference import Reference, head_decibel, reference, session
from edge.optional import require
from export.graph.precision import QMAX, shared_scales
from export.int8.correction import correct_bias
from export.int8.quantize import int8_graph

__all__ = ["Recipes", "calibrate_best", "refine"]

# One image of four is held back; of these so many judge, and as many of the others refine.
_HELD = 4
_JUDGES = 12
_TUNERS = 8
_BIAS_IMAGES = 16
DEFAULT = "mse, equalised"
Array = NDArray[np.float32]
Say = Callable[[int, int], None]


@dataclass(frozen=True)
class _Recipe:
    """Candidate and factor of each tensor's threshold, over one collection."""

    made: Calibration
    merged: Mapping[str, Histogram]
    choices: Mapping[str, Choice]
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
class Recipes:
    """What was tried.

    Attributes:
        calibration: with the best recipe's table, over all images.
        decibel: signal to noise of the heads on the images held back, by recipe.
        best: key of `decibel`.
    """

    calibration: Calibration
    decibel: dict[str, float]
    best: str


def calibrate_best(
    onnx: str | Path,
    dataset: Dataset,
    *,
    equalise: bool = True,
    bias: bool = True,
    progress: Say | None = None,
    threads: int | None = None,
) -> Recipes:
    """Measure every recipe and calibrate with the best.

    Args:
        onnx: FP32 ONNX file that edge wrote.
        dataset: calibration images, eight or more.
        equalise: whether equalised recipes are among them.
        bias: judge each with its biases corrected.
        progress: called with (done, of).

    Raises:
        CalibrationError: too few images, none that can be read, or an activation not finite.
    """
    if len(dataset) < 2 * _HELD:
        raise CalibrationError(
            f"{dataset.source}: {len(dataset)} images; --method best holds some back to judge by "
            f"and takes {2 * _HELD} or more: give more, or --method mse"
        )
    bench = _Bench(Path(onnx), dataset, bias, threads)
    recipes: dict[str, _Recipe] = {}
    for even in (True, False) if equalise else (False,):
        recipes |= bench.collect(even)
    decibel = {}
    for done, (name, recipe) in enumerate(recipes.items()):
        decibel[name] = bench.judge(recipe)
        if progress:
            progress(done + 1, 2 * len(recipes))
    ranked = max(decibel, key=lambda name: decibel[name])
    tuned = bench.tune(recipes[ranked], progress, len(recipes))
    name = f"{ranked}, refined"
    recipes[name], decibel[name] = tuned, bench.judge(tuned)
    best = max(decibel, key=lambda name: decibel[name])
    return Recipes(bench.whole(recipes[best], decibel), decibel, best)


class _Bench:
    """The images in their three parts, and what the FP32 graph makes of them."""

    def __init__(self, onnx: Path, dataset: Dataset, bias: bool, threads: int | None) -> None:
        self.onnx, self.bias, self.threads = onnx, bias, threads
        self.contract = read_manifest(onnx).spec.contract
        self.model = require("onnx").load(str(onnx))
        items = dataset.items
        held = items[_HELD - 1 :: _HELD]
        fit = [item for index, item in enumerate(items) if (index + 1) % _HELD]
        self.all, self.fit = dataset, replace(dataset, items=tuple(fit))
        self.held = replace(dataset, items=tuple(held))
        self.judges = self.known(held, _JUDGES)
        self.tuners = self.known(fit, _TUNERS)

    def known(self, items: Any, most: int) -> Reference:
        few = replace(self.all, items=tuple(thin(items, most)))
        return reference(self.model, inputs_of(few, self.contract), self.threads)

    def collect(self, equalise: bool) -> dict[str, _Recipe]:
        """Every recipe that one collection serves, by name."""
        made = calibrate_dataset(self.onnx, self.fit, equalise=equalise, threads=self.threads)
        gains = {name: np.asarray(gain, np.float32) for name, gain in made.table.gains}
        seen = Seen()
        held = collect(self.onnx, pictures(self.held, seen), gains=gains, threads=self.threads)
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
        plain = {name: dict.fromkeys(merged, Choice(name, 0.0)) for name in METHODS}
        plain["by tensor"] = best_thresholds(made.histograms, held)
        end = ", equalised" if equalise else ""
        return {
            f"{name}{end}": _Recipe(made, merged, choices, ones) for name, choices in plain.items()
        }

    def corrected(self, table: CalibrationTable, dataset: Dataset) -> CalibrationTable:
        if not self.bias:
            return table
        few = replace(dataset, items=tuple(thin(dataset.items, _BIAS_IMAGES)))
        return correct_bias(self.onnx, table, inputs_of(few, self.contract))

    def judge(self, recipe: _Recipe) -> float:
        """The heads' signal to noise on the images held back, which gave it nothing."""
        table = self.corrected(recipe.table(recipe.made.histograms), self.fit)
        runs = session(int8_graph(self.model, table), self.threads)
        return head_decibel(runs, self.judges)

    def tune(self, recipe: _Recipe, progress: Say | None, before: int) -> _Recipe:
        """The recipe with its thresholds turned one by one, on images that do not judge."""
        table = self.corrected(recipe.table(recipe.made.histograms), self.fit)
        shown = progress and (lambda done, of: progress(before * (of + done), 2 * before * of))
        factors = refine(self.model, table, self.tuners, progress=shown, threads=self.threads)
        return replace(recipe, factors=factors)

    def whole(self, recipe: _Recipe, decibel: Mapping[str, float]) -> Calibration:
        """The calibration with the recipe's table over all images."""
        table = replace(
            recipe.table(recipe.merged),
            method="best",
            head_db=tuple((name, round(value, 3)) for name, value in decibel.items()),
        )
        return replace(recipe.made, table=table, histograms=dict(recipe.merged))


_FACTORS = (0.8, 0.9, 1.1, 1.25)
# What a dozen images cannot tell from chance.
_LEAST_DB = 0.01


@dataclass(frozen=True)
class _Trial:
    """The heads' noise at given thresholds."""

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
    """Factors of the thresholds of `table`, by tensor, that raise the heads' signal to noise.

    Args:
        model: the FP32 `ModelProto` of the table.
        known: images to judge on, some that nothing else will be judged on.
        progress: called with (done, of).
    """
    trial = _Trial(model, session(_open(int8_graph(model, table), table), threads), known)
    amax = dict(table.amax)
    factors = dict.fromkeys(amax, 1.0)
    best = trial(amax)
    for done, name in enumerate(amax, 1):
        start = amax[name]
        for factor in _FACTORS:
            found = trial({**amax, name: start * factor})
            if found > best + _LEAST_DB:
                best, amax[name], factors[name] = found, start * factor, factor
        if progress:
            progress(done, len(factors))
    return factors


def _open(quantized: Any, table: CalibrationTable) -> Any:
    """The graph with its activations' scales as inputs that a run may give."""
    helper, kinds = require("onnx.helper"), require("onnx").TensorProto
    constants = {initializer.name for initializer in quantized.graph.initializer}
    names = [f"{name}.scale" for name, _ in table.amax]
    quantized.graph.input.extend(
        helper.make_tensor_value_info(name, kinds.FLOAT, []) for name in names if name in constants
    )
    return quantized
