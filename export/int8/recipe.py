"""From calibration images to a table: thresholds, bias correction, adaptive rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.calibrate import IMAGES, SCENES, Calibration, calibrate_dataset, inputs_of
from calibration.table import CalibrationTable, read_table
from edge import __version__
from edge.artifact import read_manifest
from edge.built_in import OF_SCENES
from edge.data.datasets import open_dataset
from edge.data.distinct import Seen, pictures
from edge.data.items import Dataset, thin
from edge.errors import CalibrationError
from edge.files import sha256_of
from edge.reporting import bar, say
from export.int8.adaround import round_if_better
from export.int8.best import calibrate_best
from export.int8.correction import correct_bias

__all__ = ["METHODS", "Recipe", "known_table", "run_calibration", "tell_skipped"]

METHODS = ("mse", "percentile", "entropy", "minmax", "best")
_FEW_IMAGES = 32
# Each image gives thousands of pixels to a channel's mean, so few serve.
_BIAS_IMAGES = 32


@dataclass(frozen=True)
class Recipe:
    """How scales are made: see `export_engine`."""

    images: int = IMAGES
    method: str = "mse"
    equalise: bool = True
    bias_correction: bool = True
    adaround: bool = False

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done besides the thresholds, as a table names it."""
        named = (
            ("equalise", self.equalise),
            ("bias", self.bias_correction),
            ("adaround", self.adaround),
        )
        return tuple(name for name, wanted in named if wanted)


def run_calibration(
    source: Path, calib: str | Path | None, recipe: Recipe, known: Path | None = None
) -> Calibration:
    """Calibrate with a progress bar, and say on stderr what a user should know of the set.

    Args:
        source: the FP32 ONNX file.
        calib: images; the built-in scenes where None.
        known: a table that is used as it is where it was made from the same graph, images and
            recipe by the same version; the histograms are empty then.

    Raises:
        CalibrationError, DataError: as `calibrate` and `calibrate_best`.
    """
    spec = read_manifest(source).spec
    if calib is None and spec.name not in OF_SCENES:
        say(
            f"calibrating {spec.name} on the built-in scenes: its scales will fit them, not your "
            "camera; give its own pictures with --calib FOLDER"
        )
    dataset = open_dataset(calib or SCENES, limit=recipe.images)
    table = known_table(known, source, dataset, recipe) if known else None
    if table is not None:
        say(f"{known}: up to date, nothing to measure (edge calibrate --fresh measures again)")
        return Calibration(table, {}, len(table.images), ())
    made = _measured(source, dataset, recipe)
    _tell(made)
    return replace(made, table=replace(made.table, recipe=recipe.steps))


def _measured(source: Path, dataset: Dataset, recipe: Recipe) -> Calibration:
    with bar("calibrating") as advance:
        if recipe.method == "best":
            found = calibrate_best(
                source,
                dataset,
                equalise=recipe.equalise,
                bias=recipe.bias_correction,
                progress=advance,
            )
            made = found.calibration
            say(f"best on the images held back: {found.best}, {found.decibel[found.best]:.2f} dB")
        else:
            made = calibrate_dataset(
                source,
                dataset,
                method=recipe.method,
                equalise=recipe.equalise,
                progress=advance,
            )
    if recipe.bias_correction:
        few = replace(dataset, items=tuple(thin(dataset.items, _BIAS_IMAGES)))
        inputs = inputs_of(few, read_manifest(source).spec.contract)
        made = replace(made, table=correct_bias(source, made.table, inputs))
    if recipe.adaround:
        made = replace(made, table=_rounded(source, made.table, dataset))
    return made


def _rounded(source: Path, table: CalibrationTable, dataset: Dataset) -> CalibrationTable:
    with bar("rounding weights") as advance:
        found = round_if_better(source, table, dataset, progress=advance)
    before, after = dict(found.head_db)["nearest"], dict(found.head_db)["adaround"]
    kept = "kept" if found.rounding else "not kept"
    say(f"adaptive rounding: heads {before:.2f} dB before, {after:.2f} dB with it; {kept}")
    return found


def _tell(made: Calibration) -> None:
    tell_skipped(made.skipped)
    if made.used < _FEW_IMAGES:
        say(f"calibrated on {made.used} images only; {IMAGES} of all conditions are better")


def tell_skipped(skipped: Sequence[str]) -> None:
    """Say which pictures cannot be used, the first five by name."""
    for text in skipped[:5]:
        say(f"skipped: {text}")
    if len(skipped) > 5:
        say(f"skipped: {len(skipped) - 5} more")


def known_table(
    path: Path, source: Path, dataset: Dataset, recipe: Recipe
) -> CalibrationTable | None:
    """The table at `path`, if it is what `recipe` over `dataset` would give; else None."""
    try:
        table = read_table(path)
    except CalibrationError:
        return None
    asked = CalibrationTable(
        amax=(),
        method=recipe.method,
        graph_sha256=sha256_of(source),
        contract_digest=read_manifest(source).spec.contract.digest,
        images=table.images,
        recipe=recipe.steps,
        made_by=f"edge {__version__}",
    )
    # Images are decoded only where all else is the same.
    if asked.key != table.key or list(table.images) != _digests(dataset):
        return None
    return table


def _digests(dataset: Dataset) -> Sequence[str]:
    seen = Seen()
    for _ in pictures(dataset, seen):
        pass
    return sorted(seen.digests)
