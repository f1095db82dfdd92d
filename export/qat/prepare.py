"""From an FP32 file and its table to a network trained for INT8, as the same kinds of files.

The trained weights become an FP32 file of their own and the learned scales its table, so whatever
reads these two, the Q/DQ writer first, needs no change.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edge
from calibration.qdq import convolutions, shared_scales
from calibration.ranges import channel_ranges
from calibration.table import CalibrationTable
from edge.artifact import read_manifest
from edge.errors import ArtifactError, CalibrationError
from edge.files import sha256_of, write_file
from edge.optional import require
from edge.train.quantized_network import QuantizedNetwork, float_network
from export.graph.writer import attach_manifest
from export.int8.float_graph import float_graph

__all__ = ["Prepared", "prepare", "settled", "write_trained"]

Array = NDArray[np.float32]
_RANGE_IMAGES = 32


def settled(model: Any, amax: Mapping[str, float]) -> dict[str, float]:
    """Return thresholds that `insert_qdq` leaves as they are: shared until nothing changes."""
    before, after = dict(amax), shared_scales(model, amax)
    while after != before:
        before, after = after, shared_scales(model, after)
    return after


@dataclass(frozen=True, eq=False)
class Prepared:
    """What quantization-aware training starts from.

    Attributes:
        network: what learns; computes what the Q/DQ graph of the table computes.
        teacher: the FP32 network; it stays as it is.
        model: onnx `ModelProto` that `network` was read from: gains and biases of the table inside.
        source, table, keep: as given.
    """

    network: QuantizedNetwork
    teacher: QuantizedNetwork
    model: Any
    source: Path
    table: CalibrationTable
    keep: tuple[str, ...]

    def settle(self, amax: Mapping[str, float]) -> dict[str, float]:
        """Return learned thresholds as the exported graph will have them; see `settled`."""
        return settled(self.model, {**dict(self.table.amax), **amax})


def prepare(source: str | Path, table: CalibrationTable, *, keep: Collection[str] = ()) -> Prepared:
    """Return a network to train for INT8, which starts where `write_int8` ends.

    Args:
        source: the FP32 ONNX file of the table.
        table: its gains, biases and rounding are taken in.
        keep: convolutions that stay in floating point, by name.

    Raises:
        CalibrationError: the table belongs to another graph or contract, or misses a tensor.
        ArtifactError: `source` is no FP32 file of edge, or holds what cannot be trained.
        ValueError: `keep` names no convolution.
    """
    source = Path(source)
    manifest = read_manifest(source)
    if manifest.precision != "fp32":
        raise ArtifactError(f"{source}: {manifest.precision}; give the FP32 file it was made from")
    table.check(sha256_of(source), manifest.spec.contract.digest, str(source))
    plain = require("onnx").load(str(source))
    model = float_graph(plain, table, keep=keep)
    nodes = {node.name: node.input[0] for node in convolutions(model)}
    if unknown := sorted(set(keep) - set(nodes)):
        raise ValueError(f"no such convolution: {', '.join(unknown)}")
    amax = settled(model, dict(table.amax))
    missing = [n for n, tensor in nodes.items() if n not in keep and tensor not in amax]
    if missing:
        raise CalibrationError(f"{source}: no threshold for the input of {missing[0]}; recalibrate")
    network = QuantizedNetwork(model, amax, keep=keep)
    teacher = float_network(plain)
    return Prepared(network, teacher, model, source, table, tuple(keep))


def write_trained(
    prepared: Prepared,
    trained: QuantizedNetwork,
    target: str | Path,
    arrays: Sequence[Array],
    arguments: Mapping[str, Any] | None = None,
) -> CalibrationTable:
    """Write the trained weights as an FP32 file of their own, and return its table.

    Args:
        target: the FP32 ONNX file.
        arrays: network inputs, which show the tensors that fall below 0.
        arguments: recorded in the manifest.

    Raises:
        ArtifactError: `target` cannot be written.
    """
    onnx, target = require("onnx"), Path(target)
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    trained.store(model)
    manifest = read_manifest(prepared.source)
    recorded = dict(manifest.arguments) | {k: json.dumps(v) for k, v in (arguments or {}).items()}
    parent = sha256_of(prepared.source)
    attach_manifest(
        model, replace(manifest, parent_sha256=parent, arguments=tuple(recorded.items()))
    )
    write_file(target, model.SerializeToString())
    ranges = channel_ranges(target, (("", array) for array in arrays[:_RANGE_IMAGES]))
    return CalibrationTable(
        amax=tuple(prepared.settle(trained.amax()).items()),
        method="qat",
        graph_sha256=sha256_of(target),
        contract_digest=prepared.table.contract_digest,
        images=prepared.table.images,
        low=tuple((name, float(one.low.min())) for name, one in ranges.items()),
        hashes=prepared.table.hashes,
        recipe=("qat",),
        made_by=f"edge {edge.__version__}",
    )
