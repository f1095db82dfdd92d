"""`edge anchors` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.charts.svg import Axis, Frame, circle, line, svg
from apps.commands.options import count, json_option, size, target, words
from apps.commands.terminal import show
from edge.data.datasets import open_dataset
from edge.errors import DataError
from edge.files import write_file, write_json
from edge.reporting import say, track
from edge.spec import InputContract
from edge.train.anchors import box_sizes, kmeans_anchors, mean_iou, shape_iou

__all__ = ["anchors", "arguments", "print_anchors", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge anchors`."""
    parser.add_argument(
        "--data", required=True, metavar="D", help="VOC, COCO, YOLO or KITTI folder, or scenes"
    )
    parser.add_argument("--k", type=count, default=6, metavar="N", help="anchors (%(default)s)")
    parser.add_argument(
        "--size", type=size, default=(416, 416), metavar="HxW", help="of the input (416x416)"
    )
    parser.add_argument(
        "--resize",
        choices=("letterbox", "stretch"),
        default="letterbox",
        help="how frames are fitted into the input (%(default)s)",
    )
    parser.add_argument(
        "--distance",
        choices=("iou", "euclidean"),
        default="iou",
        help="between a box and an anchor (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the first centres (%(default)s)"
    )
    parser.add_argument("--classes", type=words, default=[], metavar="NAMES", help="only these")
    parser.add_argument("--images", type=count, metavar="N", help="at most so many, spread evenly")
    parser.add_argument(
        "--curve", type=target(), metavar="F.svg", help="plot of the mean IoU over their number"
    )
    parser.add_argument("--largest", type=count, metavar="N", help="up to which it goes (15)")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Cluster and print."""
    result = anchors(
        args.data,
        args.k,
        hw=args.size,
        resize=args.resize,
        distance=args.distance,
        seed=args.seed,
        classes=args.classes,
        images=args.images,
        curve=args.curve,
        largest=args.largest,
        json_path=args.json,
    )
    print_anchors(result)
    return 0


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
        write_file(Path(curve), _plot(found, count).encode())
    write_json(result, json_path)
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
