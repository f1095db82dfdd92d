"""Plots of `edge estimate`: what each layer costs, and predicted against published."""

from __future__ import annotations

from collections.abc import Sequence

from apps.charts.style import STYLE
from apps.charts.svg import Axes, Axis, bars, circle, line, svg, text

__all__ = ["layer_chart", "published_chart"]

# Layers whose names the plot has.
_NAMED = 3
_KINDS = {"tensor cores": "now", "memory": "wrong", "launches": "mark-bar"}
_MORE = ".bar.mark-bar{fill:var(--ref)}.likely{fill:var(--now);fill-opacity:.75}"


def _whole(title: str, frame: Axes, body: Sequence[str]) -> str:
    head, _, rest = svg(title, frame, body).partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}{_MORE}</style>{rest}'


def layer_chart(title: str, layers: Sequence[tuple[str, float, str]]) -> str:
    """Milliseconds of each layer in the graph's order, coloured by what binds it, as an SVG.

    Args:
        title: of the plot.
        layers: name, milliseconds, and tensor cores, memory or launches.
    """
    most = max(ms for _, ms, _ in layers)
    frame = Axes(Axis("layer, in the graph's order", 0, len(layers)), Axis("ms", 0, 1.15 * most))
    edges = list(range(len(layers) + 1))
    body = [
        bars(frame, edges, [ms if bound == name else 0.0 for _, ms, bound in layers], kind)
        for name, kind in _KINDS.items()
    ]
    longest = sorted(range(len(layers)), key=lambda at: -layers[at][1])[:_NAMED]
    for at in longest:
        name, ms, _ = layers[at]
        x, y = frame.at(at + 0.5, ms)
        body.append(text(x, y - 3, name, "start" if at < len(layers) / 2 else "end"))
    for row, (name, kind) in enumerate(_KINDS.items()):
        x, y = frame.at(len(layers) * 0.62, 1.12 * most)
        y += 14 * row
        body.append(
            f'<rect class="bar {kind}" x="{x:.1f}" y="{y:.1f}" width="9" height="9"/>'
            + text(x + 13, y + 8, f"bound by {name}")
        )
    return _whole(title, frame, body)


def published_chart(points: Sequence[tuple[str, float, float, float, float]]) -> str:
    """Predicted over published milliseconds with 80 % intervals, both logarithmic, as an SVG.

    Args:
        points: hint, published, low, likely and high, milliseconds.
    """
    values = [value for _, *ms in points for value in ms]
    low, high = 0.9 * min(values), 1.1 * max(values)
    frame = Axes(
        Axis("published, ms", low, high, log=True), Axis("predicted, ms", low, high, log=True)
    )
    body = [line(frame, [(low, low), (high, high)], "stored", "predicted as published")]
    for hint, published, least, likely, most in points:
        body.append(line(frame, [(published, least), (published, most)], "now", hint))
        body.append(circle(frame, (published, likely), 3.0, "likely", f"{hint}: {likely:.2f}"))
    return _whole("predicted against published, each network left out", frame, body)
