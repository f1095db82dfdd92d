"""Where INT8 loses accuracy: `edge sensitivity`."""

from __future__ import annotations

from collections.abc import Sequence

from apps.charts.style import STYLE
from apps.charts.svg import Axes, Axis, circle, line, svg, text
from export.search.sensitivity import LayerSensitivity, SensitivityResult

__all__ = ["chart"]

# Layers whose names the plot has.
_NAMED = 3


def chart(result: SensitivityResult) -> str:
    """Draw the noise of each layer at the heads as a self-contained SVG."""
    layers, whole = result.measured.layers, result.measured.int8_db
    every = [db for layer in layers for db in (layer.alone_db, layer.kept_db)]
    low, high = min(*every, whole), max(every)
    room = 0.05 * (high - low or 1.0)
    frame = Axes(
        Axis("layer, in the graph's order", 0, max(1, len(layers) - 1)),
        Axis("signal to noise at the heads, dB", low - room, high + 3 * room),
    )
    body = [line(frame, [(0, whole), (len(layers) - 1, whole)], "stored", "every layer in INT8")]
    for key, kind, words in (
        ("kept_db", "stored-disc", "only it kept"),
        ("alone_db", "dot", "only it quantized"),
    ):
        for i, layer in enumerate(layers):
            db: float = getattr(layer, key)
            hint = f"{layer.name}, {words}: {db:.1f} dB"
            body.append(circle(frame, (i, db), 3.5, kind, hint))
    body += [*_key(frame), *_named(frame, layers)]
    drawn = svg(f"{result.model}: where INT8 loses accuracy", frame, body)
    head, _, rest = drawn.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{rest}'


def _key(frame: Axes) -> list[str]:
    """Draw what the marks mean, along the top."""
    x, y = frame.at(frame.x.low, frame.y.high)
    right = frame.at(frame.x.high, frame.y.high)[0]
    filled = f'<circle class="dot" cx="{x + 6:.1f}" cy="{y + 4:.1f}" r="3.5"/>'
    ring = f'<circle class="stored-disc" cx="{x + 132:.1f}" cy="{y + 4:.1f}" r="3.5"/>'
    words = (
        text(x + 14, y + 8, "only it in INT8"),
        text(x + 140, y + 8, "all but it in INT8"),
        text(right, y + 8, "dashes: all in INT8", "end"),
    )
    return [filled, ring, *words]


def _named(frame: Axes, layers: Sequence[LayerSensitivity]) -> list[str]:
    """Draw names beside the noisiest layers, as the table and --keep write them."""
    worst = sorted(range(len(layers)), key=lambda i: layers[i].alone_db)[:_NAMED]
    found = []
    for i in worst:
        x, y = frame.at(i, layers[i].alone_db)
        left = 2 * i < len(layers)
        # Neighbours get their names above and below.
        below = any(other + 1 == i for other in worst)
        place = (x + 6 if left else x - 6, y + (13 if below else -5))
        found.append(text(*place, layers[i].name, "start" if left else "end"))
    return found
