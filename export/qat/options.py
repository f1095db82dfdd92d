"""Options and result of `edge qat`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.options import count, option, positive

__all__ = ["QatOptions", "QatResult"]


@dataclass(frozen=True)
class QatOptions:
    """How a network is trained for INT8.

    Attributes:
        images: use at most this many pictures, spread evenly; one in eight is held back to measure
            the gain
        table: start from the scales of this NAME.calib.json; without it calibrate on the pictures
        steps: number of optimizer steps
        batch: pictures in each step
        rate: highest learning rate, in steps of a weight's INT8 scale; lower it if INT8 gets worse
        calibrated_scales: keep the scales of the table and train only weights and biases
        labels: learn from the pictures' boxes, as edge train does, in place of the FP32 network's
            outputs; needs --val
        val: labelled pictures on which to measure mAP of FP32, INT8 before and INT8 after
        allow_overlap: measure although pictures of --val are, or look like, pictures of --data
        keep: convolutions that stay out of INT8, with commas between
        resize: how frames are fitted into the input, where the model's file does not say
        seed: seed of the order of the pictures
        output: folder for the files
    """

    images: int = option(256, metavar="N", check=count)
    table: str | Path | None = option(None, metavar="F")
    steps: int = option(1000, metavar="N", check=count)
    batch: int = option(4, metavar="N", check=count)
    rate: float = option(0.01, metavar="R", check=positive)
    calibrated_scales: bool = False
    labels: bool = False
    val: str | Path | None = option(None, metavar="DIR")
    allow_overlap: bool = False
    keep: tuple[str, ...] = option((), metavar="NAMES")
    resize: Literal["letterbox", "stretch"] | None = None
    seed: int = 0
    output: str | Path = option("out", flag="-o --output", metavar="DIR")

    def __post_init__(self) -> None:
        if self.labels and self.val is None:
            raise ValueError("learning from boxes changes the heads; to judge it give --val FOLDER")


@dataclass(frozen=True)
class QatResult:
    """What `edge qat` made.

    Attributes:
        model: what was trained.
        files: path of each file, by kind.
        images: number of pictures that were learned from.
        held: number of pictures that were held back.
        steps: number of optimizer steps.
        ptq_db, qat_db: signal to noise of the raw heads against the FP32 network's, in dB, on the
            pictures held back: of the calibrated INT8 network, and of the trained one.
        map50: mAP@.5 on `val`, 0..1, of fp32, ptq and qat; None without it.
        better: whether INT8 gained, by mAP where it was measured, else by dB.
        seconds: duration of the whole.
    """

    model: str
    files: dict[str, str]
    images: int
    held: int
    steps: int
    ptq_db: float
    qat_db: float
    map50: dict[str, float] | None
    better: bool
    seconds: float
