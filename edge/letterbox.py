"""The geometry of resizing, forward and back; arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.spec import InputContract

__all__ = ["Letterbox"]


@dataclass(frozen=True)
class Letterbox:
    """Where a source image of `source_hw` lies inside a network input of `input_hw`.

    `resized_hw` is the size of the image inside the input, `pad_xy` the border left and above.
    `scale_xy` is resized / source; a letterbox has (nearly, by whole pixels) the same for both, and
    exactly `ratio` where the contract scales boxes so.
    """

    source_hw: tuple[int, int]
    input_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    pad_xy: tuple[int, int]
    ratio: float | None = None

    @staticmethod
    def fit(source_hw: tuple[int, int], contract: InputContract) -> Letterbox:
        """Place an image of `source_hw` (height, width) by the contract's `resize`."""
        height, width = source_hw
        if height < 1 or width < 1:
            raise ValueError(f"an image of {width}x{height} pixels cannot be resized")
        if contract.resize == "stretch":
            return Letterbox(source_hw, contract.hw, contract.hw, (0, 0))
        into_h, into_w = contract.hw
        # Integer arithmetic as in Darknet's letterbox_image: the tight side fills exactly.
        nearest = contract.rounding == "nearest"
        ratio = None
        if contract.scaling == "ratio":
            # In floats, as YOLOX and ultralytics do: the tight side may end a pixel short.
            ratio = min(into_h / height, into_w / width)
            whole = round if nearest else int
            resized = (max(1, whole(height * ratio)), max(1, whole(width * ratio)))
        elif into_w * height < into_h * width:
            # Twice the fraction plus one half rounds to the nearest.
            resized = (max(1, (2 * height * into_w + nearest * width) // (2 * width)), into_w)
        else:
            resized = (into_h, max(1, (2 * width * into_h + nearest * height) // (2 * height)))
        pad = ((into_w - resized[1]) // 2, (into_h - resized[0]) // 2)
        if contract.placement == "top left":
            pad = (0, 0)
        return Letterbox(source_hw, contract.hw, resized, pad, ratio)

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Input pixels per source pixel, across and down."""
        if self.ratio is not None:
            return self.ratio, self.ratio
        return (
            self.resized_hw[1] / self.source_hw[1],
            self.resized_hw[0] / self.source_hw[0],
        )

    def to_input(self, xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Boxes (N, 4) from source pixels to input pixels."""
        return np.asarray(xyxy, np.float64) * (self.scale_xy * 2) + self.pad_xy * 2

    def to_source(self, xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Boxes (N, 4) from input pixels to source pixels: the inverse of `to_input`."""
        return (np.asarray(xyxy, np.float64) - self.pad_xy * 2) / (self.scale_xy * 2)
