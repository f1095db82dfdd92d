"""Where an artifact's time goes, layer by layer: `edge bench --layers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.interleave import Runner
from apps.table import show
from edge.runtime.ort_profile import node_ms

__all__ = ["layer_times", "print_layers"]

_SHOWN = 20


def layer_times(runner: Runner, threads: int, runs: int = 20) -> list[dict[str, Any]]:
    """Layers by time, the slowest first: `name`, `ms` (median), `share` of all layers' sum, 0..1.

    Of an engine TensorRT's layers, of an ONNX file the nodes that onnxruntime made of it. Both
    are measured one by one, so that their sum is more than a run takes.

    Raises:
        ArtifactError, DeviceError, MissingDependency: as the backend.
    """
    backend: Any = runner.detector.backend
    if hasattr(backend, "layer_times"):
        times: Sequence[tuple[str, float]] = backend.layer_times(runs)
    else:
        found = node_ms(Path(runner.artifact), runner.tensor, runs=runs, threads=threads)
        times = list(found.items())
    total = sum(ms for _, ms in times) or 1.0
    ordered = sorted(times, key=lambda one: -one[1])
    return [{"name": name, "ms": ms, "share": ms / total} for name, ms in ordered]


def print_layers(label: str, layers: Sequence[dict[str, Any]]) -> None:
    """The slowest layers as a table on stdout, and the others' sum."""
    rows = [(one["name"], f"{one['ms']:.3f}", f"{one['share'] * 100:.1f}") for one in layers]
    if len(rows) > _SHOWN + 1:
        ms, share = (sum(one[key] for one in layers[_SHOWN:]) for key in ("ms", "share"))
        others = f"{len(rows) - _SHOWN} others"
        rows = [*rows[:_SHOWN], (others, f"{ms:.3f}", f"{share * 100:.1f}")]
    total = sum(one["ms"] for one in layers)
    show(f"{label}: {len(layers)} layers, {total:.2f} ms", ("layer", "ms", "share %"), rows)
