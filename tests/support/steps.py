"""Single steps of the way from a model to an engine, called as tests find it short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from calibration.recipe import IMAGES, CalibrationRecipe
from calibration.scales import SCENES, Calibration, measure_scales
from edge.data.datasets import open_dataset
from edge.files import to_plain
from export.engine.options import BuildOptions
from export.options import ExportOptions, SourceOptions
from export.pipeline import export_engine
from export.source import DEFAULT_MODEL

__all__ = ["exported", "flat_options", "scales"]


def scales(
    onnx: str | Path,
    data: str | Path = SCENES,
    *,
    images: int = IMAGES,
    method: str = "mse",
    equalise: bool = True,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Calibration:
    """Thresholds and gains alone, without correction of biases or rounding."""
    return measure_scales(
        onnx,
        open_dataset(data, limit=images),
        method=method,
        equalise=equalise,
        progress=progress,
        threads=threads,
    )


def flat_options(**flat: Any) -> ExportOptions:
    """Options of an export, given without nesting."""
    given = dict(flat)
    nested = {}
    for name, kind in (
        ("model", SourceOptions),
        ("recipe", CalibrationRecipe),
        ("build", BuildOptions),
    ):
        own = {one.name for one in fields(kind)} & set(given)
        nested[name] = kind(**{key: given.pop(key) for key in own})
    return ExportOptions(**given, **nested)


def exported(model: str | Path = DEFAULT_MODEL, **flat: Any) -> dict[str, Any]:
    """Export with `flat_options`; the result as `--json` writes it."""
    result: dict[str, Any] = to_plain(export_engine(model, flat_options(**flat)))
    return result
