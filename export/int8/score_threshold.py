"""How quantization moved the scores on labelled images, and the threshold that fits again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibration.graph import Graph
from edge.measure.scores import THRESHOLDS, F1Curve, best_threshold, f1_by_class, f1_curve
from edge.measure.selection import Selection
from export.int8.quantize import annotate

__all__ = ["FittedScore", "fit_score"]

# One copy less says little more, and costs a pass over the pictures.
_COPIES = 2
_BINS = 20


@dataclass(frozen=True)
class FittedScore:
    """A score threshold fitted to a quantized graph, and how scores moved.

    Attributes:
        score, f1: the threshold that fits best, and F1 there.
        score_before, f1_before: the same of FP32.
        f1_unchanged: F1 of the quantized graph at FP32's threshold.
        by_class: best score and F1 by class, of both (`before`, `now`).
        histogram: detections of both by score, in 20 steps of 0..1.
    """

    score: float
    f1: float
    score_before: float
    f1_before: float
    f1_unchanged: float
    by_class: Mapping[str, Mapping[str, Mapping[str, float]]]
    histogram: Mapping[str, Sequence[int]]


def fit_score(
    selection: Selection, source: Graph, graph: Graph
) -> tuple[Graph, FittedScore | None]:
    """Fit the score threshold of a quantized graph, and store it in its manifest as `score`.

    Args:
        source: the FP32 graph that it was made from.
        graph: the quantized graph; its file is rewritten.

    Returns:
        The graph as it is now, and the fit; None where one of the two finds nothing.
    """
    sides = {
        name: [one for copy in range(_COPIES) for one in selection.matches(side, copy)]
        for name, side in (("before", source), ("now", graph))
    }
    before, now = (f1_curve(found) for found in sides.values())
    if not now.f1.any() or not before.f1.any():
        return graph, None
    score, parent = best_threshold(now), best_threshold(before)
    classes = {name: f1_by_class(found) for name, found in sides.items()}
    fitted = FittedScore(
        score=score,
        f1=round(now.at(score), 5),
        score_before=parent,
        f1_before=round(before.at(parent), 5),
        f1_unchanged=round(now.at(parent), 5),
        by_class={
            name: {side: _best(curves[name]) for side, curves in classes.items() if name in curves}
            for name in classes["before"]
        },
        histogram={
            side: _histogram([score for one in found for score in one.score])
            for side, found in sides.items()
        },
    )
    return annotate(graph, score=score), fitted


def _best(curve: F1Curve) -> dict[str, float]:
    at = int(curve.f1.argmax())
    return {"score": float(THRESHOLDS[at]), "f1": round(float(curve.f1[at]), 5)}


def _histogram(scores: list[float]) -> list[int]:
    counts = [0] * _BINS
    for score in scores:
        counts[min(_BINS - 1, int(score * _BINS))] += 1
    return counts
