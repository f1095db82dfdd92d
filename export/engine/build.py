"""ONNX file → TensorRT engine, its manifest and its layer report.

The engine stays a plain plan that trtexec loads; `NAME.engine.json` says what it is and
`NAME.engine.layers.json` what the builder made of each layer.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import edge
from edge.artifact import layers_path, manifest_path
from edge.errors import ArtifactError, BuildError
from edge.files import make_folder, sha256_of, to_plain, write_file, write_json
from edge.onnx_file import OnnxFile
from edge.reporting import phases, say
from edge.spec import Manifest
from export.engine.float_part import FloatPart, is_quantized, write_float_part
from export.engine.layer_report import DlaLayers, LayerInfo, LayerReport, LayerSummary
from export.engine.options import BuildOptions
from export.engine.process import memory_available_mib, run_child
from export.engine.protocol import (
    BuilderInfo,
    Builders,
    BuildRequest,
    Built,
    DlaScales,
    ProbeRequest,
    Step,
)
from export.graph.sparsity import check_sparse

__all__ = [
    "Build",
    "BuilderInfo",
    "DlaReport",
    "DlaRequest",
    "EngineFacts",
    "EngineReport",
    "available_builders",
    "build_engine",
    "built_engine",
    "engine_facts",
    "needed_engine",
    "why_no_builder",
]

Progress = Callable[[str, int, int], None]
_MOST_WORKSPACE_MIB, _LEAST_WORKSPACE_MIB = 1024, 64
# How messages of `export.engine.child` begin where TensorRT itself refused a graph.
_REFUSED = ("TensorRT cannot read it", "TensorRT built no engine")


@dataclass(frozen=True)
class DlaRequest:
    """A build for a DLA of TensorRT 10.7 or older, see `export.engine.dla`.

    Attributes:
        core: of the DLA, from 0.
        amax: clipping threshold of every tensor.
        source: the FP32 ONNX file of the table, which manifest and messages name.
    """

    core: int
    amax: Mapping[str, float]
    source: OnnxFile


@dataclass(frozen=True)
class DlaReport(DlaLayers):
    """What TensorRT says of the DLA, and `cache`, the calibration cache of the build."""

    cache: Path


@dataclass(frozen=True)
class EngineReport:
    """What a build gave.

    Attributes:
        engine: path of the plan.
        manifest: as written beside it.
        builder, version: `tensorrt` or `tensorrt_rtx`, and its version.
        reason: why that builder was taken.
        seconds: of parsing and building.
        peak_rss_mib: the most memory that the builder's process held.
        layers: of the engine.
        summary: which convolutions take which data type, and how many layers only move data.
        dla: which layers a DLA takes, of a build for one.
        sparse: convolutions whose weights have the 2:4 pattern, of a build that looked for it.
        sparsity: TensorRT's own lines about it; TensorRT-RTX writes none.
        float_part: what an INT8 engine computes outside of INT8.
    """

    engine: Path
    manifest: Manifest
    builder: str
    version: str
    reason: str
    seconds: float
    peak_rss_mib: int
    layers: tuple[LayerInfo, ...]
    summary: LayerSummary
    dla: DlaReport | None = None
    sparse: tuple[str, ...] = ()
    sparsity: tuple[str, ...] = ()
    float_part: FloatPart | None = None


@dataclass(frozen=True)
class EngineFacts:
    """What the result of a command says of an engine.

    Attributes:
        file: the engine.
        bytes: size of the plan.
        layers, reformats: number of layers, and of those that only move data.
        convolutions: number of convolutions by data type.
        not_int8: names of the convolutions of another data type.
    """

    file: str
    builder: str
    version: str
    reason: str
    seconds: float
    peak_rss_mib: int
    bytes: int
    layers: int
    reformats: int
    convolutions: Mapping[str, int]
    not_int8: tuple[str, ...]
    sparse: tuple[str, ...]
    sparsity: tuple[str, ...]
    float_part: FloatPart | None
    dla: DlaReport | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON; `dla` only of a build for one."""
        fields = {key: to_plain(value) for key, value in vars(self).items()}
        return fields if self.dla is not None else {k: v for k, v in fields.items() if k != "dla"}


@dataclass(frozen=True)
class Build:
    """Where engines go, and how they are built."""

    folder: Path
    options: BuildOptions


def available_builders() -> list[BuilderInfo]:
    """Return the builders, each with the reason where it cannot build here.

    They are imported in a child process, because they are large and a broken one may crash.
    """
    try:
        return list(run_child(ProbeRequest(), Builders, timeout_s=60).builders)
    except BuildError as error:
        return [BuilderInfo("tensorrt, tensorrt_rtx", "", False, str(error))]


def why_no_builder(options: BuildOptions) -> str:
    """Return why no engine can be built with `options` here; "" where one can."""
    if options.builder == "none":
        return "--builder none"
    if options.builder == "auto":
        found = available_builders()
        if not any(info.ok for info in found):
            return "; ".join(f"{info.name}: {info.reason}" for info in found)
    return ""


def built_engine(graph: OnnxFile, build: Build) -> EngineFacts:
    """Build the engine of `graph`, with progress and a line where it is not as asked for.

    Raises:
        BuildError, ArtifactError, MissingDependency: as `build_engine`.
    """
    target = build.folder / f"{graph.path.name.removesuffix('.onnx')}.engine"
    with phases("building") as progress:
        report = build_engine(graph, target, build.options, progress=progress)
    part = report.float_part
    if part is not None and part.reason:
        say(f"{report.engine.name}: FP32 outside of INT8, not FP16: {part.reason}")
    elif part is not None and part.single:
        names = ", ".join(part.single)
        say(
            f"{report.engine.name}: FP32 around {names}, because the precision map says so or FP16 "
            "cannot hold the values"
        )
    return engine_facts(report)


def needed_engine(graph: OnnxFile, build: Build) -> Path:
    """Build the engine of `graph` for work that cannot do without one, and return its path.

    Raises:
        BuildError: there is no builder; else as `build_engine`.
    """
    reason = why_no_builder(build.options)
    if reason:
        raise BuildError(f"{graph.path.name}: no engine can be built here: {reason}")
    return Path(built_engine(graph, build).file)


def engine_facts(report: EngineReport) -> EngineFacts:
    """Return what a result says of an engine."""
    summary = report.summary
    return EngineFacts(
        file=str(report.engine),
        builder=report.builder,
        version=report.version,
        reason=report.reason,
        seconds=round(report.seconds, 2),
        peak_rss_mib=report.peak_rss_mib,
        bytes=report.engine.stat().st_size,
        layers=summary.layers,
        reformats=summary.reformats,
        convolutions=dict(Counter(conv.dtype for conv in summary.convolutions)),
        not_int8=tuple(conv.name for conv in summary.convolutions if conv.dtype != "int8"),
        sparse=report.sparse,
        sparsity=report.sparsity,
        float_part=report.float_part,
        dla=report.dla,
    )


def build_engine(
    onnx: OnnxFile | str | Path,
    target: str | Path,
    options: BuildOptions | None = None,
    *,
    timeout_s: float | None = None,
    progress: Progress | None = None,
    dla: DlaRequest | None = None,
) -> EngineReport:
    """Build `target` (`.engine`), its manifest and its layer report.

    Args:
        onnx: written by `write_onnx` or `insert_qdq`; its precision is that of its graph.
        target: the engine; its folder is made where it is missing.
        options: None takes all defaults.
        timeout_s: stop a build that takes longer.
        progress: called with (phase, step, of); an exception that it raises cancels the build.
        dla: build an FP32 graph in INT8 for a DLA; `export.engine.dla` makes both.

    Raises:
        ArtifactError: `onnx` is damaged or without a manifest, `options.sparse` without a
            convolution of that pattern, or the folder cannot be written.
        BuildError: TensorRT refused, crashed, was killed or took too long.
        MissingDependency: the builder asked for is not installed.
        ValueError: the name of `target`, or a builder `none`.
    """
    graph = onnx if isinstance(onnx, OnnxFile) else OnnxFile(onnx)
    target, options = Path(target), options or BuildOptions()
    if target.suffix != ".engine":
        raise ValueError(f"target is {target}; an engine's name ends in .engine")
    source, parent_sha256 = graph.manifest, graph.sha256
    found = check_sparse(graph) if options.sparse else ()
    with _folder_beside(target) as folder:
        plan, cache, half = (Path(folder, name) for name in ("plan", "calib", "half.onnx"))
        request = _request(options, graph.path, plan)
        part = None
        if dla is not None:
            source, parent_sha256 = replace(source, precision="int8"), dla.source.sha256
            scales = DlaScales(dla.core, dict(dla.amax), str(cache.resolve()))
            request = replace(request, dla=scales)
        elif is_quantized(source):
            wanted = options.int8_float == "fp16"
            part = write_float_part(graph, half) if wanted else FloatPart("fp32")
        try:
            built, part = _built(request, part, half, progress, timeout_s)
        except BuildError as error:
            raise BuildError(f"{dla.source if dla else graph}: {error}") from error
        if part is not None:
            source = _with(source, part)
        manifest = _manifest(source, sha256_of(plan), parent_sha256, request, built)
        if dla is not None:
            write_file(_cache_path(target), cache.read_bytes())
        _place(plan, target, manifest, built)
    return EngineReport(
        engine=target,
        manifest=manifest,
        builder=built.builder,
        version=built.version,
        reason=built.reason,
        seconds=built.seconds,
        peak_rss_mib=built.peak_rss_mib,
        layers=built.layers,
        summary=built.summary,
        dla=None if built.dla is None else DlaReport(**vars(built.dla), cache=_cache_path(target)),
        sparse=found,
        sparsity=built.sparsity,
        float_part=part,
    )


def _built(
    request: BuildRequest,
    part: FloatPart | None,
    half: Path,
    progress: Progress | None,
    timeout_s: float | None,
) -> tuple[Built, FloatPart | None]:
    """Build the graph with FP16 outside of INT8 where there is one and TensorRT takes it."""

    def on_step(step: Step) -> None:
        if progress is not None:
            progress(step.phase, step.step, step.of)

    if part is not None and part.precision == "fp16":
        try:
            asked = replace(request, onnx=str(half.resolve()))
            return run_child(asked, Built, on_step, timeout_s), part
        except BuildError as error:
            if not str(error).startswith(_REFUSED):
                raise
            part = FloatPart("fp32", reason=str(error))
    return run_child(request, Built, on_step, timeout_s), part


def _with(source: Manifest, part: FloatPart) -> Manifest:
    arguments = dict(source.arguments) | part.arguments()
    return replace(source, arguments=tuple(arguments.items()))


def _request(options: BuildOptions, onnx: Path, plan: Path) -> BuildRequest:
    if options.builder == "none":
        raise ValueError("builder is 'none', which builds no engine")
    workspace_mib = options.workspace_mib
    if workspace_mib is None:
        half = memory_available_mib() // 2 or _MOST_WORKSPACE_MIB
        workspace_mib = max(_LEAST_WORKSPACE_MIB, min(_MOST_WORKSPACE_MIB, half))
    return BuildRequest(
        builder=options.builder,
        workspace_mib=workspace_mib,
        onnx=str(onnx.resolve()),
        plan=str(plan.resolve()),
        compute_capabilities=options.targets,
        sparse=options.sparse,
    )


def _folder_beside(target: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder on the file system of `target`.

    Raises:
        ArtifactError: no file can be written there.
    """
    try:
        return tempfile.TemporaryDirectory(dir=make_folder(target.parent), prefix=".engine-")
    except OSError as error:
        raise ArtifactError(f"{target}: cannot be written: {error.strerror}") from error


def _cache_path(target: Path) -> Path:
    return target.with_name(target.name + ".calib")


def _manifest(
    source: Manifest, sha256: str, parent_sha256: str, request: BuildRequest, built: Built
) -> Manifest:
    gpu, targets = built.gpu, list(request.compute_capabilities)
    made_by = dict(source.made_by) | {"edge": edge.__version__, built.builder: built.version}
    if built.builder == "tensorrt_rtx":
        made_by["targets"] = ", ".join(targets) or "Ampere and later"
    elif gpu is not None:
        made_by["targets"] = gpu.compute_capability
    if gpu is not None:
        made_by |= {"gpu": gpu.name, "driver": gpu.driver}
    arguments = dict(source.arguments) | {
        "builder": json.dumps(request.builder),
        "workspace_mib": json.dumps(request.workspace_mib),
        "compute_capabilities": json.dumps(targets),
    }
    if request.sparse:
        arguments["sparse"] = json.dumps(True)
    if request.dla is not None:
        arguments["dla"] = json.dumps(request.dla.core)
    return replace(
        source,
        sha256=sha256,
        parent_sha256=parent_sha256,
        made_by=tuple(made_by.items()),
        arguments=tuple(arguments.items()),
    )


def _place(plan: Path, target: Path, manifest: Manifest, built: Built) -> None:
    """Write all three files; the manifest last, because its checksum vouches for the plan."""
    report = LayerReport(built.summary, built.layers, built.sparsity, built.dla)
    write_json(report, layers_path(target))
    write_file(target, plan.read_bytes())
    write_file(manifest_path(target), manifest.to_json(indent=1).encode())
