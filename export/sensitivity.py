"""What each layer's quantization costs: alone, and as the only one left out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.table import CalibrationTable
from export.head_noise import decibel, heads_of, noise_share
from export.mixed import layer_names, write_mixed

__all__ = ["LayerSensitivity", "Sensitivities", "measure_sensitivity"]

Array = NDArray[np.float32]
Judge = Callable[[Path], float]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing one convolution does to the network.

    Attributes:
        name: of the convolution.
        own_db: signal to noise of its own output, its input being right; None where the table
            does not tell.
        alone_db: of the heads when only this layer is quantized.
        kept_db: of the heads when only this layer is kept in floating point.
        alone_share: noise power over signal power behind `alone_db`.
        alone_map50, kept_map50: mAP of the two; None without labelled images.
    """

    name: str
    own_db: float | None
    alone_db: float
    kept_db: float
    alone_share: float
    alone_map50: float | None = None
    kept_map50: float | None = None


@dataclass(frozen=True)
class Sensitivities:
    """All layers of a network, and the network as a whole.

    Attributes:
        layers: in the graph's order.
        int8_db: of the heads with every layer quantized.
        fp32_map50, int8_map50: mAP of the two ends; None without labelled images.
    """

    layers: tuple[LayerSensitivity, ...]
    int8_db: float
    fp32_map50: float | None = None
    int8_map50: float | None = None


def measure_sensitivity(
    source: str | Path,
    table: CalibrationTable,
    arrays: Sequence[Array],
    *,
    judge: Judge | None = None,
    kept: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sensitivities:
    """Quantize each convolution of `source` alone, then all but it, and look at the heads.

    Args:
        source: FP32 ONNX file of the table.
        arrays: network inputs (1, 3, H, W), better not those of the calibration.
        judge: mAP of an artifact.
        kept: False leaves the second half out; `kept_db` is then what is left when the noise of
            `alone_db` goes, taking noises for independent.
        progress: called with (layers done, of).

    Raises:
        CalibrationError, ArtifactError: as `write_int8`.
    """
    names, known = layer_names(source), dict(table.noise_db)
    reference = heads_of(source, arrays, threads)
    layers = []
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "candidate.onnx"

        def tried(floating: Sequence[str]) -> tuple[float, float | None]:
            write_mixed(source, table, target, dict.fromkeys(floating, "fp32"))
            share = noise_share(reference, heads_of(target, arrays, threads))
            return share, None if judge is None else judge(target)

        whole, whole_map = tried(())
        for done, name in enumerate(names):
            alone, alone_map = tried([other for other in names if other != name])
            without, kept_map = tried([name]) if kept else (max(whole - alone, 0.0), None)
            layers.append(
                LayerSensitivity(
                    name,
                    known.get(name),
                    decibel(alone),
                    decibel(without),
                    alone,
                    alone_map,
                    kept_map,
                )
            )
            if progress is not None:
                progress(done + 1, len(names))
    fp32_map = None if judge is None else judge(Path(source))
    return Sensitivities(tuple(layers), decibel(whole), fp32_map, whole_map)
