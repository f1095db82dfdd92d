"""What the builder made of the network: which precision each convolution takes.

TensorRT tells it in two forms: as text at the end of a verbose build with detailed profiling
verbosity, which needs no GPU, and as JSON from the engine inspector, which needs the engine on its
GPU. The JSON of TensorRT 11 names data types apart from formats; that of 10 writes one sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Convolution", "LayerInfo", "LayerSummary", "from_inspector", "from_log", "summarise"]

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
        metadata: the ONNX nodes it came from, as `[ONNX Layer: NAME]`, one after the other.
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
    """What the layers amount to.

    Attributes:
        convolutions: every convolution of the ONNX graph; dtype `unknown` where no layer names it.
        reformats: layers that only move, cast or reorder data.
        layers: how many there are.
    """

    convolutions: tuple[Convolution, ...]
    reformats: int
    layers: int

    def taking(self, dtype: str) -> tuple[str, ...]:
        """Names of the convolutions whose input is of this data type."""
        return tuple(conv.name for conv in self.convolutions if conv.dtype == dtype)

    def to_dict(self) -> dict[str, Any]:
        """As JSON objects."""
        return asdict(self)


def data_type(text: str) -> str:
    """The data type in the builder's words: `Row major linear FP16 format` is `half`."""
    lowered = text.lower()
    return next((name for name, word in _WORDS.items() if re.search(word, lowered)), lowered)


def from_log(text: str) -> list[LayerInfo]:
    """Layers of the text that ends a verbose build; lines of another form are left out."""
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
    """Layers of the engine inspector's JSON, of TensorRT 10, 11 and RTX.

    Raises:
        ValueError: not JSON, or without a list of layers.
    """
    layers = json.loads(text).get("Layers")
    if not isinstance(layers, list):
        raise ValueError("the engine inspector's JSON has no list of layers")
    return [_layer_of_json(layer) for layer in layers]


def _layer_of_json(layer: Any) -> LayerInfo:
    if isinstance(layer, str):  # an engine built without detailed profiling verbosity
        return LayerInfo(layer, "", (), ())
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
