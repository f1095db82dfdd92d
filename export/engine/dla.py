"""INT8 on the DLA of a Jetson with TensorRT 10.7 or older, which takes scales the old way.

There a DLA reads no Q/DQ graph. It gets the FP32 graph with the table's gains and biases, and a
scale for each tensor, not only for the inputs of convolutions: where one is missing, a layer leaves
INT8 and with it the DLA.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.collect import activations
from calibration.graph import Graph
from calibration.histogram import Histogram
from calibration.qdq import shared_scales
from calibration.scales import SCENES, calibration_inputs, network_inputs
from calibration.table import CalibrationTable
from calibration.threshold import METHODS, threshold
from edge.errors import ArtifactError, DataError
from edge.files import make_folder
from edge.reporting import phases, say
from export.engine.build import DlaRequest, EngineReport, build_engine
from export.engine.options import BuildOptions
from export.graph.writer import save_graph
from export.int8.float_graph import float_graph

__all__ = ["build_dla_engine", "check_dla_options", "dla_engine", "every_threshold"]

Array = NDArray[np.float32]
# These only move values, so input and output have one scale.
_MOVES = ("MaxPool", "Resize", "Slice")


def every_threshold(
    source: Graph | str | Path,
    table: CalibrationTable,
    arrays: Iterable[tuple[str, Array]],
    *,
    threads: int | None = None,
) -> dict[str, float]:
    """Return thresholds of all tensors of an FP32 file: the table's, or measured where it has none.

    Args:
        source: the FP32 ONNX file of the table.
        arrays: (name, network input) pairs; none: only what follows from the table.

    Raises:
        CalibrationError: the table belongs to another graph or contract, or an activation is not
            finite.
    """
    source = Graph.open(source)
    table.check(source.sha256, source.manifest.spec.contract.digest, str(source))
    model = source.model
    known = _carried(model, shared_scales(model, dict(table.amax)))
    missing = [n for node in model.graph.node for n in node.output if n not in known]
    gains = {name: np.asarray(gain, np.float32) for name, gain in table.gains}
    found = {name: Histogram() for name in missing}
    for _, values in activations(source, missing, arrays, threads, gains) if missing else ():
        for name, value in values:
            found[name].add(value)
    method = table.method if table.method in METHODS else "mse"
    measured = {name: threshold(one, method) for name, one in found.items() if one.peak > 0}
    return {**known, **measured}


def _carried(model: Any, amax: dict[str, float]) -> dict[str, float]:
    """Extend `amax` to tensors that hold the values of one of them in other places."""
    result = dict(amax)
    moves = [(n.input[0], n.output[0]) for n in model.graph.node if n.op_type in _MOVES]
    for here, there in [*moves, *((b, a) for a, b in reversed(moves))]:
        if here in result:
            result.setdefault(there, result[here])
    return result


def build_dla_engine(
    source: Graph | str | Path,
    table: CalibrationTable,
    target: str | Path,
    *,
    core: int = 0,
    arrays: Iterable[tuple[str, Array]] = (),
    workspace_mib: int | None = None,
) -> EngineReport:
    """Build an INT8 engine for a DLA, with FP16 and the GPU for what it cannot do.

    Beside `target`, its manifest and its layer report, the calibration cache is left as
    `NAME.engine.calib`.

    Args:
        source: the FP32 ONNX file of the table.
        target: the engine (`.engine`).
        core: of the DLA, from 0.
        arrays: (name, network input) pairs, some of the calibration images; without them tensors
            that no convolution reads have no scale, and their layers leave the DLA.
        workspace_mib: see `BuildOptions`.

    Returns:
        The report; `report.dla` says which layers left the DLA.

    Raises:
        ArtifactError: `target` cannot be written.
        BuildError: TensorRT is newer than 10.7 or TensorRT-RTX, has no such core, or refused.
        CalibrationError: as `every_threshold`.
        MissingDependency: no TensorRT here.
        ValueError: `core` is negative.
    """
    if core < 0:
        raise ValueError(f"core is {core}; the cores of a DLA count from 0")
    source, target = Graph.open(source), Path(target)
    amax = every_threshold(source, table, arrays)
    model = float_graph(source.model, table)
    options = BuildOptions("tensorrt", workspace_mib)
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix="edge-dla-") as folder, phases("building") as progress:
        graph = save_graph(model, source.manifest, Path(folder) / source.path.name)
        request = DlaRequest(core, amax, source)
        return build_engine(graph, target, options, progress=progress, dla=request)


# Enough for ranges of whole tensors, of which each image gives thousands of values.
_IMAGES = 32


def check_dla_options(
    core: int, precision: str | None, builder: str, kept: object, sparse: bool = False
) -> None:
    """Refuse options that a build for a DLA does not take.

    Raises:
        ArtifactError: names the option.
    """
    if core < 0:
        raise ArtifactError(f"--dla {core}: the cores count from 0")
    if precision != "int8":
        raise ArtifactError(
            "--dla builds in INT8, with FP16 for layers that have no INT8 form; add --int8"
        )
    if builder not in ("auto", "tensorrt"):
        raise ArtifactError(
            f"--dla takes TensorRT 10.7 or older on the Jetson itself, not --builder {builder}"
        )
    if sparse:
        raise ArtifactError("--sparse is for a GPU's tensor cores; leave it out with --dla")
    if kept:
        raise ArtifactError(
            "--dla takes one scale for every tensor and keeps no layer out of INT8; leave out "
            "--keep, --precision-map and --max-map-drop"
        )


def dla_engine(
    source: Graph,
    table: CalibrationTable,
    folder: Path,
    *,
    core: int,
    calib: str | Path | None = None,
    workspace_mib: int | None = None,
) -> EngineReport:
    """Build `folder/NAME.int8.dla.engine` from the FP32 file and its table.

    Args:
        calib: pictures for tensors that the table has no scale of, where it does not say what it
            was made from; a table or None takes the built-in scenes, and says so.

    Raises:
        BuildError, CalibrationError, DataError, MissingDependency: as `build_dla_engine`.
    """
    stem = source.path.name.removesuffix(".onnx").removesuffix(".fp32")
    target = folder / f"{stem}.int8.dla.engine"
    try:
        inputs = calibration_inputs(source, table, _IMAGES)
        arrays: Iterable[tuple[str, Array]] = [("a calibration picture", one) for one in inputs]
    except DataError as error:
        scenes = calib is None or str(calib).endswith(".json")
        if scenes:
            say(f"{error}: tensors without a scale are measured on the built-in scenes")
        arrays = network_inputs(source, SCENES if scenes or calib is None else calib, _IMAGES)
    return build_dla_engine(
        source, table, target, core=core, arrays=arrays, workspace_mib=workspace_mib
    )
