"""Small charts as SVG text; colours come from the page, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

__all__ = ["Axes", "Axis", "bars", "circle", "legend", "line", "nice_ticks", "svg", "text"]

WIDTH, HEIGHT = 440.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 14.0, 12.0, 40.0
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A range with its label; logarithmic where `log`."""

    label: str
    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Return where `value` lies, 0 at `low` and 1 at `high`."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-12))
        return min(1.0, max(0.0, (at - low) / (high - low or 1.0)))


@dataclass(frozen=True)
class Axes:
    """The two axes of a chart; turns values into pixels."""

    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point."""
        across = _LEFT + self.x.share(x) * (WIDTH - _LEFT - _RIGHT)
        up = HEIGHT - _BOTTOM - self.y.share(y) * (HEIGHT - _TOP - _BOTTOM)
        return across, up


def nice_ticks(low: float, high: float, log: bool = False, count: int = 5) -> list[float]:
    """Return round values within a range."""
    if log:
        found = [
            base * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for base in (1, 2, 5)
            if low <= base * 10.0**power <= high
        ]
        if len(found) > 1:
            return found[:: math.ceil(len(found) / 8)]
    rough = (high - low) / count or 1.0
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * base for base in (1, 2, 5, 10) if scale * base >= rough * 0.999)
    first = math.ceil(low / step - 1e-9) * step
    return [float(value) for value in np.arange(first, high + step * 1e-6, step)]


def svg(title: str, frame: Axes, body: Sequence[str]) -> str:
    """Return a whole chart: grid, axes, `body`."""
    parts = [_ticks_x(frame), _ticks_y(frame), *body, _labels(frame)]
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _ticks_x(frame: Axes) -> str:
    found = []
    for value in nice_ticks(frame.x.low, frame.x.high, frame.x.log):
        x, bottom = frame.at(value, frame.y.low)
        found.append(text(x, bottom + 15, f"{value:g}", "middle"))
        found.append(f'<path class="tick" d="M{x:.1f} {bottom:.1f}v4"/>')
    return "".join(found)


def _ticks_y(frame: Axes) -> str:
    found = []
    for value in nice_ticks(frame.y.low, frame.y.high, frame.y.log):
        left, y = frame.at(frame.x.low, value)
        found.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{WIDTH - _RIGHT:.1f}"/>')
        found.append(text(left - 6, y + 4, f"{value:g}", "end"))
    return "".join(found)


def _labels(frame: Axes) -> str:
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    height = (_TOP + HEIGHT - _BOTTOM) / 2
    across = text(middle, HEIGHT - 6, frame.x.label, "middle", "label")
    up = (
        f'<text class="label" text-anchor="middle" '
        f'transform="translate(12 {height:.1f}) rotate(-90)">{escape(frame.y.label)}</text>'
    )
    return across + up


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """Draw words at a pixel."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def line(frame: Axes, points: Points, kind: str, hint: str = "") -> str:
    """Draw a line through `points`, in data units; `hint` shows under the pointer."""
    if not points:
        return ""
    pixels = [frame.at(x, y) for x, y in points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
    return f'<path class="line {kind}" d="{path}"><title>{escape(hint)}</title></path>'


def bars(frame: Axes, edges: Sequence[float], heights: Sequence[float], kind: str) -> str:
    """Draw a histogram: one bar between each two `edges`."""
    found = []
    for low, high, height in zip(edges, edges[1:], heights, strict=False):
        if height <= 0:
            continue
        left, top = frame.at(low, height)
        right, bottom = frame.at(high, frame.y.low)
        hint = f"{low:.3g} to {high:.3g}: {height:.3g}"
        found.append(
            f'<rect class="bar {kind}" x="{left + 0.5:.1f}" y="{top:.1f}" '
            f'width="{max(0.5, right - left - 1):.1f}" height="{bottom - top:.1f}">'
            f"<title>{escape(hint)}</title></rect>"
        )
    return "".join(found)


def circle(frame: Axes, at: tuple[float, float], radius: float, kind: str, hint: str) -> str:
    """Draw a disc at a point in data units."""
    x, y = frame.at(*at)
    return (
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
        f"<title>{escape(hint)}</title></circle>"
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return a legend as HTML, from the class and the words of each thing shown."""
    keys = "".join(
        f'<span class="key"><i class="{kind}"></i>{escape(words)}</span>' for kind, words in entries
    )
    return f'<p class="legend">{keys}</p>'
