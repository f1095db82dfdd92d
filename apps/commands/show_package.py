"""What is inside a package: the part of `edge show` for `.edgez`; numpy alone is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.commands.terminal import show
from edge.edgez.package import Package, read_package
from edge.spec import Manifest

__all__ = ["package_facts", "package_rows", "print_package"]

_TYPES = {"f2": "float16", "f4": "float32"}


def package_facts(path: Path) -> tuple[Manifest, dict[str, Any]]:
    """The manifest of a package, and `coding`, `sections` and `stages` (bytes), `dense_bytes`,
    `ratio`, `bits_per_weight` (of the shared weights), `tensors`.

    Of a tensor: `name`, `shape`, `type` of its stored numbers, `values` (size of its codebook,
    None where each number is stored), `scaled` (whether each output channel has a scale beside
    it), `zeros` (how many are exactly 0). All weights are unfolded once, one tensor at a time, so
    their checksum is compared too.

    Raises:
        ArtifactError: damaged.
    """
    package = read_package(path)
    tensors = _tensors(package)
    shared = sum(entry.size for entry in package.entries if entry.layer is not None)
    sections = dict(package.sections)
    return package.manifest, {
        "coding": package.coding,
        "dense_bytes": package.dense_bytes,
        "ratio": package.dense_bytes / path.stat().st_size,
        "bits_per_weight": 8 * sections["weights"] / shared if shared else None,
        "stages": [dict(stage) for stage in package.stages],
        "sections": sections,
        "tensors": tensors,
    }


def _tensors(package: Package) -> list[dict[str, Any]]:
    found = []
    zeros = {name: int(np.count_nonzero(dense == 0)) for name, dense in package.tensors()}
    for entry in package.entries:
        row = {"name": entry.name, "shape": list(entry.shape), "type": _TYPES[entry.type]}
        levels = None if entry.layer is None else entry.layer.levels
        found.append({**row, "values": levels, "scaled": entry.scaled, "zeros": zeros[entry.name]})
    return found


def package_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The whole package in rows of two."""
    bits = facts["bits_per_weight"]
    each = "no weights" if bits is None else f"{bits:.3f} bits a weight"
    return [
        ("unfolded", f"{facts['dense_bytes']:,} bytes, {facts['ratio']:.2f} times the file"),
        ("weights", f"{facts['coding']}, {each}"),
    ]


def print_package(facts: Mapping[str, Any]) -> None:
    """Stages, sections and tensors as tables on stdout."""
    if facts["stages"]:
        stages = [_stage(stage) for stage in facts["stages"]]
        show("stages", ("stage", "bytes", "mAP@.5"), stages)
    sections = [(name, f"{size:,}") for name, size in facts["sections"].items()]
    show("sections", ("section", "bytes"), sections)
    columns = ("tensor", "shape", "numbers", "values", "zero")
    show("tensors", columns, [_row(tensor) for tensor in facts["tensors"]])


def _stage(stage: Mapping[str, Any]) -> Sequence[str]:
    size, found = stage.get("bytes"), stage.get("map50")
    return (
        str(stage.get("name", "")),
        f"{size:,}" if isinstance(size, int) else "",
        f"{found:.2%}" if isinstance(found, float) else "",
    )


def _row(tensor: Mapping[str, Any]) -> Sequence[str]:
    shape = tensor["shape"]
    share = tensor["zeros"] / max(1, int(np.prod(shape)))
    values = "each" if tensor["values"] is None else str(tensor["values"])
    return (
        tensor["name"],
        "x".join(map(str, shape)),
        tensor["type"],
        f"{values}, scaled" if tensor["scaled"] else values,
        f"{share:.1%}",
    )
