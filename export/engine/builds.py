"""The engine of a graph, and what a result says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.errors import BuildError
from edge.reporting import phases, say
from export.engine.build import EngineReport, available_builders, build_engine

__all__ = ["Build", "engine_facts", "engine_of", "needed_engine"]


@dataclass(frozen=True)
class Build:
    """Where engines go, and what builds them: see `export_engine`."""

    folder: Path
    builder: str
    workspace_mib: int | None
    targets: Sequence[str]
    sparse: bool = False
    int8_float: str = "fp16"


def engine_of(graph: Path, build: Build, result: dict[str, Any]) -> dict[str, Any] | None:
    """Build the engine of `graph`; None without a builder, with the `reason` in `result`.

    Raises:
        BuildError, ArtifactError: as `build_engine`.
    """
    if build.builder == "none":
        result["reason"] = "--builder none"
        return None
    if build.builder == "auto":
        found = available_builders()
        if not any(info.ok for info in found):
            result["reason"] = "; ".join(f"{info.name}: {info.reason}" for info in found)
            return None
    target = build.folder / f"{graph.name.removesuffix('.onnx')}.engine"
    with phases("building") as progress:
        report = build_engine(
            graph,
            target,
            builder=build.builder,  # type: ignore[arg-type]
            workspace_mib=build.workspace_mib,
            compute_capabilities=build.targets,
            progress=progress,
            sparse=build.sparse,
            int8_float=build.int8_float,  # type: ignore[arg-type]
        )
    result["files"]["engine"] = str(report.engine)
    _tell(report, build)
    return engine_facts(report)


def needed_engine(graph: Path, build: Build) -> Path:
    """The engine of `graph`, where one cannot do without.

    Raises:
        BuildError: there is no builder; else as `engine_of`.
    """
    told: dict[str, Any] = {"files": {}}
    made = engine_of(graph, build, told)
    if made is None:
        raise BuildError(f"{graph.name}: no engine can be built here: {told['reason']}")
    return Path(made["file"])


def _tell(report: EngineReport, build: Build) -> None:
    part = report.float_part
    if part is None or part.precision == build.int8_float == "fp32":
        return
    if part.reason:
        say(f"{report.engine.name}: FP32 outside of INT8, not FP16: {part.reason}")
    elif part.single:
        names = ", ".join(part.single)
        say(f"{report.engine.name}: FP32 around {names}, by the map or beyond FP16's range")


def engine_facts(report: EngineReport) -> dict[str, Any]:
    """What a result says of an engine, as JSON values."""
    summary = report.summary
    types: dict[str, int] = {}
    for conv in summary.convolutions:
        types[conv.dtype] = types.get(conv.dtype, 0) + 1
    return {
        "file": str(report.engine),
        "builder": report.builder,
        "version": report.version,
        "reason": report.reason,
        "seconds": round(report.seconds, 2),
        "peak_rss_mib": report.peak_rss_mib,
        "bytes": report.engine.stat().st_size,
        "layers": summary.layers,
        "reformats": summary.reformats,
        "convolutions": types,
        "not_int8": [conv.name for conv in summary.convolutions if conv.dtype != "int8"],
        "sparse": list(report.sparse),
        "sparsity": list(report.sparsity),
        "float_part": None if report.float_part is None else asdict(report.float_part),
    }
