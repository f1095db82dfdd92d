"""Milliseconds that a board would take, predicted, in place of those of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, prod
from pathlib import Path

from edge.compress.channels.cost import ConvShape
from edge.errors import CompressionError
from export.compress.stages import StageTimes
from export.estimate.estimate import (
    Estimate,
    EstimateOptions,
    estimate,
    kernel_time_ms,
    read_network,
)
from export.estimate.facts import board_named, read_fit
from export.estimate.kernels import Kernel

__all__ = ["BoardTimes"]

_SWISHES = ("SiLU", "Sigmoid", "Mish", "Hardswish", "GELU")


class BoardTimes:
    """A board in the precision of an engine, as `edge estimate` sees it.

    Raises:
        ArtifactError: an unknown board.
    """

    def __init__(self, name: str, precision: str) -> None:
        self.board, self.precision = board_named(name), precision
        self._constants = read_fit().constants

    def __str__(self) -> str:
        return f"{self.board.name} in {self.precision.upper()}"

    def convolution_ms(self, shape: ConvShape) -> float:
        """Return the milliseconds of one convolution with its activation."""
        return kernel_time_ms(_kernel(shape), self.board, self.precision, self._constants)

    def network(self, artifact: Path) -> Estimate:
        """Return the estimate of a whole network."""
        options = EstimateOptions(precision=(self.precision,))
        (found,) = estimate(read_network(artifact), [self.board.name], options)
        return found

    def times(self, artifacts: Sequence[Path]) -> StageTimes:
        """Return the likely milliseconds of networks; a prediction has no noise between them."""
        ms = tuple(self.network(path).likely_ms for path in artifacts)
        return StageTimes(ms, (0.0,) * len(ms))

    def check_reach(
        self,
        name: str,
        artifact: Path,
        shapes: Iterable[ConvShape],
        share: float,
        least: float,
    ) -> None:
        """Refuse a share of a network's time that no width of its convolutions gives.

        Args:
            name, artifact: the network's, and its ONNX file.
            shapes: its convolutions.
            share: of its milliseconds, the target.
            least: smallest share of a layer's channels.

        Raises:
            CompressionError: even the narrowest network takes longer; the text says how long.
        """
        found = self.network(artifact)
        saved = sum(
            self.convolution_ms(shape) - self.convolution_ms(_narrowest(shape, least))
            for shape in shapes
        )
        floor = 1 - saved / found.likely_ms
        if share <= floor:
            raise CompressionError(
                f"{name} takes {found.likely_ms:.2f} ms on {self}, and {share:.1%} of it is out of "
                f"reach: the narrowest layers would take {floor:.1%}, as "
                f"{found.shares['launch']:.0%} are launches of {len(found.layers)} kernels and the "
                "call, which fewer channels do not shorten; ask for less, or take a network with "
                "fewer layers"
            )


def _narrowest(shape: ConvShape, least: float) -> ConvShape:
    if shape.groups > 1:
        return shape
    # The channels of a picture are no layer's.
    channels = shape.channels if shape.channels <= 3 else ceil(shape.channels * least)
    return shape.resized(channels, max(2, ceil(shape.filters * least)))


def _kernel(shape: ConvShape) -> Kernel:
    top, left, bottom, right = shape.pads
    (height, width), (down, across) = shape.size_hw, shape.stride_hw
    pixels = ((shape.input_hw[0] + top + bottom - height) // down + 1) * (
        (shape.input_hw[1] + left + right - width) // across + 1
    )
    channels, filters = shape.channels // shape.groups, shape.filters // shape.groups
    weights = shape.filters * channels * height * width
    return Kernel(
        "conv" if shape.groups == 1 else "grouped",
        "",
        m=pixels,
        n=filters,
        k=channels * height * width,
        groups=shape.groups,
        channels=shape.channels,
        read=shape.channels * prod(shape.input_hw),
        written=shape.filters * pixels,
        weights=weights,
        swish=shape.activation in _SWISHES,
        quantizable=shape.filters > 1,
    )
