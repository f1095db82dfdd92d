"""What each layer's quantization costs: alone, and as the only one left out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.graph import Graph
from calibration.scales import network_inputs
from calibration.table import CalibrationTable, read_table
from edge.data.datasets import open_dataset
from edge.measure.noise import decibel, heads_of, noise_share
from edge.measure.selection import Selection
from edge.options import count, option
from edge.reporting import bar, say
from export.int8.precision_map import layer_names
from export.int8.quantize import write_mixed

__all__ = [
    "LayerSensitivity",
    "Sensitivities",
    "SensitivityOptions",
    "SensitivityResult",
    "measure_sensitivity",
    "sensitivity",
]

Array = NDArray[np.float32]
MeasureMap = Callable[[Graph], float]
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
    source: Graph | str | Path,
    table: CalibrationTable,
    arrays: Sequence[Array],
    *,
    measure_map: MeasureMap | None = None,
    kept: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sensitivities:
    """Quantize each convolution of `source` alone, then all but it, and look at the heads.

    Args:
        source: FP32 ONNX file of the table.
        arrays: network inputs (1, 3, H, W), better not those of the calibration.
        measure_map: measures the mAP of a graph.
        kept: False leaves the second half out; `kept_db` is then what is left when the noise of
            `alone_db` goes, taking noises for independent.
        progress: called with (layers done, of).

    Raises:
        CalibrationError, ArtifactError: as `write_int8`.
    """
    source = Graph.open(source)
    names, known = layer_names(source), dict(table.noise_db)
    reference = heads_of(source, arrays, threads)
    layers = []
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "candidate.onnx"

        def tried(floating: Sequence[str]) -> tuple[float, float | None]:
            graph = write_mixed(source, table, target, dict.fromkeys(floating, "fp32"))
            share = noise_share(reference, heads_of(graph, arrays, threads))
            return share, None if measure_map is None else measure_map(graph)

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
    fp32_map = None if measure_map is None else measure_map(source)
    return Sensitivities(tuple(layers), decibel(whole), fp32_map, whole_map)


_NOISE_IMAGES = 8


@dataclass(frozen=True)
class SensitivityOptions:
    """What `edge sensitivity` takes besides the graph, its table and pictures.

    Attributes:
        images: measure mAP on at most this many pictures, spread evenly; noise needs few
        with_map: measure noise alone, which takes seconds
        threads: CPU threads of onnxruntime; left out, every core
    """

    images: int = option(50, metavar="N", check=count)
    with_map: bool = option(True, flag="--no-map")
    threads: int | None = option(None, metavar="N", check=count)


@dataclass(frozen=True)
class SensitivityResult:
    """What quantizing each layer costs, and on which pictures that was measured.

    Attributes:
        model: its name.
        data: the pictures.
        images: how many mAP was measured on; 0 without mAP.
        noise_images: how many noise was measured on.
        measured: the layers.
    """

    model: str
    data: str
    images: int
    noise_images: int
    measured: Sensitivities

    def to_json(self) -> dict[str, Any]:
        """The result as `edge sensitivity --json` writes it."""
        return {
            "model": self.model,
            "data": self.data,
            "images": self.images,
            "noise_images": self.noise_images,
            **asdict(self.measured),
        }


def sensitivity(
    onnx: Graph | str | Path,
    table: CalibrationTable | str | Path,
    data: str | Path,
    options: SensitivityOptions | None = None,
) -> SensitivityResult:
    """Quantize each convolution alone, then every one but it; measure noise and mAP.

    Args:
        onnx: FP32 ONNX file of the table.
        table: a table, or its file.
        data: pictures, better not those of the calibration; mAP needs labels.

    Raises:
        ArtifactError, CalibrationError: as `write_mixed`, before anything is run.
        DataError: nothing to read there.
    """
    source, options = Graph.open(onnx), options or SensitivityOptions()
    named = "the table" if isinstance(table, CalibrationTable) else str(table)
    scales = table if isinstance(table, CalibrationTable) else read_table(table)
    spec = source.manifest.spec
    scales.check(source.sha256, spec.contract.digest, named)
    selection = _selection(data, spec.classes, options) if options.with_map else None
    arrays = [array.copy() for _, array in network_inputs(source, data, _NOISE_IMAGES)]
    with bar("layers") as advance:
        measured = measure_sensitivity(
            source,
            scales,
            arrays,
            measure_map=None if selection is None else selection.map50,
            threads=options.threads,
            progress=advance,
        )
    images = 0 if selection is None else len(selection.frames)
    return SensitivityResult(spec.name, str(data), images, len(arrays), measured)


def _selection(
    data: str | Path, classes: Sequence[str], options: SensitivityOptions
) -> Selection | None:
    """Labelled pictures, or None where there are only pictures."""
    if open_dataset(data, classes, 1).kind == "images":
        say(f"{data}: pictures without labels; noise only")
        return None
    return Selection.open(data, classes, options.images, options.threads)
