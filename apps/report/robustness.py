"""The page of `edge robustness`: curves over severities, and what each corruption looks like."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from apps.charts.style import STYLE
from apps.charts.svg import Axes, Axis, legend, line, svg
from apps.report.pictures import embedded
from edge.data.datasets import load, open_dataset
from edge.measure.corruptions import corrupt, random_state
from edge.measure.robustness import ArtifactRobustness, RobustnessResult

__all__ = ["robustness_page"]

# Lines of a chart, in the order of the artifacts.
_KINDS = ("now", "reference", "stored", "mark")
_HEIGHT = 150


def robustness_page(result: RobustnessResult) -> str:
    """Return the page as HTML: one file, no script, no request."""
    title = f"robustness on {result.images} pictures of {result.data}"
    names = [one.artifact.replace("\\", "/").rsplit("/", 1)[-1] for one in result.artifacts]
    sentences = "".join(f"<p>{escape(text)}</p>" for text in result.sentences)
    example = load(open_dataset(result.data, limit=1).items[0])[0]
    cards = "".join(
        f'<div class="card"><h3>{escape(name)}</h3>{_chart(result, name)}'
        f"{_example(example, name, result.severities[-1])}</div>"
        for name in result.corruptions
    )
    keys = legend([(kind, name) for kind, name in zip(_KINDS, names, strict=False)])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{sentences}{_table(result, names)}"
        f"<h2>mAP@.5 by severity</h2>{keys}<div class='grid'>{cards}</div></main></body></html>"
    )


def _table(result: RobustnessResult, names: Sequence[str]) -> str:
    head = "".join(
        f"<th>{text}</th>"
        for text in (
            "artifact",
            "clean mAP@.5 %",
            "mean under corruption %",
            "of clean %",
            "recall % clean",
            "small objects' recall % clean",
            "calibration error",
        )
    )
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{_cells(one)}</tr>"
        for name, one in zip(names, result.artifacts, strict=True)
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div class='scroll'>{table}</div>"


def _cells(one: ArtifactRobustness) -> str:
    figures = (
        one.clean.map50,
        one.mean_under_corruption,
        one.relative,
        one.clean.recall,
        one.clean.small_recall,
        one.clean.calibration_error,
    )
    shown = ["–" if figure is None else f"{figure * 100:.2f}" for figure in figures]
    return "".join(f"<td class='number'>{text}</td>" for text in shown)


def _chart(result: RobustnessResult, name: str) -> str:
    frame = Axes(Axis("severity", 0, 5), Axis("mAP@.5 %", 0, 100))
    body = []
    for kind, one in zip(_KINDS, result.artifacts, strict=False):
        points = [(0.0, one.clean.map50 * 100)]
        points += [
            (float(each.severity), each.map50 * 100)
            for each in one.conditions
            if each.corruption == name
        ]
        body.append(line(frame, points, kind, one.artifact))
    return svg(name, frame, body)


def _example(picture: NDArray[np.uint8], name: str, severity: int) -> str:
    made = corrupt(picture, name, severity, random_state(0, name, severity, 0))
    words = f"severity {severity}"
    image = embedded(made, _HEIGHT, f"{name}, {words}")
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"
