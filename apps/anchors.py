"""Anchors that fit a data set: `edge anchors`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.report_svg import Axis, Frame, circle, line, svg
from apps.table import show
from edge.artifact import write_atomic
from edge.data.datasets import open_dataset
from edge.errors import DataError
from edge.reporting import say, track
from edge.spec import InputContract
from edge.train.anchors import box_sizes, kmeans_anchors, mean_iou, shape_iou

__all__ = ["anchors", "print_anchors"]

_STYLE = (
    "<style>text{font:11px sans-serif;fill:#444}.grid{stroke:#ddd}.tick{stroke:#888}"
    ".line{fill:none;stroke:#1f6fb4;stroke-width:2}.dot{fill:#1f6fb4}.chosen{fill:#c4421a}</style>"
)


def anchors(
    data: str | Path,
    count: int,
    *,
    hw: tuple[int, int] = (416, 416),
    resize: Any = "letterbox",
    distance: Any = "iou",
    seed: int = 0,
    classes: Sequence[str] = (),
    images: int | None = None,
    curve: str | Path | None = None,
    largest: int | None = None,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Cluster the boxes of `data`, in pixels of the input, and say how well they fit.

    Args:
        data: as `open_dataset` takes it.
        count: of anchors.
        hw, resize: of the network's input.
        distance: iou or euclidean.
        seed: of the clustering.
        classes: names that count; none: all.
        images: take at most so many, spread evenly.
        curve: SVG of the mean IoU over the number of anchors.
        largest: number up to which the curve goes; by default 15, or `count` if that is more.
        json_path: where to write the result too.

    Returns:
        `anchors` small to large, with `boxes` and `mean_iou` of each; `mean_iou` of all, `curve`
        as pairs if asked for, and what was `dropped`.

    Raises:
        DataError: no labels, no such class, or fewer different boxes than anchors.
    """
    dataset = open_dataset(data, limit=images)
    if dataset.kind == "images":
        raise DataError(f"{data}: images without labels; there are no boxes to cluster")
    numbers = _numbers(dataset.classes, classes, data)
    sizes = box_sizes(dataset, InputContract(hw, resize), numbers)
    chosen = _cluster(sizes, count, seed, distance, data)
    result = {
        "data": dataset.source,
        "images": len(dataset),
        "boxes": len(sizes),
        "hw": list(hw),
        "resize": resize,
        "distance": distance,
        "seed": seed,
        "mean_iou": round(mean_iou(sizes, chosen), 6),
        "anchors": _each(sizes, chosen),
        "dropped": dataset.dropped,
    }
    if curve is not None:
        top = min(max(largest or 15, count), len(np.unique(sizes, axis=0)))
        tries = track(range(1, top + 1), "clustering", top)
        found = [(k, mean_iou(sizes, _cluster(sizes, k, seed, distance, data))) for k in tries]
        result["curve"] = [(k, round(value, 6)) for k, value in found]
        write_atomic(Path(curve), _plot(found, count).encode())
    if json_path is not None:
        write_atomic(Path(json_path), json.dumps(result, indent=1).encode())
    return result


def _numbers(known: Sequence[str], classes: Sequence[str], data: str | Path) -> list[int]:
    for name in classes:
        if name not in known:
            raise DataError(f"{data}: no class {name!r}; it has {', '.join(known)}")
    return [known.index(name) for name in classes]


def _cluster(sizes: Any, count: int, seed: int, distance: Any, data: str | Path) -> Any:
    try:
        return kmeans_anchors(sizes, count, seed, distance=distance)
    except ValueError as error:
        raise DataError(f"{data}: {len(sizes)} boxes: {error}") from error


def _each(sizes: Any, chosen: Any) -> list[dict[str, Any]]:
    fits = shape_iou(sizes, chosen)
    best = fits.argmax(axis=1)
    return [
        {
            "wh": [round(float(side), 2) for side in anchor],
            "boxes": int((best == k).sum()),
            "mean_iou": round(float(fits[best == k, k].mean()), 6) if (best == k).any() else None,
        }
        for k, anchor in enumerate(chosen)
    ]


def _plot(found: Sequence[tuple[int, float]], count: int) -> str:
    values = [value for _, value in found]
    low = np.floor(min(values) * 10) / 10
    frame = Frame(Axis("anchors", 0, len(found)), Axis("mean IoU", float(low), 1.0))
    dots = [
        circle(frame, point, 4.0, "chosen" if point[0] == count else "dot", f"{point[1]:.4f}")
        for point in found
    ]
    chart = svg("mean IoU over the number of anchors", frame, [line(frame, found, ""), *dots])
    opening = '<svg xmlns="http://www.w3.org/2000/svg" width="660" '
    return chart.replace("<svg ", opening, 1).replace("</title>", f"</title>{_STYLE}", 1)


def print_anchors(result: dict[str, Any]) -> None:
    """A row per anchor, and the line for a cfg."""
    rows = [
        (
            f"{one['wh'][0]:.1f} x {one['wh'][1]:.1f}",
            str(one["boxes"]),
            "-" if one["mean_iou"] is None else f"{one['mean_iou']:.4f}",
        )
        for one in result["anchors"]
    ]
    rows.append(("all", str(result["boxes"]), f"{result['mean_iou']:.4f}"))
    height, width = result["hw"]
    title = f"{result['data']}: anchors for {width}x{height}, {result['resize']}"
    show(title, ("width x height, px", "boxes", "mean IoU"), rows)
    pairs = ",  ".join(f"{one['wh'][0]:g},{one['wh'][1]:g}" for one in result["anchors"])
    print(f"anchors = {pairs}")
    for reason, times in result["dropped"].items():
        say(f"{times} x {reason}")
