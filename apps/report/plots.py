"""The report's charts: from what was measured to SVG with a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from apps.charts.svg import Axes, Axis, bars, circle, legend, line, svg, text
from apps.regress.measurement import Measurement
from edge.measure.noise import TensorNoise
from edge.measure.results import ClassResults

__all__ = ["latency", "noise", "pareto", "precision_recall", "scores"]

Results = Mapping[str, ClassResults]
# An input is the same to the last bit; its hundreds of dB would press all others into a corner.
_CLIP_DB = 60.0


def precision_recall(now: Results, others: Mapping[str, Results]) -> str:
    """Draw the mean precision over classes at each recall; `others` by their class in the page."""
    frame = Axes(Axis("recall", 0, 1), Axis("precision, mean of classes", 0, 1))
    words = {"stored": "stored", "reference": "reference"}
    body = [line(frame, _curve(one), kind, words[kind]) for kind, one in others.items()]
    body.append(line(frame, _curve(now), "now", "now"))
    keys = [("now", "now"), *((kind, words[kind]) for kind in others)]
    return svg("precision and recall", frame, body) + legend(keys)


def _curve(results: Results) -> list[tuple[float, float]]:
    recall = np.linspace(0, 1, 101)
    curves = [_interpolated(one, recall) for one in results.values()]
    mean = np.mean(curves, axis=0)
    return list(zip(recall.tolist(), mean.tolist(), strict=True))


def _interpolated(one: ClassResults, recall: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.cumsum(one.hit)
    precision = found / np.arange(1, len(found) + 1)
    hull = np.maximum.accumulate(precision[::-1])[::-1]
    index = np.searchsorted(found / one.boxes.sum(), recall, side="left")
    padded = np.append(hull, 0.0)
    curve: NDArray[np.float64] = padded[np.minimum(index, len(hull))]
    return curve


def scores(now: Results) -> str:
    """Draw how many detections have which score: those that found an object, and the others."""
    edges = np.linspace(0, 1, 21)
    score = np.concatenate([one.score for one in now.values()])
    hit = np.concatenate([one.hit for one in now.values()])
    right, wrong = (np.histogram(score[mask], edges)[0] for mask in (hit, ~hit))
    # Counts next to zero score dwarf all others.
    high = float(max(right.max(initial=1), wrong.max(initial=1), 2))
    frame = Axes(Axis("score", 0, 1), Axis("detections", 0.8, high * 1.2, log=True))
    middle = (edges[:-1] + edges[1:]) / 2
    body = [
        bars(frame, [edges[at], middle[at]], [float(right[at])], "right")
        + bars(frame, [middle[at], edges[at + 1]], [float(wrong[at])], "wrong")
        for at in range(len(middle))
    ]
    return svg("scores", frame, body) + legend(
        [("right", "found an object"), ("wrong", "found nothing")]
    )


def latency(data: NDArray[np.float64], p50: float, p99: float, what: str = "pipeline") -> str:
    """Draw how many milliseconds frames took; the last bar holds everything slower."""
    low = float(data.min()) * 0.95
    # A few frames that another process held up would press all others into one bar.
    high = max(float(np.percentile(data, 99.5)) * 1.05, low * 1.1)
    edges = np.linspace(low, high, 41)
    counts = np.histogram(np.minimum(data, high), edges)[0]
    frame = Axes(Axis(f"{what}, ms", low, high), Axis("frames", 0, float(counts.max()) * 1.1))
    body = [bars(frame, edges.tolist(), counts.tolist(), "now")]
    for value, name in ((p50, "p50"), (p99, "p99")):
        top = frame.y.high
        body.append(line(frame, [(value, 0), (value, top)], "mark", f"{name} {value:.2f} ms"))
        x, y = frame.at(value, top)
        late = frame.x.share(value) > 0.8
        body.append(text(x + (-4 if late else 4), y + 10, name, "end" if late else "start"))
    name = "latency" if what == "pipeline" else what
    return svg(name, frame, body) + legend([("now", f"{len(data)} frames")])


def pareto(now: Mapping[str, Measurement], before: Mapping[str, Measurement]) -> str:
    """Draw accuracy over latency; the area of a disc is the size of the file."""
    every = [*now.values(), *before.values()]
    times = [_p50(one) for one in every]
    right = [one.map50 * 100 for one in every]
    pad = max(2.0, (max(right) - min(right)) * 0.25)
    frame = Axes(
        Axis("pipeline p50, ms", min(times) / 1.5, max(times) * 1.5, log=True),
        Axis("mAP@.5, %", max(0.0, min(right) - pad), min(100.0, max(right) + pad)),
    )
    largest = max(one.bytes for one in every)
    body = [_disc(frame, one, largest, "stored-disc") for one in before.values()]
    for number, (name, one) in enumerate(now.items()):
        body.append(_disc(frame, one, largest, "now-disc"))
        x, y = frame.at(_p50(one), one.map50 * 100)
        side = "end" if frame.x.share(_p50(one)) > 0.6 else "start"
        shift = _radius(one, largest) + 4
        body.append(
            text(x + (-shift if side == "end" else shift), y + 4 + 12 * (number % 2), name, side)
        )
    keys = [("now", "now"), *([("stored", "stored")] if before else [])]
    return svg("accuracy, latency, size", frame, body) + legend([*keys, ("", "area: MB")])


def _p50(one: Measurement) -> float:
    return one.latency_ms["pipeline"]["p50"]


def _radius(one: Measurement, largest: int) -> float:
    return 4 + 12 * math.sqrt(one.bytes / largest)


def _disc(frame: Axes, one: Measurement, largest: int, kind: str) -> str:
    hint = f"{one.name}: {one.map50 * 100:.2f} %, {_p50(one):.2f} ms, {one.bytes / 1e6:.2f} MB"
    return circle(frame, (_p50(one), one.map50 * 100), _radius(one, largest), kind, hint)


def noise(
    now: Sequence[TensorNoise], before: Mapping[str, float], departs: TensorNoise | None
) -> str:
    """Draw the signal to noise of each tensor against the reference, in the graph's order."""
    values = [min(one.db, _CLIP_DB) for one in now]
    low, high = min(0.0, *values), max(*values, 20.0) * 1.05
    frame = Axes(
        Axis("tensor, in the graph's order", 0, max(1, len(now) - 1)),
        Axis("signal / noise, dB", low, high),
    )
    known = [
        (i, min(before[one.name], _CLIP_DB)) for i, one in enumerate(now) if one.name in before
    ]
    body = [line(frame, known, "stored", "stored"), line(frame, list(enumerate(values)), "now")]
    for i, one in enumerate(now):
        bad = departs is not None and one.name == departs.name
        hint = f"{one.name}: {one.db:.1f} dB"
        body.append(circle(frame, (i, values[i]), 5 if bad else 2.5, "bad" if bad else "dot", hint))
    keys = [("now", "now"), *([("stored", "stored")] if known else [])]
    if departs is not None:
        keys.append(("bad", f"departs at {departs.name}"))
    return svg("noise by layer", frame, body) + legend(keys)
