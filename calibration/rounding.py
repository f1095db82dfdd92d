"""Weights that are rounded away from their nearest level, as text that a table can carry."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.qdq import QMAX, convolutions
from edge.errors import CalibrationError
from edge.optional import require

__all__ = ["apply_rounding", "pack_steps", "unpack_steps"]

Steps = NDArray[np.int8]


def pack_steps(steps: Steps) -> str:
    """Return steps of -1, 0 and 1 as text: zlib (RFC 1950) of their bytes, base64 (RFC 4648)."""
    return base64.b64encode(zlib.compress(np.asarray(steps, np.int8).tobytes(), 9)).decode()


def unpack_steps(text: str, shape: tuple[int, ...]) -> Steps:
    """Return what `pack_steps` packed, as an array of `shape`.

    Raises:
        ValueError: damaged, of another shape, or with other steps.
    """
    count = int(np.prod(shape))
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), count + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"damaged: {error}") from error
    steps = np.frombuffer(data, np.int8)
    if steps.size != count:
        raise ValueError(f"its size is not the {count} of the weights {shape}")
    if np.abs(steps.astype(np.int16)).max(initial=0) > 1:
        raise ValueError("a step is neither -1, 0 nor 1")
    return steps.reshape(shape)


def apply_rounding(quantized: Any, rounding: Mapping[str, str]) -> None:
    """Move the INT8 weights of a Q/DQ `ModelProto` by the steps of `rounding`, in place.

    Args:
        rounding: by convolution; those that are not quantized are passed over.

    Raises:
        CalibrationError: the steps do not fit the weights (names the convolution).
    """
    numpy_helper = require("onnx.numpy_helper")
    constants = {initializer.name: initializer for initializer in quantized.graph.initializer}
    for node in convolutions(quantized):
        levels = constants.get(node.input[1].removesuffix(".dequantized") + ".quantized")
        if node.name not in rounding or levels is None:
            continue
        value = numpy_helper.to_array(levels)
        try:
            steps = unpack_steps(rounding[node.name], value.shape)
        except ValueError as error:
            raise CalibrationError(
                f"{node.name}: the rounding of its weights in the table: {error}; calibrate again"
            ) from error
        moved = np.clip(value.astype(np.int16) + steps, -QMAX, QMAX).astype(np.int8)
        levels.CopyFrom(numpy_helper.from_array(moved, levels.name))
