"""Write the calibration table of a graph: what `edge calibrate` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.choose import ChosenPictures, choose_images
from calibration.graph import Graph
from calibration.pipeline import calibrate
from calibration.recipe import TableOptions
from calibration.scales import SCENES
from calibration.stability import Stability, measure_stability
from calibration.table import CalibrationTable, write_table
from edge.data.datasets import open_dataset
from edge.data.distinct import Seen, pictures
from edge.data.items import Dataset
from edge.data.overlap import overlap, refuse_overlap
from edge.errors import CalibrationError
from edge.reporting import bar

__all__ = ["MadeTable", "make_table"]


@dataclass(frozen=True)
class MadeTable:
    """A table that was written, and what it was made from.

    Attributes:
        path: of the table.
        table: its content.
        used: number of pictures.
        skipped: a line for each picture that cannot be used.
        chosen: the choice of pictures, where one was asked for.
        stability: of the scales, where it was asked for.
    """

    path: Path
    table: CalibrationTable
    used: int
    skipped: tuple[str, ...]
    chosen: ChosenPictures | None = None
    stability: Stability | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as `edge calibrate --json` writes it."""
        table = self.table
        result: dict[str, Any] = {"table": str(self.path)}
        if self.chosen is not None:
            result["chosen"] = self.chosen.to_json()
        result |= {
            "key": table.key,
            "method": table.method,
            "recipe": list(table.recipe),
            "images": self.used,
            "skipped": list(self.skipped),
            "amax": dict(table.amax),
            "gain_db": dict(table.gain_db),
            "head_db": dict(table.head_db),
        }
        if self.stability is not None:
            result["stability"] = self.stability.to_json()
        return result


def make_table(onnx: Graph | str | Path, options: TableOptions | None = None) -> MadeTable:
    """Calibrate an FP32 graph and write its table.

    Raises:
        CalibrationError, DataError, CameraError, ArtifactError: one line each.
    """
    graph, options = Graph.open(onnx), options or TableOptions()
    if graph.manifest.precision != "fp32":
        raise CalibrationError(
            f"{graph}: {graph.manifest.precision}; scales are measured on the FP32 file"
        )
    stem = graph.path.name.removesuffix(".onnx").removesuffix(".fp32")
    target = Path(options.output or graph.path.with_name(f"{stem}.calib.json"))
    evaluation = None if options.not_in is None else open_dataset(options.not_in)
    data, chosen = options.data, None
    if options.choose is not None:
        folder = Path(options.pictures or graph.path.with_name(f"{stem}.calib"))
        chosen = choose_images(graph, data or SCENES, options.choose, folder, not_in=evaluation)
        data = str(folder)
    if evaluation is not None and not options.allow_overlap:
        _refuse_evaluation_pictures(
            open_dataset(data or SCENES, limit=options.recipe.images), evaluation
        )
    made = calibrate(graph, data, options.recipe, known=None if options.fresh else target)
    write_table(made.table, target)
    stability = None
    if options.stability:
        dataset = open_dataset(data or SCENES, limit=options.recipe.images)
        with bar("stability") as advance:
            stability = measure_stability(graph, dataset, made.table, progress=advance)
    return MadeTable(target, made.table, made.used, made.skipped, chosen, stability)


def _refuse_evaluation_pictures(dataset: Dataset, evaluation: Dataset) -> None:
    """Refuse pictures of the evaluation set before the work begins."""
    seen = Seen()
    for _ in pictures(dataset, seen):
        pass
    found = overlap(seen.hashes, evaluation, seen.digests)
    refuse_overlap(found, dataset.source, evaluation.source)
