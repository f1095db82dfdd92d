"""`edge calibrate` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apps.charts.stability import stability_svg
from apps.commands.options import count, json_option, target
from apps.commands.terminal import show
from calibration.calibrate import SCENES, Calibration
from calibration.choose import Choice, choose_images
from calibration.compare import TableDiff, compare_tables
from calibration.stability import Stability, collect_groups, judge_stability
from calibration.table import CalibrationTable, read_table, write_table
from edge.artifact import read_manifest
from edge.data.datasets import open_dataset
from edge.data.distinct import Seen, pictures
from edge.data.items import Dataset
from edge.data.overlap import overlap, refuse_overlap
from edge.errors import CalibrationError
from edge.files import write_file, write_json
from edge.reporting import bar, say
from export.int8.recipe import Recipe, run_calibration, tell_skipped

__all__ = ["arguments", "calibrate_command", "diff_command", "recipe_options", "run"]


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """How scales are made; `edge export-engine` has the same."""
    add = parser.add_argument
    add("--images", type=count, default=200, metavar="N", help="calibration images (%(default)s)")
    add(
        "--method",
        choices=("mse", "percentile", "entropy", "minmax", "best"),
        default="mse",
        help="how a tensor's clipping threshold is chosen (%(default)s); best: every way is "
        "measured on images held back, which takes minutes",
    )
    add(
        "--no-equalise",
        action="store_true",
        help="leave the channels' ranges as they are (INT8 of depthwise networks suffers)",
    )
    add(
        "--no-bias-correction",
        action="store_true",
        help="leave the mean error of rounding in the biases",
    )
    add(
        "--adaround",
        action="store_true",
        help="round each weight as its layer's output wants it; kept if the heads gain (minutes)",
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge calibrate`."""
    add = parser.add_argument
    add("onnx", nargs="?", metavar="ONNX", help="NAME.fp32.onnx of export-engine")
    add("--data", metavar="DIR", help="pictures; left out: built-in scenes")
    recipe_options(parser)
    add("-o", "--output", type=target(".json"), metavar="F", help="the table (NAME.calib.json)")
    add("--fresh", action="store_true", help="measure even if the table there is up to date")
    add(
        "--choose",
        type=count,
        metavar="N",
        help="choose N pictures of --data, which may be a video or a camera here, by the ranges "
        "and classes they reach, and calibrate on them",
    )
    add("--pictures", metavar="DIR", help="where --choose puts them (NAME.calib)")
    add("--not-in", metavar="DIR", help="evaluation set, of which no picture may be used")
    add("--allow-overlap", action="store_true", help="use them all the same")
    add("--stability", action="store_true", help="how far the scales depend on the pictures")
    add("--svg", type=target(), metavar="F", help="draw that there")
    add("--diff", nargs=2, metavar=("A", "B"), help="what differs between two tables; no ONNX")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge calibrate`: 0; 2 on what the user can mend."""
    if args.diff:
        old, new = args.diff
        diff_command(old, new, json_path=args.json)
        return 0
    if args.onnx is None:
        raise CalibrationError("edge calibrate takes NAME.fp32.onnx, or --diff A B")
    recipe = Recipe(
        args.images,
        args.method,
        not args.no_equalise,
        not args.no_bias_correction,
        args.adaround,
    )
    calibrate_command(
        args.onnx,
        args.data,
        recipe=recipe,
        output=args.output,
        choose=args.choose,
        folder=args.pictures,
        not_in=args.not_in,
        allow_overlap=args.allow_overlap,
        stability=args.stability,
        svg=args.svg,
        fresh=args.fresh,
        json_path=args.json,
    )
    return 0


def calibrate_command(
    onnx: str | Path,
    data: str | Path | None = None,
    *,
    recipe: Recipe | None = None,
    output: str | Path | None = None,
    choose: int | None = None,
    folder: str | Path | None = None,
    not_in: str | Path | None = None,
    allow_overlap: bool = False,
    stability: bool = False,
    svg: str | Path | None = None,
    fresh: bool = False,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Write the calibration table of an FP32 ONNX file.

    Args:
        onnx: FP32 ONNX file of `export-engine`.
        data: images; with `choose` also a video or a camera; the built-in scenes where None.
        recipe: how scales are made.
        output: the table, by default `NAME.calib.json` beside the graph.
        choose: copy so many of the images to `folder` (`NAME.calib`) and calibrate on them.
        not_in: an evaluation set: images of it are refused, or not chosen.
        allow_overlap: calibrate on evaluation images all the same.
        stability: measure how far the scales depend on the images.
        svg: where to draw that.
        fresh: measure even if the table that is there was made from the same things.
        json_path: where to write the result too.

    Returns:
        `table` (its path), `method`, `images`, `amax`, `gain_db`, `head_db`, and `chosen` and
        `stability` where asked for.

    Raises:
        CalibrationError, DataError, CameraError, ArtifactError: one line each.
    """
    source = _fp32(onnx)
    stem = source.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(output) if output else source.with_name(f"{stem}.calib.json")
    evaluation = None if not_in is None else open_dataset(not_in)
    result: dict[str, Any] = {"table": str(target)}
    if choose is not None:
        folder = Path(folder) if folder else source.with_name(f"{stem}.calib")
        chosen = choose_images(source, data or SCENES, choose, folder, not_in=evaluation)
        _print_choice(chosen)
        data, result["chosen"] = folder, _choice_facts(chosen)
    recipe = recipe or Recipe()
    if evaluation is not None and not allow_overlap:
        _check(open_dataset(data or SCENES, limit=recipe.images), evaluation)
    made = run_calibration(source, data, recipe, None if fresh else target)
    write_table(made.table, target)
    _print_table(made, target)
    result |= _facts(made)
    if stability or svg is not None:
        dataset = open_dataset(data or SCENES, limit=recipe.images)
        result["stability"] = _stability(source, dataset, made.table, svg)
    write_json(result, json_path)
    return result


def _fp32(onnx: str | Path) -> Path:
    precision = read_manifest(onnx).precision
    if precision != "fp32":
        raise CalibrationError(f"{onnx}: {precision}; scales are measured on the FP32 file")
    return Path(onnx)


def _check(dataset: Dataset, evaluation: Dataset) -> None:
    """Before the work, not after it."""
    seen = Seen()
    for _ in pictures(dataset, seen):
        pass
    found = overlap(seen.hashes, evaluation, seen.digests)
    refuse_overlap(found, dataset.source, evaluation.source)


def _facts(made: Calibration) -> dict[str, Any]:
    table = made.table
    return {
        "key": table.key,
        "method": table.method,
        "recipe": list(table.recipe),
        "images": made.used,
        "skipped": list(made.skipped),
        "amax": dict(table.amax),
        "gain_db": dict(table.gain_db),
        "head_db": dict(table.head_db),
    }


def _print_table(made: Calibration, target: Path) -> None:
    table = made.table
    gains = dict(table.gain_db)
    rows = [(name, f"{amax:.5g}", _gain(gains.get(name))) for name, amax in table.amax]
    title = f"{target}: {table.method} over {made.used} images"
    show(title, ("tensor", "amax", "gain dB"), rows)
    if table.head_db:
        found = ((name, f"{value:.2f}") for name, value in table.head_db)
        show("heads on images held back", ("recipe", "signal to noise dB"), found)
    rounded = dict(table.rounding)
    if rounded:
        rows = [(name, f"{gains.get(name, 0):.2f}", "") for name in rounded]
        show("adaptive rounding", ("convolution", "gain dB"), [row[:2] for row in rows])


def _gain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _choice_facts(choice: Choice) -> dict[str, Any]:
    return {
        "folder": str(choice.folder),
        "candidates": choice.candidates,
        "duplicates": choice.duplicates,
        "evaluation": choice.evaluation,
        "images": list(choice.chosen),
        "skipped": list(choice.skipped),
        "coverage": vars(choice.coverage),
    }


def _print_choice(choice: Choice) -> None:
    covered = choice.coverage
    tell_skipped(choice.skipped)
    say(
        f"chose {len(choice.chosen)} of {choice.candidates} images into {choice.folder}; left out "
        f"{choice.duplicates} near-duplicates and {choice.evaluation} of the evaluation set; of "
        f"all the rest they reach {covered.ranges:.0%} of the ranges, {covered.classes:.0%} of the "
        f"classes' scores, likeness {covered.likeness:.2f}"
    )


def _stability(
    source: Path, dataset: Dataset, table: CalibrationTable, svg: str | Path | None
) -> dict[str, Any]:
    import numpy as np

    gains = {name: np.asarray(gain, np.float32) for name, gain in table.gains}
    method = table.method if table.method != "best" else "mse"
    with bar("stability") as advance:
        groups, sizes = collect_groups(source, dataset, gains, progress=advance)
    found = judge_stability(groups, sizes, method)
    _print_stability(found)
    if svg is not None:
        write_file(Path(svg), stability_svg(found).encode())
    return {
        "images": found.images,
        "enough": found.enough,
        "spread": found.spread,
        "curve": [vars(point) for point in found.curve],
    }


def _print_stability(found: Stability) -> None:
    rows = [(str(p.images), f"{p.shift:.1%}", f"{p.loss_db:.3f}") for p in found.curve]
    show(
        f"scales by the number of images, against those of all {found.images}",
        ("images", "scales differ by", "noise dB more"),
        rows,
    )
    worst = sorted(found.spread.items(), key=lambda pair: -pair[1])[:5]
    rows = [(name, f"{value:.1%}", "") for name, value in worst]
    show("least sure scales (bootstrap)", ("tensor", "amax ±"), [row[:2] for row in rows])
    if found.enough is None:
        say("more images still change the scales; give more")
    else:
        say(f"from {found.enough} images on, more of these no longer help")


def diff_command(
    old: str | Path, new: str | Path, json_path: str | Path | None = None
) -> TableDiff:
    """`edge calibrate --diff A B`: what differs between two tables."""
    found = compare_tables(read_table(old), read_table(new))
    show(f"{old} -> {new}", ("what", "old", "new"), found.facts)
    say(f"images: {found.common} in both, {found.added} added, {found.removed} removed")
    rows = [(c.tensor, _amax(c.old), _amax(c.new), _amax(c.ratio)) for c in found.tensors]
    show(f"{len(rows)} thresholds differ", ("tensor", "old", "new", "ratio"), rows)
    if found.noise_db:
        changes = ((name, f"{change:+.2f}") for name, change in found.noise_db)
        show("signal to noise", ("convolution", "change dB"), changes)
    write_json(_diff_facts(found), json_path)
    return found


def _amax(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"


def _diff_facts(found: TableDiff) -> dict[str, Any]:
    return {
        "facts": {what: {"old": old, "new": new} for what, old, new in found.facts},
        "images": {"common": found.common, "added": found.added, "removed": found.removed},
        "amax": {c.tensor: {"old": c.old, "new": c.new} for c in found.tensors},
        "noise_db": dict(found.noise_db),
    }
