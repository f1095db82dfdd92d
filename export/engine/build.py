"""ONNX file → TensorRT engine, its manifest and its layer report.

The engine stays a plain plan that trtexec loads; `NAME.engine.json` says what it is and
`NAME.engine.layers.json` what the builder made of each layer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import edge
from edge.artifact import layers_path, manifest_path
from edge.errors import ArtifactError, BuildError
from edge.files import sha256_of, write_file, write_json
from edge.onnx_metadata import read_manifest
from edge.spec import Manifest
from export.engine.float_part import FloatPart, is_quantized, write_float_part
from export.engine.layer_report import Convolution, LayerInfo, LayerSummary
from export.engine.process import memory_available_mib, run_child
from export.graph.sparsity import check_sparse

__all__ = [
    "BuilderInfo",
    "DlaReport",
    "DlaRequest",
    "EngineReport",
    "available_builders",
    "build_engine",
]

Builder = Literal["auto", "tensorrt", "rtx"]
Progress = Callable[[str, int, int], None]
_MOST_WORKSPACE_MIB, _LEAST_WORKSPACE_MIB = 1024, 64
# How `engine_child` begins when TensorRT itself turned a graph down.
_REFUSED = ("TensorRT cannot read it", "TensorRT built no engine")


@dataclass(frozen=True)
class BuilderInfo:
    """A builder and whether it can build here; `reason` says why not."""

    name: str
    version: str
    ok: bool
    reason: str


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
    source: Path


@dataclass(frozen=True)
class DlaReport:
    """What TensorRT said of the DLA.

    Attributes:
        core: as asked for.
        left: name and type of each layer that the GPU takes in its place.
        layers: of the network, in all.
        unscaled: tensors without an INT8 scale.
        cache: the calibration cache that was built from.
    """

    core: int
    left: tuple[tuple[str, str], ...]
    layers: int
    unscaled: tuple[str, ...]
    cache: Path


@dataclass(frozen=True)
class EngineReport:
    """What a build gave.

    Attributes:
        engine: path of the plan.
        manifest: as written beside it.
        builder, version: `tensorrt` or `tensorrt_rtx`, and its version.
        reason: why that builder was taken.
        seconds: parsing and building.
        peak_rss_mib: the most memory the builder's process held.
        layers: of the engine.
        summary: which convolutions take which data type, and how many layers only move data.
        dla: what left it, of a build for one.
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


def available_builders() -> list[BuilderInfo]:
    """The builders, with the reason where one cannot build here.

    Imports them in a child process: they are large, and a broken one may crash.
    """
    try:
        found = run_child({"probe": True}, timeout_s=60)["builders"]
    except BuildError as error:
        return [BuilderInfo("tensorrt, tensorrt_rtx", "", False, str(error))]
    return [BuilderInfo(**builder) for builder in found]


def build_engine(
    onnx: str | Path,
    target: str | Path,
    *,
    builder: Builder = "auto",
    workspace_mib: int | None = None,
    compute_capabilities: Sequence[str] = (),
    timeout_s: float | None = None,
    progress: Progress | None = None,
    dla: DlaRequest | None = None,
    sparse: bool = False,
    int8_float: Literal["fp16", "fp32"] = "fp16",
) -> EngineReport:
    """Build `target` (`.engine`), its manifest and its layer report.

    Args:
        onnx: written by `write_onnx` or `insert_qdq`; its precision is that of its graph.
        target: the engine; its folder is made where it is missing.
        builder: `tensorrt` (needs the GPU it builds for), `rtx` (needs none), or what is there.
        workspace_mib: scratch memory a layer may take; 1024, or half of what is available.
        compute_capabilities: targets of TensorRT-RTX such as `SM86`; none means Ampere and later.
        timeout_s: stop a build that takes longer.
        progress: called with (phase, step, of); an exception it raises cancels the build.
        dla: build an FP32 graph in INT8 for a DLA; `export.engine.dla` makes both.
        sparse: let the builder take kernels for weights with the 2:4 pattern.
        int8_float: what an INT8 graph computes outside of INT8 (`export.graph.half_float`). Where
        FP16
            cannot be had, the engine has FP32, and the report and the manifest say why.

    Raises:
        ArtifactError: `onnx` is damaged or without a manifest, or `sparse` without a convolution
            of that pattern, or the folder cannot be written.
        BuildError: TensorRT refused, crashed, was killed or took too long.
        MissingDependency: the builder asked for is not installed.
    """
    onnx, target = Path(onnx), Path(target)
    request = _request(builder, workspace_mib, compute_capabilities)
    if target.suffix != ".engine":
        raise ValueError(f"target is {target}; an engine's name ends in .engine")
    if int8_float not in ("fp16", "fp32"):
        raise ValueError(f"int8_float is {int8_float!r}; known: fp16, fp32")
    source, parent_sha256 = read_manifest(onnx), sha256_of(onnx)
    found = check_sparse(onnx) if sparse else ()
    request["sparse"] = sparse
    with _folder_beside(target) as folder:
        plan, cache = Path(folder) / "plan", Path(folder) / "calib"
        request |= {"onnx": str(onnx.resolve()), "plan": str(plan.resolve())}
        if dla is not None:
            source, parent_sha256 = replace(source, precision="int8"), sha256_of(dla.source)
            asked = {"core": dla.core, "amax": dict(dla.amax), "cache": str(cache.resolve())}
            request["dla"] = asked
        half = Path(folder) / "half.onnx"
        part = None
        if dla is None and is_quantized(source):
            wanted = int8_float == "fp16"
            part = write_float_part(onnx, source, half) if wanted else FloatPart("fp32")
        try:
            done, part = _built(request, part, half, progress, timeout_s)
        except BuildError as error:
            raise BuildError(f"{dla.source if dla else onnx}: {error}") from error
        if part is not None:
            source = _with(source, part)
        manifest = _manifest(source, sha256_of(plan), parent_sha256, request, done)
        if dla is not None:
            write_file(_cache_path(target), cache.read_bytes())
        _place(plan, target, manifest, done)
    return replace(_report(target, manifest, done), sparse=found, float_part=part)


def _built(
    request: dict[str, Any],
    part: FloatPart | None,
    half: Path,
    progress: Progress | None,
    timeout_s: float | None,
) -> tuple[dict[str, Any], FloatPart | None]:
    """What the child says, of the graph with FP16 where there is one and TensorRT takes it."""
    if part is not None and part.precision == "fp16":
        try:
            asked = request | {"onnx": str(half.resolve())}
            return run_child(asked, _forward(progress), timeout_s), part
        except BuildError as error:
            if not str(error).startswith(_REFUSED):
                raise
            part = FloatPart("fp32", reason=str(error))
    return run_child(request, _forward(progress), timeout_s), part


def _with(source: Manifest, part: FloatPart) -> Manifest:
    arguments = dict(source.arguments) | part.arguments()
    return replace(source, arguments=tuple(arguments.items()))


def _request(builder: str, workspace_mib: int | None, targets: Sequence[str]) -> dict[str, Any]:
    if builder not in ("auto", "tensorrt", "rtx"):
        raise ValueError(f"builder is {builder!r}; known: auto, tensorrt, rtx")
    if workspace_mib is None:
        half = memory_available_mib() // 2 or _MOST_WORKSPACE_MIB
        workspace_mib = max(_LEAST_WORKSPACE_MIB, min(_MOST_WORKSPACE_MIB, half))
    if workspace_mib < 1:
        raise ValueError(f"workspace_mib is {workspace_mib}; it takes a positive number")
    return {
        "builder": builder,
        "workspace_mib": workspace_mib,
        "compute_capabilities": list(targets),
    }


def _folder_beside(target: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=target.parent, prefix=".engine-")
    except OSError as error:
        raise ArtifactError(f"{target}: cannot be written: {error.strerror}") from error


def _cache_path(target: Path) -> Path:
    return target.with_name(target.name + ".calib")


def _forward(progress: Progress | None) -> Callable[[dict[str, Any]], None]:
    def on_event(event: dict[str, Any]) -> None:
        if progress is not None and event["event"] == "step":
            progress(event["phase"], event["step"], event["of"])

    return on_event


def _manifest(
    source: Manifest, sha256: str, parent_sha256: str, request: dict[str, Any], done: dict[str, Any]
) -> Manifest:
    gpu, targets = done["gpu"], request["compute_capabilities"]
    made_by = dict(source.made_by) | {"edge": edge.__version__, done["builder"]: done["version"]}
    if done["builder"] == "tensorrt_rtx":
        made_by["targets"] = ", ".join(targets) or "Ampere and later"
    elif gpu:
        made_by["targets"] = gpu["compute_capability"]
    if gpu:
        made_by |= {"gpu": gpu["name"], "driver": gpu["driver"]}
    arguments = dict(source.arguments) | {
        name: json.dumps(request[name])
        for name in ("builder", "workspace_mib", "compute_capabilities")
    }
    if request["sparse"]:
        arguments["sparse"] = json.dumps(True)
    if "dla" in request:
        arguments["dla"] = json.dumps(request["dla"]["core"])
    return replace(
        source,
        sha256=sha256,
        parent_sha256=parent_sha256,
        made_by=tuple(made_by.items()),
        arguments=tuple(arguments.items()),
    )


def _place(plan: Path, target: Path, manifest: Manifest, done: dict[str, Any]) -> None:
    """Move all three into place; the manifest last, whose checksum speaks for the plan."""
    report = {"summary": done["summary"], "layers": done["layers"]}
    if done["sparsity"]:
        report["sparsity"] = done["sparsity"]
    if done.get("dla"):
        report["dla"] = done["dla"]
    write_json(report, layers_path(target))
    try:
        os.replace(plan, target)
    except OSError as error:
        raise ArtifactError(f"{target}: cannot be written: {error.strerror}") from error
    write_file(manifest_path(target), manifest.to_json(indent=1).encode())


def _report(target: Path, manifest: Manifest, done: dict[str, Any]) -> EngineReport:
    summary = done["summary"]
    found = tuple(Convolution(**conv) for conv in summary["convolutions"])
    return EngineReport(
        engine=target,
        manifest=manifest,
        builder=done["builder"],
        version=done["version"],
        reason=done["reason"],
        seconds=done["seconds"],
        peak_rss_mib=done["peak_rss_mib"],
        layers=tuple(LayerInfo(**_tuples(layer)) for layer in done["layers"]),
        summary=LayerSummary(found, summary["reformats"], summary["layers"]),
        dla=_dla_report(done["dla"], target) if done.get("dla") else None,
        sparsity=tuple(done["sparsity"]),
    )


def _dla_report(told: dict[str, Any], target: Path) -> DlaReport:
    left = tuple((name, kind) for name, kind in told["left"])
    cache = _cache_path(target)
    return DlaReport(told["core"], left, told["layers"], tuple(told["unscaled"]), cache)


def _tuples(layer: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in layer.items()}
