"""INT8 beside FP16 on the target, right after they were made: the facts behind a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.graph import Graph
from edge.errors import ArtifactError, BuildError, DeviceError, MissingDependency
from edge.measure.frames import hold_frames
from edge.measure.turns import Quick, quick_ms
from edge.runtime.backend import open_backend
from edge.runtime.device import driver_facts
from export.int8.quantize import write_half
from export.search.layer_cost import engine_layers
from export.search.loss import Loss
from export.search.verdict import Facts, Verdict, decide, int8_share

__all__ = ["half_beside", "half_twin", "verdict_of"]

Frames = Sequence[NDArray[np.uint8]]
# From a graph to its engine; None where no engine can be built.
Builder = Callable[[Graph], Path | None]
_FRAMES = 4
_SECONDS = 2.0


@dataclass(frozen=True)
class _Timed:
    """Times by precision, and what the layers of the engine tell."""

    target: str
    times: dict[str, Quick]
    shares: tuple[float, float] | None = None
    reformats: tuple[int, int] | None = None


def half_beside(source: Graph) -> Graph | None:
    """Return the FP16 twin of an FP32 graph, written where it is missing or stale.

    None where a weight lies beyond FP16's range.
    """
    name = source.path.name.replace(".fp32.onnx", ".fp16.onnx")
    twin = Graph(source.path.with_name(name))
    if _parent(twin) == source.sha256:
        return twin
    try:
        return write_half(source, twin.path)
    except ArtifactError:
        return None


def half_twin(graph: Graph) -> Graph | None:
    """Return the FP16 file beside a quantized one, where both come from the same FP32 file.

    It takes no package that a device does not have.
    """
    stem = graph.path.name.removesuffix(".onnx").removesuffix(".int8").removesuffix(".mixed")
    half = Graph(graph.path.with_name(f"{stem}.fp16.onnx"))
    parent = _parent(half)
    return half if parent is not None and parent == _parent(graph) else None


def _parent(graph: Graph) -> str | None:
    try:
        return graph.manifest.parent_sha256
    except ArtifactError:
        return None


def verdict_of(
    graph: Graph,
    half: Graph | None,
    loss: Loss,
    *,
    source: Graph | None = None,
    frames: Frames = (),
    engine: Path | None = None,
    build: Builder | None = None,
    threads: int | None = None,
) -> Verdict:
    """Time an INT8 or mixed graph beside FP16 and return which to ship, given what INT8 loses.

    Args:
        half: FP16 twin of `graph`.
        loss: what `graph` loses against FP32.
        source: its FP32 graph, a further rival on a CPU.
        frames: pictures to time on; by default of the built-in world.
        engine: engine of `graph`; where its GPU is here, that is what is measured.
        build: builds the FP16 engine beside it.

    Raises:
        ArtifactError: as `open_backend`; or there is nothing to compare with.
    """
    shown = list(frames[:_FRAMES]) or hold_frames(None, _FRAMES)[0]
    measured = _measure(graph, half, source, shown, engine, build, threads)
    shares, reformats = measured.shares, measured.reformats
    return decide(
        Facts(
            target=measured.target,
            on_engine=shares is not None,
            engine_ms={name: round(one.engine_ms, 4) for name, one in measured.times.items()},
            pipeline_ms={name: round(one.pipeline_ms, 4) for name, one in measured.times.items()},
            unsure={name: one.unsure for name, one in measured.times.items() if name != "int8"},
            disturbed=measured.times["int8"].disturbed,
            kept=tuple(_kept(graph)),
            int8_share=None if shares is None else round(shares[0], 4),
            reformat_share=None if shares is None else round(shares[1], 4),
            reformats=None if reformats is None else reformats[0],
            layers=None if reformats is None else reformats[1],
            **asdict(loss),
        )
    )


def _kept(graph: Graph) -> list[str]:
    return graph.manifest.argument("keep", list[str]) or []


def _measure(
    graph: Graph,
    half: Graph | None,
    source: Graph | None,
    frames: Frames,
    engine: Path | None,
    build: Builder | None,
    threads: int | None,
) -> _Timed:
    rivals = {kind: one for kind, one in (("fp16", half), ("fp32", source)) if one is not None}
    why = "no TensorRT engine was measured"
    if engine is not None and driver_facts() is None:
        why = "no TensorRT engine was measured, for want of a GPU"
    elif engine is not None:
        try:
            return _on_engine(engine, rivals, build, frames)
        except (DeviceError, ArtifactError, MissingDependency, BuildError) as error:
            why = f"no TensorRT engine was measured: {' '.join(str(error).split())[:120]}"
    every = {"int8": graph, **rivals}
    if not rivals:
        raise ArtifactError(f"{graph}: no FP16 or FP32 file beside it to compare with; {why}")
    times = quick_ms(list(every.values()), frames, seconds=_SECONDS, threads=threads, settle=True)
    name = times[graph.path].backend
    return _Timed(f"{name}; {why}", {kind: times[one.path] for kind, one in every.items()})


def _on_engine(
    engine: Path, rivals: Mapping[str, Graph], build: Builder | None, frames: Frames
) -> _Timed:
    """The engine beside that of the first rival: FP16, or FP32 where FP16 cannot hold a weight."""
    kind = next(iter(rivals), "")
    rival = None if build is None or not kind else build(rivals[kind])
    if rival is None:
        raise BuildError("no FP16 engine to compare with")
    with open_backend(engine) as backend:
        layer_ms: Mapping[str, float] = dict(backend.layer_times())  # type: ignore[attr-defined]
    times = quick_ms([engine, rival], frames, seconds=_SECONDS, settle=True)
    layers, summary = engine_layers(engine)
    return _Timed(
        times[engine].backend,
        {"int8": times[engine], kind: times[rival]},
        int8_share(layer_ms, layers),
        (summary["reformats"], summary["layers"]),
    )
