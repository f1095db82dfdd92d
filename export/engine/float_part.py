"""Decides what an INT8 engine computes outside of INT8: FP16, or FP32 with the reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ArtifactError, MissingDependency
from edge.files import write_file
from edge.onnx_file import OnnxFile
from edge.spec import InputContract, Manifest
from export.graph.half_float import half_floats

__all__ = ["FloatPart", "input_peak", "is_quantized", "write_float_part"]


@dataclass(frozen=True)
class FloatPart:
    """The floating-point part of an INT8 engine.

    Attributes:
        precision: `fp16` or `fp32`.
        single: convolutions that have FP32 around them in an FP16 part: because a precision map
            says so, or because FP16 cannot hold their scales or values.
        reason: why it is FP32 where FP16 was asked for.
    """

    precision: str
    single: tuple[str, ...] = ()
    reason: str = ""

    def arguments(self) -> dict[str, str]:
        """Return the arguments of a manifest that say so; values are JSON text."""
        facts = {"int8_float": self.precision, "int8_float_fp32": list(self.single)}
        if self.reason:
            facts["int8_float_reason"] = self.reason
        return {name: json.dumps(value) for name, value in facts.items() if value}


def is_quantized(manifest: Manifest) -> bool:
    """Whether a graph has an INT8 part beside its floating-point part."""
    return manifest.precision in ("int8", "mixed")


def write_float_part(onnx: OnnxFile, target: Path) -> FloatPart:
    """Write `target`, the INT8 graph with FP16 between its quantizers, where that is possible.

    Args:
        onnx: an INT8 or mixed graph of edge. Layers that its precision map keeps in FP32 stay so.

    Raises:
        ArtifactError: a node reads what no node makes.
    """
    layers = onnx.manifest.argument("layers", dict[str, str]) or {}
    keep = [name for name, kind in layers.items() if kind == "fp32"]
    try:
        model, single = half_floats(onnx.data, input_peak(onnx.manifest.spec.contract), keep)
    except MissingDependency:
        return FloatPart("fp32", reason="protobuf is not installed: pip install protobuf")
    except ValueError as error:
        return FloatPart("fp32", reason=str(error))
    except KeyError as error:
        raise ArtifactError(f"{onnx}: its graph is damaged: nothing makes {error}") from error
    write_file(target, model)
    return FloatPart("fp16", single)


def input_peak(contract: InputContract) -> float:
    """The largest magnitude that a pixel, 0..255, has in the network's input."""
    return max(
        max(abs(mean), abs(255 - mean)) * abs(scale)
        for mean, scale in zip(contract.mean, contract.scale, strict=True)
    )
