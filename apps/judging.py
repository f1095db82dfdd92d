"""INT8 beside FP16 on the target, right after they were made: the facts behind a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.frames import hold_frames
from apps.progress import bar
from apps.quick_timing import Quick, quick_ms
from apps.searching import judged
from apps.selection import Drop, Selection
from calibration.calibrate import SCENES, network_inputs
from calibration.table import CalibrationTable
from edge.artifact import read_manifest, sha256_of
from edge.errors import ArtifactError, BuildError, DeviceError, MissingDependency
from edge.runtime.backend import open_backend
from edge.runtime.device import driver_facts
from export.head_noise import decibel, heads_of, noise_share
from export.layer_cost import engine_layers
from export.quantize import write_half
from export.sensitivity import measure_sensitivity
from export.verdict import DROP, FLOOR_DB, Facts, Verdict, decide, int8_share, off_grid

__all__ = ["half_beside", "noisiest", "verdict_of"]

Array = NDArray[np.float32]
# From an FP16 graph to its engine; None where no engine can be built.
Builder = Callable[[Path], Path | None]
_NOISE_IMAGES, _FRAMES = 6, 4
_SECONDS = 0.8
# Layers are looked at one by one where the whole is as near to the floor as this.
_MARGIN_DB = 3.0


@dataclass(frozen=True)
class _Measured:
    """Times by precision, and what the engine's layers tell."""

    target: str
    times: dict[str, Quick]
    shares: tuple[float, float] | None = None
    reformats: tuple[int, int] | None = None


def half_beside(source: Path) -> Path | None:
    """The FP16 twin of an FP32 ONNX file, written where it is missing or stale.

    None where a weight lies beyond FP16's range.
    """
    target = source.with_name(source.name.replace(".fp32.onnx", ".fp16.onnx"))
    try:
        if read_manifest(target).parent_sha256 == sha256_of(source):
            return target
    except ArtifactError:
        pass
    try:
        write_half(source, target)
    except ArtifactError:
        return None
    return target


def verdict_of(
    source: Path,
    graph: Path,
    table: CalibrationTable,
    *,
    calib: str | Path | None = None,
    selection: Selection | None = None,
    budget: float | None = None,
    engine: Path | None = None,
    build: Builder | None = None,
    threads: int | None = None,
) -> Verdict:
    """Measure an INT8 or mixed graph beside FP16 and say which to ship.

    Args:
        source: the FP32 ONNX file that `graph` was made from.
        table: of `graph`.
        calib: pictures for noise and timing where there is no `selection`.
        selection: labelled images; with them accuracy is measured, else noise at the heads.
        budget: mAP that may be lost.
        engine: of `graph`; where its GPU is here, that is what is measured.
        build: makes the FP16 engine beside it.

    Raises:
        ArtifactError, DataError: as `open_backend` and `network_inputs`.
    """
    half = half_beside(source)
    arrays = _arrays(source, calib, selection)
    measured = _measure(source, graph, half, selection, engine, build, threads)
    head_db, noisy = noisiest(source, graph, table, arrays, threads)
    allowed = DROP if budget is None else budget
    drop = None if selection is None else judged(selection, source, graph, allowed)
    shares, reformats = measured.shares, measured.reformats
    return decide(
        Facts(
            target=measured.target,
            on_engine=shares is not None,
            engine_ms={name: round(one.engine_ms, 4) for name, one in measured.times.items()},
            pipeline_ms={name: round(one.pipeline_ms, 4) for name, one in measured.times.items()},
            head_db=round(head_db, 2),
            drop=None if drop is None else _rounded(drop),
            budget=budget,
            kept=tuple(_kept(graph)),
            noisy=noisy,
            int8_share=None if shares is None else round(shares[0], 4),
            reformat_share=None if shares is None else round(shares[1], 4),
            reformats=None if reformats is None else reformats[0],
            layers=None if reformats is None else reformats[1],
            off_grid=round(off_grid(source), 4),
        )
    )


def _rounded(drop: Drop) -> tuple[float, float, float]:
    loss, low, high = (round(value, 6) for value in drop.interval)
    return loss, low, high


def _kept(graph: Path) -> list[str]:
    kept: list[str] = json.loads(dict(read_manifest(graph).arguments).get("keep", "[]"))
    return kept


def _arrays(source: Path, calib: str | Path | None, selection: Selection | None) -> list[Array]:
    if selection is not None:
        return selection.arrays(read_manifest(source).spec.contract, _NOISE_IMAGES)
    data = SCENES if calib is None or Path(calib).is_file() else calib
    inputs = islice(network_inputs(source, data, _NOISE_IMAGES), _NOISE_IMAGES)
    return [array.copy() for _, array in inputs]


def noisiest(
    source: Path,
    graph: Path,
    table: CalibrationTable,
    arrays: Sequence[Array],
    threads: int | None = None,
) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Noise of a graph's heads in dB, and the layers that bring them under the floor.

    These are the fewest that must stay out of INT8 for the heads to come back to `FLOOR_DB`, each
    with the heads' dB when it alone is quantized; none where the heads are sound as they are.
    """
    share = noise_share(heads_of(source, arrays, threads), heads_of(graph, arrays, threads))
    if decibel(share) >= FLOOR_DB:
        return decibel(share), ()
    with bar("noise of each layer") as advance:
        found = measure_sensitivity(
            source, table, arrays, kept=False, threads=threads, progress=advance
        )
    ranked = sorted(found.layers, key=lambda layer: -layer.alone_share)
    left = sum(layer.alone_share for layer in ranked)
    named = []
    for layer in ranked:
        if decibel(left) >= FLOOR_DB + _MARGIN_DB:
            break
        named.append((layer.name, round(layer.alone_db, 2)))
        left -= layer.alone_share
    return decibel(share), tuple(named)


def _measure(
    source: Path,
    graph: Path,
    half: Path | None,
    selection: Selection | None,
    engine: Path | None,
    build: Builder | None,
    threads: int | None,
) -> _Measured:
    frames = hold_frames(None, _FRAMES)[0] if selection is None else selection.frames[:_FRAMES]
    why = "no TensorRT engine was measured"
    if engine is not None and driver_facts() is None:
        why = "no TensorRT engine was measured, for want of a GPU"
    elif engine is not None:
        try:
            return _on_engine(engine, half, build, frames)
        except (DeviceError, ArtifactError, MissingDependency, BuildError) as error:
            why = f"no TensorRT engine was measured: {' '.join(str(error).split())[:120]}"
    paths = {"int8": graph, "fp32": source} | ({} if half is None else {"fp16": half})
    times = quick_ms(list(paths.values()), frames, seconds=_SECONDS, threads=threads)
    name = times[source].backend
    return _Measured(f"{name}; {why}", {kind: times[path] for kind, path in paths.items()})


def _on_engine(
    engine: Path, half: Path | None, build: Builder | None, frames: Sequence[NDArray[np.uint8]]
) -> _Measured:
    rival = None if half is None or build is None else build(half)
    if rival is None:
        raise BuildError("no FP16 engine to compare with")
    with open_backend(engine) as backend:
        layer_ms: Mapping[str, float] = dict(backend.layer_times())  # type: ignore[attr-defined]
    times = quick_ms([engine, rival], frames, seconds=_SECONDS)
    layers, summary = engine_layers(engine)
    return _Measured(
        times[engine].backend,
        {"int8": times[engine], "fp16": times[rival]},
        int8_share(layer_ms, layers),
        (summary["reformats"], summary["layers"]),
    )
