"""How quantization moved the scores on labelled images, and the threshold that fits again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.measure.scores import THRESHOLDS, best_threshold, f1_by_class, f1_curve
from edge.measure.selection import Selection
from export.int8.mixed import annotate

__all__ = ["refit"]

# One copy less says little more, and costs a pass over the images.
_COPIES = 2
_BINS = 20


def refit(selection: Selection, source: Path, graph: Path) -> dict[str, Any]:
    """Fit the score threshold of a quantized graph, and store it in its manifest as `score`.

    Args:
        source: the FP32 file it was made from.
        graph: the quantized file; rewritten.

    Returns:
        `score` and `f1`, `score_before` and `f1_before` (of FP32), `f1_unchanged` (with FP32's
        threshold), `by_class` (best score and F1 of both), `histogram` (scores of both, in 20
        steps of 0..1).
    """
    sides = {
        name: [one for copy in range(_COPIES) for one in selection.matches(path, copy)]
        for name, path in (("before", source), ("now", graph))
    }
    before, now = (f1_curve(found) for found in sides.values())
    if not now.f1.any() or not before.f1.any():
        return {}
    score, parent = best_threshold(now), best_threshold(before)
    annotate(graph, score=score)
    classes = {name: f1_by_class(found) for name, found in sides.items()}
    return {
        "score": score,
        "f1": round(now.at(score), 5),
        "score_before": parent,
        "f1_before": round(before.at(parent), 5),
        "f1_unchanged": round(now.at(parent), 5),
        "by_class": {
            name: {side: _best(curves[name]) for side, curves in classes.items() if name in curves}
            for name in classes["before"]
        },
        "histogram": {
            side: _histogram([score for one in found for score in one.score])
            for side, found in sides.items()
        },
    }


def _best(curve: Any) -> dict[str, float]:
    at = int(curve.f1.argmax())
    return {"score": float(THRESHOLDS[at]), "f1": round(float(curve.f1[at]), 5)}


def _histogram(scores: list[float]) -> list[int]:
    counts = [0] * _BINS
    for score in scores:
        counts[min(_BINS - 1, int(score * _BINS))] += 1
    return counts
