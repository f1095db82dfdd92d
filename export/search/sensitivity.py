"""What each layer's quantization costs: alone, and as the only one left out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.calibrate import network_inputs
from calibration.table import CalibrationTable, read_table
from edge.artifact import read_manifest
from edge.data.datasets import open_dataset
from edge.files import sha256_of, write_json
from edge.measure.noise import decibel, heads_of, noise_share
from edge.measure.selection import Selection
from edge.reporting import bar, say
from export.int8.mixed import layer_names, write_mixed

__all__ = ["LayerSensitivity", "Sensitivities", "measure_sensitivity", "sensitivity"]

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


_NOISE_IMAGES = 8


def sensitivity(
    onnx: str | Path,
    table: str | Path,
    data: str | Path,
    *,
    images: int = 50,
    with_map: bool = True,
    threads: int | None = None,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Quantize each convolution alone, then every one but it; noise at the heads, and mAP.

    Args:
        onnx: FP32 ONNX file of the table.
        data: pictures, better not those of the calibration; mAP needs labels.
        images: for mAP, at most so many, spread evenly; noise needs few.
        with_map: False measures noise alone.
        plot: SVG file of the layers' noise.

    Returns:
        `model`, `data`, `images` (0 without mAP), `int8_db`, `fp32_map50`, `int8_map50`, `layers`
        in the graph's order: `name`, `own_db`, `alone_db`, `kept_db`, `alone_map50`, `kept_map50`.

    Raises:
        ArtifactError, CalibrationError: as `write_int8`, before anything is run.
        DataError: nothing to read there.
    """
    source, calibrated = Path(onnx), read_table(table)
    spec = read_manifest(source).spec
    calibrated.check(sha256_of(source), spec.contract.digest, str(table))
    selection = _selection(data, spec.classes, images, threads) if with_map else None
    arrays = _arrays(source, data)
    with bar("layers") as advance:
        found = measure_sensitivity(
            source,
            calibrated,
            arrays,
            judge=None if selection is None else selection.map50,
            threads=threads,
            progress=advance,
        )
    result = {
        "model": spec.name,
        "data": str(data),
        "images": 0 if selection is None else len(selection.frames),
        "noise_images": len(arrays),
        **{key: value for key, value in asdict(found).items() if key != "layers"},
        "layers": [asdict(layer) for layer in found.layers],
    }
    write_json(result, json_path)
    return result


def _selection(
    data: str | Path, classes: Sequence[str], images: int, threads: int | None
) -> Selection | None:
    """Labelled images, or None where there are only pictures."""
    if open_dataset(data, classes, 1).kind == "images":
        say(f"{data}: pictures without labels; noise only")
        return None
    return Selection.open(data, classes, images, threads)


def _arrays(source: Path, data: str | Path) -> list[NDArray[np.float32]]:
    return [array.copy() for _, array in network_inputs(source, data, _NOISE_IMAGES)]
