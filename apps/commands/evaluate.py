"""`edge evaluate` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apps.commands.options import (
    count,
    exact_option,
    json_option,
    threads_option,
    threshold_options,
)
from apps.commands.terminal import show
from edge.measure.evaluate import evaluate
from edge.reporting import say

__all__ = [
    "arguments",
    "print_contracts",
    "print_evaluation",
    "print_slices",
    "print_suspicion",
    "run",
]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge evaluate`."""
    parser.add_argument("artifact", metavar="ARTIFACT", help=".onnx or .engine of edge")
    parser.add_argument(
        "--data",
        default="scenes",
        metavar="DIR",
        help="folder with images/ and YOLO labels/, a VOC or KITTI folder, or a COCO json; "
        "left out: fresh scenes of the built-in world",
    )
    parser.add_argument("--images", type=count, metavar="N", help="at most so many, spread evenly")
    threshold_options(parser, 0.005)
    parser.add_argument(
        "--best-class", action="store_true", help="only the best class of a box, as a camera shows"
    )
    parser.add_argument(
        "--against",
        metavar="B",
        help="compare with another artifact on the same images: by size, by class, scores",
    )
    parser.add_argument(
        "--try-contracts", action="store_true", help="letterbox and stretch, and which of them fits"
    )
    parser.add_argument(
        "--allow-overlap",
        action="store_true",
        help="go on though the artifact was calibrated on these images",
    )
    threads_option(parser)
    exact_option(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge evaluate`: always 0; errors are raised."""
    result = evaluate(
        args.artifact,
        args.data,
        images=args.images,
        score=args.score,
        iou=args.iou,
        multi_label=not args.best_class,
        threads=args.threads,
        exact=not args.fast_int8,
        against=args.against,
        try_contracts=args.try_contracts,
        allow_overlap=args.allow_overlap,
        json_path=args.json,
    )
    print_evaluation(result)
    return 0


def print_contracts(result: dict[str, Any]) -> None:
    """The table of `--try-contracts`, and what to do."""
    table = {key: value for key, value in result["contracts"].items() if key != "fits"}
    rows = [
        (key, f"{v['map50'] * 100:.2f}", f"{v['map50_95'] * 100:.2f}") for key, v in table.items()
    ]
    show("input contract", ("resize", "mAP@.5 %", "mAP@.5:.95 %"), rows)
    fits = result["contracts"]["fits"]
    advice = "as the artifact says" if fits == result["resize"] else f"export with --resize {fits}"
    say(f"the weights fit {fits}: {advice}")


def print_suspicion(result: dict[str, Any]) -> None:
    """One line where the contract is suspicious."""
    found = result["suspicious_contract"]
    if found is None:
        return
    own, other = (found["map50"][side] * 100 for side in ("own", "other"))
    say(
        f"suspicious input contract: with {found['resize']} in place of {result['resize']} mAP@.5 "
        f"is {other:.1f} in place of {own:.1f} % on {found['images']} of these images; "
        f"--try-contracts measures all, then export again with --resize {found['resize']}"
    )


def print_slices(result: dict[str, Any], against: str, classes: int = 5) -> None:
    """The slices as a table on stdout; of the classes those that lost and gained most."""
    slices = result["slices"]
    every = sorted(
        (name for name in slices if name.startswith("class ")),
        key=lambda name: slices[name]["difference"],
    )
    named = every if len(every) <= 2 * classes else [*every[:classes], *every[-classes:]]
    rows = [_cells(name, slices[name]) for name in (*_not_classes(slices), *named)]
    columns = ("objects", f"{against} mAP@.5 %", "this", "difference", "95 % interval")
    show(f"against {against}, paired on the same images", columns, rows)
    scores = result["scores"]
    moved = "-" if scores["shift"] is None else f"{scores['shift']:+.3f}"
    rows = [
        (name, f"{scores[key]['threshold']:.2f}", f"{scores[key]['f1']:.3f}")
        for name, key in ((against, "before"), ("this", "now"))
        if key in scores
    ]
    show(f"scores: common boxes moved by {moved}", ("artifact", "best threshold", "F1"), rows)


def _not_classes(slices: dict[str, Any]) -> list[str]:
    return [name for name in slices if not name.startswith("class ")]


def _cells(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    low, high = (f"{value * 100:+.2f}" for value in one["interval"])
    shares = (f"{one[side] * 100:.2f}" for side in ("before", "now"))
    return (name, *shares, f"{one['difference'] * 100:+.2f}", f"{low} to {high}")


_NAMED = 12


def print_evaluation(result: dict[str, Any], classes: int = 5) -> None:
    """The result as tables on stdout: overall, by size, and the best and worst `classes`."""
    name = ", ".join([Path(result["artifact"]).name, *result["labels"]])
    rows = [("all", _percent(result["map50"]), _percent(result["map50_95"]))]
    rows += [
        (size, _percent(one["map50"]), _percent(one["map50_95"]))
        for size, one in result["by_size"].items()
    ]
    title = f"{name} on {result['images']} images of {result['data']}, {result['backend']}"
    show(title, ("objects", "mAP@.5 %", "mAP@.5:.95 %"), rows)
    _print_classes(result["by_class"], classes)
    if "against" in result:
        print_slices(result["against"], Path(result["against"]["artifact"]).name, classes)
    if "contracts" in result:
        print_contracts(result)
    print_suspicion(result)
    _print_left_out(result)


def _print_classes(by_class: dict[str, dict[str, float]], count: int) -> None:
    ranked = sorted(by_class.items(), key=lambda entry: -entry[1]["ap50"])
    if len(ranked) > 2 * count:
        title = f"best and worst {count} of {len(ranked)} classes"
        ranked = ranked[:count] + ranked[-count:]
    else:
        title = "classes"
    rows = (
        (name, _percent(one["ap50"]), _percent(one["ap50_95"]), str(one["boxes"]))
        for name, one in ranked
    )
    show(title, ("class", "AP@.5 %", "AP@.5:.95 %", "objects"), rows)


def _print_left_out(result: dict[str, Any]) -> None:
    for reason, number in result["dropped"].items():
        say(f"{number} x {reason}")
    for text in result["skipped"][:5]:
        say(f"skipped: {text}")
    if len(result["skipped"]) > 5:
        say(f"skipped: {len(result['skipped']) - 5} more")
    if result["left_out"]:
        most = sorted(result["left_out"].items(), key=lambda each: -each[1])
        named = ", ".join(f"{name} ({boxes})" for name, boxes in most[:_NAMED])
        rest = f" and {len(most) - _NAMED} more" if len(most) > _NAMED else ""
        say(f"classes that the model does not have: {named}{rest}")


def _percent(share: float) -> str:
    return f"{share * 100:.2f}"
