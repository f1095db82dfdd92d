"""`edge anchors` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from apps.charts.svg import Axes, Axis, circle, line, svg
from apps.commands.options import add_options, json_option, read_options, target
from apps.commands.terminal import output, show
from edge.data.datasets import open_dataset
from edge.errors import DataError
from edge.files import plain_text, write_file, write_json
from edge.optional import require
from edge.reporting import say
from edge.train.anchors import AnchorResult, find_anchors
from edge.train.options import AnchorOptions

if TYPE_CHECKING:
    from edge.models.darknet_cfg import DarknetCfg

__all__ = ["arguments", "print_anchors", "run"]

_STYLE = (
    "<style>text{font:11px sans-serif;fill:#444}.grid{stroke:#ddd}.tick{stroke:#888}"
    ".line{fill:none;stroke:#1f6fb4;stroke-width:2}.dot{fill:#1f6fb4}.chosen{fill:#c4421a}</style>"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge anchors`."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="labelled pictures: VOC, COCO, YOLO or KITTI folder, a COCO json, obj.data, "
        "data.yaml, a list of pictures, or scenes",
    )
    add_options(parser, AnchorOptions)
    parser.add_argument(
        "--curve",
        type=target(),
        metavar="F.svg",
        help="plot the mean IoU over the number of anchors into this file",
    )
    parser.add_argument(
        "--cfg",
        metavar="F.cfg",
        help="cfg to adapt with --write; the number of anchors and --size are those of this cfg",
    )
    parser.add_argument(
        "--write",
        type=target(".cfg"),
        metavar="NEW.cfg",
        help="write the cfg with these anchors and the classes of --data, and NEW.names beside it",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Cluster and print."""
    options = read_options(args, AnchorOptions)
    if (args.cfg is None) != (args.write is None):
        raise DataError("--cfg and --write go together: the cfg to adapt, and where to write it")
    cfg = None
    if args.cfg is not None:
        require("torch")
        from edge.models.adapt import anchor_count
        from edge.models.darknet_cfg import read_cfg

        cfg = read_cfg(Path(args.cfg))
        hw = cfg.net.positive("height"), cfg.net.positive("width")
        options = _of_cfg(options, anchor_count(cfg), hw, args.cfg)
    result = find_anchors(args.data, options, with_curve=args.curve is not None)
    if result.curve is not None:
        write_file(args.curve, _plot(result.curve, options.k).encode())
    write_json(result, args.json)
    print_anchors(result)
    if cfg is not None:
        # All pictures: few of them may lack a class.
        classes = options.classes or open_dataset(args.data).classes
        _write_cfg(cfg, result, classes, Path(args.write))
    return 0


def _of_cfg(options: AnchorOptions, count: int, hw: tuple[int, int], cfg: str) -> AnchorOptions:
    """Return the options with number of anchors and input size of a cfg.

    Raises:
        DataError: others were given.
    """
    usual = AnchorOptions()
    for given, default, own, flag in (
        (options.k, usual.k, count, "--k"),
        (options.hw, usual.hw, hw, "--size"),
    ):
        if given not in (default, own):
            raise DataError(f"{cfg}: has {own}, which {flag} {given} is not; leave {flag} out")
    return replace(options, k=count, hw=hw)


def _write_cfg(cfg: DarknetCfg, result: AnchorResult, classes: Sequence[str], path: Path) -> None:
    from edge.models.adapt import adapt_cfg

    adapted = adapt_cfg(cfg, len(classes), [anchor.wh for anchor in result.anchors])
    names = path.with_suffix(".names")
    write_file(path, adapted.text.encode())
    write_file(names, "".join(f"{plain_text(name)}\n" for name in classes).encode())
    say(f"written: {path}, {names}")


def _plot(found: Sequence[tuple[int, float]], chosen: int) -> str:
    low = math.floor(min(value for _, value in found) * 10) / 10
    frame = Axes(Axis("anchors", 0, len(found)), Axis("mean IoU", low, 1.0))
    dots = [
        circle(frame, point, 4.0, "chosen" if point[0] == chosen else "dot", f"{point[1]:.4f}")
        for point in found
    ]
    chart = svg("mean IoU over the number of anchors", frame, [line(frame, found, ""), *dots])
    opening = '<svg xmlns="http://www.w3.org/2000/svg" width="660" '
    return chart.replace("<svg ", opening, 1).replace("</title>", f"</title>{_STYLE}", 1)


def print_anchors(result: AnchorResult) -> None:
    """Print a row for each anchor, and the line for a cfg."""
    rows = [
        (
            f"{anchor.wh[0]:.1f} x {anchor.wh[1]:.1f}",
            str(anchor.boxes),
            "-" if anchor.mean_iou is None else f"{anchor.mean_iou:.4f}",
        )
        for anchor in result.anchors
    ]
    rows.append(("all", str(result.boxes), f"{result.mean_iou:.4f}"))
    height, width = result.hw
    title = f"{result.data}: anchors for {width}x{height}, {result.resize}"
    show(title, ("width x height, px", "boxes", "mean IoU"), rows)
    pairs = ",  ".join(f"{anchor.wh[0]:g},{anchor.wh[1]:g}" for anchor in result.anchors)
    print(f"anchors = {pairs}", file=output())
    for reason, times in result.dropped.items():
        say(f"{times} x {reason}")
