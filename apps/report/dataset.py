"""The page of `edge data`: what a labelled set holds, and pictures of labels that look wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.charts.style import STYLE
from apps.charts.svg import Axes, Axis, bars, svg
from apps.report.pictures import embedded
from edge.data.datasets import load
from edge.data.items import Dataset
from edge.measure.dataset_report import DatasetReport, Fault, Twins

__all__ = ["dataset_page"]

_PICTURES = 24
_HEIGHT = 220
Picture = NDArray[np.uint8]


def dataset_page(report: DatasetReport, datasets: Sequence[Dataset]) -> str:
    """Return the page as HTML: one file, no script, no request.

    Args:
        datasets: where the pictures of faults and twins come from.
    """
    items = {str(item.image): item for dataset in datasets for item in dataset.items}

    def picture(name: str) -> Picture | None:
        return load(items[name])[0] if name in items else None

    title = f"{report.source}: {report.images} pictures, {report.boxes} boxes"
    shown = [fault for fault in report.faults if fault.box is not None][:_PICTURES]
    faults = "".join(_fault_card(fault, picture(fault.image)) for fault in shown)
    twins = "".join(
        _twins_card(one, picture(one.first), picture(one.second))
        for one in (*report.leaks, *report.twins)[: _PICTURES // 2]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p class='facts'>{escape(_facts(report))}</p>"
        f"<h2>Classes</h2>{_classes(report)}"
        f'<h2>Boxes and light</h2><div class="grid">{_charts(report)}</div>'
        f"<h2>Labels that look wrong</h2>{_counts(report)}"
        f'<div class="grid">{faults}</div>'
        f"<h2>Pictures that show the same</h2><p class='facts'>{len(report.leaks)} shared with the "
        f"other split, {len(report.twins)} within the set</p><div class='grid'>{twins}</div>"
        "</main></body></html>"
    )


def _facts(report: DatasetReport) -> str:
    sizes = ", ".join(f"{name} {count}" for name, count in report.sizes.items())
    resolutions = ", ".join(list(report.resolutions)[:4])
    return (
        f"{report.unlabelled} pictures without a box; boxes by COCO's sizes: {sizes}; "
        f"{report.overlapping:.0%} of the boxes overlap another by more than half; "
        f"{report.light['dark']:.0%} of the pictures are dark, "
        f"{report.light['bright']:.0%} bright; "
        f"sizes of pictures: {resolutions}; {len(report.skipped)} could not be read"
    )


def _classes(report: DatasetReport) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class='number'>{one['boxes']}</td>"
        f"<td class='number'>{one['images']}</td></tr>"
        for name, one in sorted(report.classes.items(), key=lambda pair: -pair[1]["boxes"])
    )
    head = "<tr><th>class</th><th>boxes</th><th>pictures</th></tr>"
    return f"<div class='scroll'><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>"


def _charts(report: DatasetReport) -> str:
    cards = [
        _histogram("root of the box's area, pixels", report.sides_histogram),
        _histogram("width over height", report.aspect_histogram),
        _histogram("mean grey level of the picture", report.light_histogram),
        _positions(report),
    ]
    return "".join(f'<div class="card">{card}</div>' for card in cards)


def _histogram(label: str, histogram: tuple[tuple[float, ...], tuple[int, ...]]) -> str:
    edges, counts = histogram
    if not counts:
        return f"<h3>{escape(label)}</h3><p>no boxes</p>"
    frame = Axes(Axis(label, edges[0], edges[-1]), Axis("number", 0, max(counts)))
    return svg(label, frame, [bars(frame, edges, [float(count) for count in counts], "now")])


def _positions(report: DatasetReport) -> str:
    most = max(max(row) for row in report.positions) or 1
    cells = "".join(
        f'<rect class="now-disc" style="fill-opacity:{count / most:.2f}" x="{40 * column}" '
        f'y="{24 * row}" width="39" height="23"><title>{count}</title></rect>'
        for row, counts in enumerate(report.positions)
        for column, count in enumerate(counts)
    )
    title = "where box centres lie in the picture"
    return (
        f'<h3>{title}</h3><svg viewBox="0 0 320 192" role="img" aria-label="{title}">{cells}</svg>'
    )


def _counts(report: DatasetReport) -> str:
    if not report.faults:
        return "<p>none was found</p>"
    return "<p>" + escape(", ".join(f"{n} {kind}" for kind, n in report.counted.items())) + "</p>"


def _fault_card(fault: Fault, picture: Picture | None) -> str:
    score = "" if fault.score is None else f" ({fault.score:.2f})"
    words = f"<h3>{escape(fault.kind)}: {escape(fault.text)}{score}</h3>"
    place = f"<p class='facts'>{escape(fault.image)}</p>"
    if picture is None or fault.box is None:
        return f'<div class="card">{words}{place}</div>'
    return f'<div class="card">{words}{embedded(_around(picture, fault.box), _HEIGHT)}{place}</div>'


def _twins_card(twins: Twins, first: Picture | None, second: Picture | None) -> str:
    what = "the same pixels" if twins.exact else "nearly the same"
    pictures = "".join(embedded(one, _HEIGHT) for one in (first, second) if one is not None)
    names = f"<p class='facts'>{escape(twins.first)}<br>{escape(twins.second)}</p>"
    return f'<div class="card"><h3>{what}</h3>{pictures}{names}</div>'


def _around(picture: Picture, box: Iterable[float]) -> Picture:
    """The box with its surroundings, drawn in."""
    x1, y1, x2, y2 = box
    height, width = picture.shape[:2]
    reach = max(2 * (x2 - x1), 2 * (y2 - y1), 120.0)
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    left, top = (max(0, int(centre - reach / 2)) for centre in middle)
    right, bottom = min(width, int(left + reach)), min(height, int(top + reach))
    drawn = picture.copy()
    line = max(1, round(reach / 200))
    cv2.rectangle(drawn, (int(x1), int(y1)), (int(x2), int(y2)), (48, 59, 255), line)
    return np.asarray(drawn[top:bottom, left:right], np.uint8)
