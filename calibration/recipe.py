"""How the INT8 scales of a graph are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.options import count, option

__all__ = ["IMAGES", "METHODS", "CalibrationRecipe", "Method"]

# What the README's table of INT8 accuracy was measured with.
IMAGES = 200
Method = Literal["mse", "percentile", "entropy", "minmax", "best"]
METHODS: tuple[Method, ...] = ("mse", "percentile", "entropy", "minmax", "best")


@dataclass(frozen=True)
class CalibrationRecipe:
    """How the INT8 scales of a graph are made.

    Attributes:
        images: calibrate on at most this many pictures, spread evenly over the set
        method: how the clipping threshold of each tensor is chosen; best measures every way on
            pictures held back and keeps the one with the least noise, which takes minutes
        equalise: leave the ranges of channels as they are instead of making them equal first;
            networks with depthwise convolutions lose accuracy by it
        bias_correction: leave the mean error of rounding in the biases
        adaround: round each weight up or down as the output of its layer needs it, and keep that
            only if the heads gain; takes minutes
    """

    images: int = option(IMAGES, metavar="N", check=count)
    method: Method = "mse"
    equalise: bool = True
    bias_correction: bool = True
    adaround: bool = False

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images is {self.images}; it takes a positive number")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; known: {', '.join(METHODS)}")

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done besides choosing thresholds, by the names that a table records."""
        named = (
            ("equalise", self.equalise),
            ("bias", self.bias_correction),
            ("adaround", self.adaround),
        )
        return tuple(name for name, wanted in named if wanted)


@dataclass(frozen=True)
class TableOptions:
    """What `edge calibrate` takes besides the graph.

    Attributes:
        data: pictures to calibrate on; with --choose also a video or a camera. Left out, the
            built-in scenes
        recipe: how the scales are made
        output: the table to write (NAME.calib.json beside the graph)
        fresh: measure even if the table that is there is up to date
        choose: choose N pictures of --data by the ranges and classes they reach, and calibrate on
            them
        pictures: folder that takes the pictures of --choose (NAME.calib beside the graph)
        not_in: evaluation set, of which no picture may be used
        allow_overlap: use pictures of the evaluation set all the same
        stability: measure how far the scales depend on the pictures, and whether more would help
    """

    data: str | Path | None = option(None, metavar="DIR")
    recipe: CalibrationRecipe = CalibrationRecipe()
    output: str | Path | None = option(None, hidden=True)
    fresh: bool = False
    choose: int | None = option(None, metavar="N", check=count)
    pictures: str | Path | None = option(None, metavar="DIR")
    not_in: str | Path | None = option(None, metavar="DIR")
    allow_overlap: bool = False
    stability: bool = False
