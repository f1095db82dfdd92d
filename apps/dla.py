"""`export-engine --int8 --dla N`: an INT8 engine for a Jetson's DLA, and what did not fit on it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from calibration.calibrate import SCENES, network_inputs
from calibration.table import CalibrationTable
from edge.errors import ArtifactError
from edge.reporting import phases, say
from export.dla import build_dla_engine
from export.engine import DlaReport, EngineReport

__all__ = ["check_options", "dla_engine", "dla_facts", "print_dla"]

# Of single tensors' ranges; each image gives thousands of values.
_IMAGES = 32
_SHOWN = 6


def check_options(
    core: int, precision: str | None, builder: str, kept: object, sparse: bool = False
) -> None:
    """Refuse what a DLA cannot be built with.

    Raises:
        ArtifactError: names the option.
    """
    if core < 0:
        raise ArtifactError(f"--dla {core}: the cores count from 0")
    if precision != "int8":
        raise ArtifactError("--dla builds in INT8, with FP16 where that cannot be; add --int8")
    if builder not in ("auto", "tensorrt"):
        raise ArtifactError(
            f"--dla takes TensorRT 10.7 or older on the Jetson itself, not --builder {builder}"
        )
    if sparse:
        raise ArtifactError("--sparse is for a GPU's tensor cores; leave it out with --dla")
    if kept:
        raise ArtifactError("a DLA takes its scales from a table, which keeps no layer out of INT8")


def dla_engine(
    source: Path,
    table: CalibrationTable,
    folder: Path,
    *,
    core: int,
    calib: str | Path | None = None,
    workspace_mib: int | None = None,
) -> EngineReport:
    """Build `folder/NAME.int8.dla.engine` from the FP32 file and its table.

    Args:
        calib: calibration images, for tensors that the table has no scale of; a table or None
            takes the built-in scenes.

    Raises:
        BuildError, CalibrationError, DataError, MissingDependency: as `build_dla_engine`.
    """
    data = SCENES if calib is None or str(calib).endswith(".json") else calib
    target = folder / f"{source.name.removesuffix('.onnx').removesuffix('.fp32')}.int8.dla.engine"
    with phases("building for the DLA") as progress:
        return build_dla_engine(
            source,
            table,
            target,
            core=core,
            arrays=network_inputs(source, data, _IMAGES),
            workspace_mib=workspace_mib,
            progress=progress,
        )


def dla_facts(dla: DlaReport) -> dict[str, Any]:
    """As JSON: `core`, `layers`, `left` ([name, type]), `unscaled`, `cache`."""
    return {
        "core": dla.core,
        "layers": dla.layers,
        "left": [list(layer) for layer in dla.left],
        "unscaled": list(dla.unscaled),
        "cache": str(dla.cache),
    }


def print_dla(facts: dict[str, Any]) -> None:
    """How much of the network the DLA takes, and the first layers that it does not."""
    left = facts["left"]
    say(
        f"DLA core {facts['core']}: {facts['layers'] - len(left)} of {facts['layers']} layers; "
        f"its scales: {facts['cache']}"
    )
    if left:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(k for _, k in left).most_common())
        names = ", ".join(name for name, _ in left[:_SHOWN])
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        say(f"left to the GPU ({kinds}): {names}{more}; each switch between the two costs a copy")
    if facts["unscaled"]:
        say(f"without an INT8 scale: {', '.join(facts['unscaled'][:_SHOWN])}")
