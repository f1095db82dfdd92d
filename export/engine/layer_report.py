"""What the builder made of the network: which precision it gave to each convolution.

TensorRT reports it in two forms: as text at the end of a verbose build with detailed profiling
verbosity, which needs no GPU, and as JSON from the engine inspector, which needs the engine on its
GPU. The JSON of TensorRT 11 has fields of their own for data type and format; that of TensorRT 10
has one sentence for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.artifact import layers_path
from edge.decoding import parse_json, read_json

__all__ = [
    "Convolution",
    "DlaLayers",
    "LayerInfo",
    "LayerReport",
    "LayerSummary",
    "data_type",
    "from_inspector",
    "from_log",
    "read_layer_report",
    "summarise",
]

_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), (?P<rest>.*)$")
_SIDES = re.compile(r", (Inputs|Constants|Outputs): ")
_WORDS = {
    "int8": r"\bint8\b",
    "half": r"\b(half|fp16|float16)\b",
    "bfloat16": r"\b(bfloat16|bf16)\b",
    "fp8": r"\bfp8\b",
    "float": r"\b(float|fp32|float32)\b",
    "int32": r"\bint32\b",
    "int64": r"\bint64\b",
    "bool": r"\bbool\b",
    "uint8": r"\buint8\b",
}
# The compiler names a kernel after its operations, four letters each: __myl_CorrMulMax_myl0_1.
_KERNEL = re.compile(r"^__myl_((?:[A-Z][a-z]*)+)")
_MOVES = {"Move", "Tran", "Resh", "Cast", "Copy"}


@dataclass(frozen=True)
class LayerInfo:
    """One layer of the engine.

    Attributes:
        name, type: as the builder calls them.
        inputs, outputs: data types, `int8`, `half`, `float`, ...
        metadata: the ONNX nodes that it came from, as `[ONNX Layer: NAME]`, one after the other.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: str = ""


@dataclass(frozen=True)
class Convolution:
    """One convolution of the ONNX graph and the data type that the engine computes it in."""

    name: str
    dtype: str
    layer: str


@dataclass(frozen=True)
class LayerSummary:
    """The layers of an engine in figures.

    Attributes:
        convolutions: every convolution of the ONNX graph; dtype `unknown` where no layer names it.
        reformats: number of layers that only move, cast or reorder data.
        layers: number of layers.
    """

    convolutions: tuple[Convolution, ...]
    reformats: int
    layers: int

    def taking(self, dtype: str) -> tuple[str, ...]:
        """Names of the convolutions whose input is of this data type."""
        return tuple(conv.name for conv in self.convolutions if conv.dtype == dtype)


@dataclass(frozen=True)
class DlaLayers:
    """What TensorRT says of a DLA before the build.

    Attributes:
        core: of the DLA, from 0.
        left: name and type of each layer that the GPU takes instead.
        layers: number of layers of the network.
        unscaled: tensors without an INT8 scale, which no INT8 layer can read or write.
    """

    core: int
    left: tuple[tuple[str, str], ...]
    layers: int
    unscaled: tuple[str, ...]


@dataclass(frozen=True)
class LayerReport:
    """What `NAME.engine.layers.json` holds: what the builder made of the graph.

    Attributes:
        sparsity: TensorRT's own lines about sparse weights; TensorRT-RTX writes none.
        dla: of a build for a DLA.
    """

    summary: LayerSummary
    layers: tuple[LayerInfo, ...] = ()
    sparsity: tuple[str, ...] = ()
    dla: DlaLayers | None = None

    def to_json(self) -> dict[str, Any]:
        """The file's content; what there is nothing to say of is left out."""
        report = {"summary": self.summary, "layers": self.layers}
        more = {"sparsity": self.sparsity, "dla": self.dla}
        return dict(report | {key: value for key, value in more.items() if value})


def read_layer_report(engine: Path) -> LayerReport:
    """Read the layer report beside `engine`.

    Raises:
        ArtifactError: it is missing, or not a layer report.
    """
    return read_json(layers_path(engine), LayerReport, what="a layer report of edge")


def data_type(text: str) -> str:
    """Find the data type in the builder's words: `Row major linear FP16 format` is `half`."""
    lowered = text.lower()
    return next((name for name, word in _WORDS.items() if re.search(word, lowered)), lowered)


def from_log(text: str) -> list[LayerInfo]:
    """Read the layers from the text that ends a verbose build; skip lines of another form."""
    matches = (_LINE.match(line) for line in text.splitlines())
    return [_layer_of_line(match) for match in matches if match]


def _layer_of_line(match: re.Match[str]) -> LayerInfo:
    rest, _, metadata = match["rest"].partition("Metadata: ")
    parts = _SIDES.split(", " + rest)
    sides = dict(zip(parts[1::2], parts[2::2], strict=True))
    inputs, outputs = (
        tuple(data_type(word) for word in re.findall(r"Datatype: (\w+)", sides.get(side, "")))
        for side in ("Inputs", "Outputs")
    )
    return LayerInfo(match["name"], match["type"], inputs, outputs, metadata.strip())


def from_inspector(text: str) -> list[LayerInfo]:
    """Read the layers from the engine inspector's JSON, of TensorRT 10, 11 and RTX.

    Raises:
        ValueError: the text is not JSON, or has no list of layers.
    """
    what = "the JSON of an engine inspector"
    report = parse_json(text, "TensorRT", what)
    layers = report.get("Layers") if isinstance(report, dict) else None
    if not isinstance(layers, list):
        raise ValueError("the engine inspector's JSON has no list of layers")
    return [_layer_of_json(layer) for layer in layers]


def _layer_of_json(layer: Any) -> LayerInfo:
    if not isinstance(layer, dict):  # an engine built without detailed profiling verbosity
        return LayerInfo(str(layer), "", (), ())
    inputs, outputs = (
        tuple(_type_of_json(tensor) for tensor in layer.get(side) or ())
        for side in ("Inputs", "Outputs")
    )
    metadata = str(layer.get("Metadata") or "").replace("\x1e", "")
    return LayerInfo(
        str(layer.get("Name", "")), str(layer.get("LayerType", "")), inputs, outputs, metadata
    )


def _type_of_json(tensor: dict[str, Any]) -> str:
    keys = ("Datatype", "DataType", "Format/Datatype", "Format")
    return data_type(str(next((tensor[key] for key in keys if key in tensor), "")))


def summarise(layers: Sequence[LayerInfo], convolutions: Iterable[str]) -> LayerSummary:
    """Find the layer that computes each convolution of the ONNX graph.

    Args:
        layers: of the engine.
        convolutions: names of the ONNX graph's convolution nodes.
    """
    found = tuple(_convolution(name, layers) for name in convolutions)
    return LayerSummary(found, sum(map(_is_reformat, layers)), len(layers))


def _convolution(name: str, layers: Sequence[LayerInfo]) -> Convolution:
    # Kernels before and after (quantising, bias, activation) carry the node's name as well.
    named = [layer for layer in layers if _mentions(layer, name)]
    computing = [layer for layer in named if _computes(layer)] or named[:1]
    if not computing or not computing[0].inputs:
        return Convolution(name, "unknown", computing[0].name if computing else "")
    return Convolution(name, computing[0].inputs[0], computing[0].name)


def _mentions(layer: LayerInfo, name: str) -> bool:
    if layer.metadata:
        return f"[ONNX Layer: {name}]" in layer.metadata
    return name in layer.name.split(" + ")


def _computes(layer: LayerInfo) -> bool:
    kind = layer.type.lower()
    return "conv" in kind or "correlation" in kind or bool({"Corr", "Conv"} & _operations(layer))


def _is_reformat(layer: LayerInfo) -> bool:
    operations = _operations(layer)
    return "reformat" in layer.type.lower() or bool(operations and operations <= _MOVES)


def _operations(layer: LayerInfo) -> set[str]:
    match = _KERNEL.match(layer.name)
    return set(re.findall(r"[A-Z][a-z]*", match[1])) if match else set()
