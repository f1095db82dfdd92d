"""Options of an export, from which the flags of `export-engine` are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from calibration.recipe import CalibrationRecipe
from edge.errors import ArtifactError
from edge.options import option, share
from export.engine.options import BuildOptions

__all__ = ["ExportOptions", "Precision", "SourceOptions", "height_width"]

Precision = Literal["fp32", "fp16", "int8"]


def height_width(text: str) -> tuple[int, int]:
    """Height and width in pixels, such as 288x512."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH, such as 288x512") from None
    return height, width


@dataclass(frozen=True)
class SourceOptions:
    """What the file of a model does not say.

    Attributes:
        weights: Darknet weights, where they do not lie beside the cfg
        names: class names, one on a line
        resize: how the pictures were resized in training; pjreddie's Darknet letterboxes them,
            AlexeyAB's stretches them
        random_weights: fill the network with random weights, whose speed is real and whose
            detections are not; every report says so
        seed: seed of the random weights
        hw: input height and width in pixels, in place of the model's own
    """

    weights: str | Path | None = option(None, metavar="F")
    names: str | Path | None = option(None, metavar="F")
    resize: Literal["letterbox", "stretch"] | None = None
    random_weights: bool = False
    seed: int = 0
    hw: tuple[int, int] | None = option(None, flag="--size", metavar="HxW", check=height_width)


@dataclass(frozen=True)
class ExportOptions:
    """How a model becomes an engine, with every file between.

    Attributes:
        precision: fp32, fp16 or int8; by default that of the file, or FP16
        model: what the file of the model does not say
        calib: calibration pictures, or a .calib.json of this model; left out, the built-in scenes
        recipe: how the INT8 scales are made
        keep: convolutions that stay out of INT8; first, heads or names, with commas between
        precision_map: keep the layers that an earlier search kept
        max_map_drop: mAP@.5 that INT8 may lose, such as 0.005; the layers that cost more stay in
            FP16
        fastest_on_cpu: with --max-map-drop, choose the mixture that is fastest on this CPU, for a
            network that will run on it; without it, and without a GPU here, the one with most
            layers in INT8
        accuracy_data: labelled pictures for --max-map-drop, the verdict and the score threshold
        verdict: do not compare INT8 with FP16 for a second or two to say which to ship
        build: how the engine is built
        dla: build for this core of a Jetson's DLA, counted from 0 (TensorRT 10.7 or older;
            JetPack 6 has 10.3)
        output_form: what the engine gives: raw heads, or rows, decoded in the graph, the best 300;
            less to copy and to decode on small boards
        output: folder for the files, which is made where it is missing
    """

    precision: Literal["fp32", "fp16", "int8"] | None = option(None, hidden=True)
    model: SourceOptions = SourceOptions()
    calib: str | Path | None = option(None, metavar="DIR")
    recipe: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    keep: tuple[str, ...] = option((), metavar="NAMES")
    precision_map: str | Path | None = option(None, metavar="F")
    max_map_drop: float | None = option(None, metavar="D", check=share)
    fastest_on_cpu: bool = False
    accuracy_data: str | Path | None = option(None, metavar="DIR")
    verdict: bool = True
    build: BuildOptions = field(default_factory=BuildOptions)
    dla: int | None = option(None, metavar="CORE")
    output_form: Literal["raw", "rows"] = "raw"
    output: str | Path = option("out", flag="-o --output", metavar="DIR")

    def __post_init__(self) -> None:
        if self.output_form == "rows" and self.dla is not None:
            raise ArtifactError("--output-form rows: a DLA does not sort; leave it out with --dla")
        if self.max_map_drop is None:
            return
        if self.keep or self.precision_map is not None:
            raise ArtifactError(
                "--max-map-drop chooses the layers itself; leave out --keep and --precision-map"
            )
        if self.precision != "int8":
            raise ArtifactError("--max-map-drop bounds what INT8 loses; add --int8")
