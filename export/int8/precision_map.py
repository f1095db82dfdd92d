"""Precision maps: JSON that says which convolutions of a network stay out of INT8.

What a search found can be read, edited and used again on the same network with other weights or
another calibration table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.graph import Graph
from edge.decoding import read_json
from edge.errors import ArtifactError
from edge.files import write_json
from export.int8.quantize import LAYER_PRECISIONS

__all__ = ["layer_names", "read_map", "write_map"]

_SCHEMA = 1


def layer_names(source: Graph | str | Path) -> list[str]:
    """Return the names of the convolutions of an ONNX file, in the graph's order.

    Raises:
        ArtifactError: not an ONNX file.
    """
    return [node.name for node in Graph.open(source).convolutions]


def write_map(
    target: str | Path, source: Graph | str | Path, layers: Mapping[str, str], **facts: Any
) -> None:
    """Write the precision of every convolution of `source`; `layers` names those not in INT8.

    Raises:
        ArtifactError: `target` cannot be written.
    """
    graph = Graph.open(source)
    document = {
        "schema": _SCHEMA,
        "model": graph.manifest.spec.name,
        "graph_sha256": graph.sha256,
        **facts,
        "layers": {name: layers.get(name, "int8") for name in layer_names(graph)},
    }
    write_json(document, Path(target))


@dataclass(frozen=True)
class _MapFile:
    layers: Mapping[str, str]
    schema: int = _SCHEMA

    def __post_init__(self) -> None:
        if self.schema > _SCHEMA:
            raise ValueError(f"schema {self.schema} is newer than {_SCHEMA}, which this reads")
        for name, kind in self.layers.items():
            if kind not in LAYER_PRECISIONS:
                known = ", ".join(LAYER_PRECISIONS)
                raise ValueError(f"layers.{name}: precision {kind!r}; known: {known}")


def read_map(path: str | Path, source: Graph | str | Path) -> dict[str, str]:
    """Return the convolutions of `source` that a precision map takes out of INT8, with precisions.

    The map may come from other weights of the same network: names join the two.

    Raises:
        ArtifactError: not a precision map, or it names a layer that `source` does not have.
    """
    layers = read_json(path, _MapFile, what="a precision map").layers
    foreign = set(layers) - set(layer_names(source))
    if foreign:
        raise ArtifactError(
            f"{path}: names {sorted(foreign)[0]!r}, which {source} does not have; "
            "make a map of this model: edge search"
        )
    return {name: kind for name, kind in layers.items() if kind != "int8"}
