"""Histograms of the dissection's scores, a chart for every convolution, on one page."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

from apps.charts.style import STYLE
from apps.charts.svg import Axes, Axis, bars, legend, svg
from edge.compress.channels.importance import Importances
from edge.compress.channels.plan import PrunePlan

__all__ = ["page"]

_BARS = 24


def page(title: str, scores: Importances, plan: PrunePlan) -> str:
    """Return an HTML page with the scores of each layer's feature maps, kept ones and others."""
    cards = [
        f'<div class="card"><h3>{escape(path)}</h3>{_chart(path, values, plan)}</div>'
        for path, values in scores.items()
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p>Score m²/v + log v of each feature map, over images of the "
        "kept classes alone. Channels that are bound together leave together, so a low score may "
        "stay with a high one.</p>"
        f'<div class="grid">{"".join(cards)}</div></main></body></html>'
    )


def _chart(path: str, values: NDArray[np.float64], plan: PrunePlan) -> str:
    finite = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(finite).all():
        return "<p>every map is constant</p>"
    low = float(np.nanmin(finite))
    # Constant maps score minus infinity; they stand in the first bar.
    shown = np.where(np.isnan(finite), low, finite)
    edges = np.linspace(low, max(float(shown.max()), low + 1e-6), _BARS + 1)
    stays = np.isin(np.arange(len(values)), plan.kept.get(path, range(len(values))))
    kept, gone = (np.histogram(shown[mask], edges)[0] for mask in (stays, ~stays))
    frame = Axes(
        Axis("score", float(edges[0]), float(edges[-1])),
        Axis("feature maps", 0, 1.1 * float(max(kept.max(), gone.max()))),
    )
    middle = (edges[:-1] + edges[1:]) / 2
    body = [
        bars(frame, [edges[at], middle[at]], [float(kept[at])], "right")
        + bars(frame, [middle[at], edges[at + 1]], [float(gone[at])], "wrong")
        for at in range(_BARS)
    ]
    keys = [("right", f"{int(stays.sum())} stay"), ("wrong", f"{int((~stays).sum())} go")]
    return svg(f"scores of {path}", frame, body) + legend(keys)
