"""`edge evaluate` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands.options import add_options, json_option, read_options
from apps.commands.terminal import show
from edge.files import write_json
from edge.measure.confusion import ClassPoint
from edge.measure.contracts import ContractComparison
from edge.measure.evaluate import Against, EvaluateOptions, EvaluateResult, evaluate
from edge.measure.slices import Slice
from edge.measure.statistics import FEW_OBJECTS
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
    add_options(parser, EvaluateOptions)
    parser.add_argument(
        "--every", action="store_true", help="show every class, not only the best and worst five"
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge evaluate`: always 0; errors are raised."""
    result = evaluate(args.artifact, args.data, read_options(args, EvaluateOptions))
    write_json(result, args.json)
    print_evaluation(result, len(result.by_class) if args.every else 5)
    return 0


def print_contracts(found: ContractComparison, resize: str) -> None:
    """Print the table of `--try-contracts`, and what to do.

    Args:
        resize: what the artifact says.
    """
    rows = [
        (name, _percent(one.map50), _percent(one.map50_95)) for name, one in found.by_resize.items()
    ]
    show("input contract", ("resize", "mAP@.5 %", "mAP@.5:.95 %"), rows)
    fits = found.fits
    advice = "as the artifact says" if fits == resize else f"export with --resize {fits}"
    say(f"the weights fit {fits}: {advice}")


def print_suspicion(result: EvaluateResult) -> None:
    """Print one line where the contract is suspicious."""
    found = result.suspicious_contract
    if found is None:
        return
    say(
        f"suspicious input contract: with {found.resize} in place of {result.resize} mAP@.5 is "
        f"{found.map50.other * 100:.1f} in place of {found.map50.own * 100:.1f} % on "
        f"{found.images} of these images; --try-contracts measures all, then export again with "
        f"--resize {found.resize}"
    )


def print_slices(result: Against, classes: int = 5) -> None:
    """Print the slices as a table; of the classes those that lost and gained most."""
    slices, against = result.slices, Path(result.artifact).name
    every = sorted(
        (name for name in slices if name.startswith("class ")),
        key=lambda name: slices[name].difference,
    )
    named = every if len(every) <= 2 * classes else [*every[:classes], *every[-classes:]]
    whole = [name for name in slices if not name.startswith("class ")]
    rows = [_cells(name, slices[name]) for name in (*whole, *named)]
    columns = ("objects", f"{against} mAP@.5 %", "this", "difference", "95 % interval")
    show(f"against {against}, paired on the same images", columns, rows)
    scores = result.scores
    moved = "-" if scores.shift is None else f"{scores.shift:+.3f}"
    sides = ((against, scores.before), ("this", scores.now))
    rows = [(name, f"{o.threshold:.2f}", f"{o.f1:.3f}") for name, o in sides if o is not None]
    show(f"scores: common boxes moved by {moved}", ("artifact", "best threshold", "F1"), rows)


def _cells(name: str, one: Slice) -> tuple[str, ...]:
    low, high = (f"{value * 100:+.2f}" for value in one.interval)
    difference = f"{one.difference * 100:+.2f}"
    told = f"{low} to {high}"
    if one.objects < FEW_OBJECTS:
        told += f" (too few to tell: {one.objects})"
    return (name, _percent(one.before), _percent(one.now), difference, told)


_NAMED, _MIXED = 12, 5


def print_evaluation(result: EvaluateResult, classes: int = 5) -> None:
    """Print the result as tables: overall, by size, and the best and worst `classes`."""
    name = ", ".join([Path(result.artifact).name, *result.labels])
    rows = [("all", _percent(result.map50), _percent(result.map50_95))]
    rows += [
        (size, _percent(one.map50), _percent(one.map50_95)) for size, one in result.by_size.items()
    ]
    title = f"{name} on {result.images} images of {result.data}, {result.backend}"
    show(title, ("objects", "mAP@.5 %", "mAP@.5:.95 %"), rows)
    _print_classes(result, classes)
    if result.against is not None:
        print_slices(result.against, classes)
    if result.contracts is not None:
        print_contracts(result.contracts, result.resize)
    print_suspicion(result)
    _print_left_out(result)


def _print_classes(result: EvaluateResult, count: int) -> None:
    ranked = sorted(result.by_class.items(), key=lambda entry: -entry[1].ap50)
    if len(ranked) > 2 * count:
        title = f"best and worst {count} of {len(ranked)} classes (--every shows all)"
        ranked = ranked[:count] + ranked[-count:]
    else:
        title = "classes"
    point = result.operating_point
    points = {} if point is None else point.by_class
    rows = [
        (
            name,
            _percent(one.ap50),
            _percent(one.ap50_95),
            *_rates(points.get(name)),
            str(one.boxes),
        )
        for name, one in ranked
    ]
    if point is not None:
        title += f"; precision, recall and F1 at a score above {point.threshold:g}"
        whole = ClassPoint(point.precision, point.recall, point.f1)
        objects = sum(one.boxes for one in result.by_class.values())
        every = ("all", _percent(result.map50), _percent(result.map50_95), *_rates(whole))
        rows.insert(0, (*every, str(objects)))
    columns = ("class", "AP@.5 %", "AP@.5:.95 %", "precision %", "recall %", "F1", "objects")
    show(title, columns, rows)
    pairs = () if point is None else point.confusion
    mixed = [o for o in pairs if None not in (o.truth, o.found) and o.truth != o.found]
    if mixed:
        named = ", ".join(f"{one.truth} as {one.found} ({one.count})" for one in mixed[:_MIXED])
        more = f" and {len(mixed) - _MIXED} other pairs" if len(mixed) > _MIXED else ""
        say(f"confused: {named}{more}")


def _rates(one: ClassPoint | None) -> tuple[str, str, str]:
    if one is None:
        return "-", "-", "-"
    precision = "-" if one.precision is None else _percent(one.precision)
    return precision, _percent(one.recall), f"{one.f1:.3f}"


def _print_left_out(result: EvaluateResult) -> None:
    for text in result.warnings:
        say(f"warning: {text}")
    for reason, number in result.dropped.items():
        say(f"{number} x {reason}")
    for text in result.skipped[:5]:
        say(f"skipped: {text}")
    if len(result.skipped) > 5:
        say(f"skipped: {len(result.skipped) - 5} more")
    if result.left_out:
        most = sorted(result.left_out.items(), key=lambda each: -each[1])
        named = ", ".join(f"{name} ({boxes})" for name, boxes in most[:_NAMED])
        rest = f" and {len(most) - _NAMED} more" if len(most) > _NAMED else ""
        say(f"classes that the model does not have: {named}{rest}")


def _percent(share: float) -> str:
    return f"{share * 100:.2f}"
