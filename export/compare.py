"""Tell whether two artifacts are the same detector, and if not, from which layer on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.graph import Graph
from edge.artifact import read_manifest
from edge.built_in import BUILT_IN, PACKAGED
from edge.data.datasets import load, open_dataset
from edge.detections import Detections
from edge.edgez.graph import cached_package_onnx
from edge.errors import ArtifactError
from edge.letterbox import Letterbox
from edge.measure.noise import (
    LIMITS_DB,
    Agreement,
    Network,
    TensorNoise,
    agreement,
    compare_tensors,
    first_departure,
    open_network,
)
from edge.options import count, option
from edge.runtime.ops_cpu import Decoder, Preprocessor
from edge.spec import ModelSpec

__all__ = ["Verification", "VerifyOptions", "verify"]

_ARTIFACTS = (".onnx", ".engine")


@dataclass(frozen=True)
class VerifyOptions:
    """What `edge verify` takes besides the two networks.

    Attributes:
        data: pictures to compare on, whose labels are not needed; left out, built-in scenes
        images: compare on at most this many pictures, spread evenly
        limit_db: signal to noise in dB below which a tensor departs; left out, 12 for INT8, 30
            for FP16 and 80 for FP32, by the lower precision of the two
        names: class names of a torch model, one on a line
        resize: how the pictures of a torch model were resized in training
        threads: CPU threads of onnxruntime; left out, every core
        score: detections below it are not compared
    """

    data: str | Path = option("scenes", metavar="DIR")
    images: int = option(8, metavar="N", check=count)
    limit_db: float | None = option(None, metavar="DB")
    names: str | Path | None = option(None, metavar="F")
    resize: Literal["letterbox", "stretch"] | None = None
    threads: int | None = option(None, metavar="N", check=count)
    score: float = option(0.25, hidden=True)


@dataclass(frozen=True)
class Verification:
    """How alike two networks are.

    Attributes:
        first, second: the two.
        images: how many pictures they were compared on.
        limit_db: below it a tensor departs.
        tensors: noise of each, in the order of the graph.
        departs: the first tensor below the limit; None where there is none.
        worst: the tensor where most noise arises.
        agreement: of the boxes.
    """

    first: str
    second: str
    images: int
    limit_db: float
    tensors: tuple[TensorNoise, ...]
    departs: str | None
    worst: str
    agreement: Agreement

    @property
    def ok(self) -> bool:
        """Whether no tensor departs."""
        return self.departs is None

    def to_json(self) -> dict[str, Any]:
        """The result as `edge verify --json` writes it."""
        alike = {k: None if v != v else v for k, v in asdict(self.agreement).items()}
        return {**vars(self), "agreement": alike, "ok": self.ok}


def verify(
    first: str | Path, second: str | Path, options: VerifyOptions | None = None
) -> Verification:
    """Compare two networks of one model, tensor by tensor and box by box.

    Args:
        first, second: .onnx, .engine, .edgez or a built-in name, or for one of them what torch
            runs: a zoo name, .cfg, .npz or .safetensors.

    Raises:
        ArtifactError: not two networks of one model.
    """
    options = options or VerifyOptions()
    opened = [_opened(one) for one in (first, second)]
    if not any(Path(one).suffix in _ARTIFACTS for one in opened):
        raise ArtifactError(f"{first}, {second}: one of the two must be an .onnx or an .engine")
    specs = [_known_spec(one) for one in opened]
    known = specs[0] or specs[1]
    networks = []
    for index, one in enumerate(opened):
        network, specs[index] = _open(one, specs[index], known, options)
        networks.append(network)
    spec = _common_spec(first, second, specs)
    arrays = list(_inputs(spec, options.data, options.images))
    noises = compare_tensors(networks[0], networks[1], (array for array, _ in arrays))
    limit_db = options.limit_db
    if limit_db is None:
        limit_db = min(LIMITS_DB[one.precision] for one in networks)
    departs = first_departure(noises, limit_db)
    found = [_detect(one, spec, arrays, options.score) for one in networks]
    return Verification(
        first=str(first),
        second=str(second),
        images=len(arrays),
        limit_db=limit_db,
        tensors=tuple(noises),
        departs=None if departs is None else departs.name,
        worst=min(noises, key=lambda one: one.own_db).name,
        agreement=agreement(found[0], found[1], options.score),
    )


def _opened(model: str | Path) -> Graph | Path:
    """The artifact that a built-in name or a package stands for; ONNX files are opened."""
    path = {**BUILT_IN, **PACKAGED}.get(str(model), Path(model))
    if path.suffix == ".edgez":
        path = cached_package_onnx(path)
    return Graph(path) if path.suffix == ".onnx" else path


def _known_spec(model: Graph | str | Path) -> ModelSpec | None:
    """What an artifact's manifest says; None for what torch runs."""
    if isinstance(model, Graph):
        return model.manifest.spec
    return read_manifest(model).spec if Path(model).suffix in _ARTIFACTS else None


def _open(
    model: Graph | str | Path,
    spec: ModelSpec | None,
    other: ModelSpec | None,
    options: VerifyOptions,
) -> tuple[Network, ModelSpec]:
    if spec is not None:
        return open_network(model, options.threads), spec
    from export.verify_torch import open_torch

    resize = options.resize or (None if other is None else other.contract.resize)
    return open_torch(Path(model), names=options.names, resize=resize)


def _common_spec(
    first: str | Path, second: str | Path, specs: Sequence[ModelSpec | None]
) -> ModelSpec:
    """The spec of both, whose heads must be alike: they are decoded in one way."""
    mine, theirs = specs
    if mine is None or theirs is None:
        raise ArtifactError(f"{first}, {second}: one of the two says nothing of its heads")
    for what, one, other in (
        ("input (height, width)", mine.contract.hw, theirs.contract.hw),
        ("pre-processing", mine.contract, theirs.contract),
        ("number of classes", len(mine.classes), len(theirs.classes)),
        ("outputs", mine.tensors, theirs.tensors),
        ("heads", mine.heads, theirs.heads),
    ):
        if one != other:
            shown = f" ({one}, here {other})" if isinstance(one, (int, tuple)) else ""
            shown = "" if what == "heads" else shown
            raise ArtifactError(
                f"{second}: its {what} {'are' if what in ('outputs', 'heads') else 'is'} not that "
                f"of {first}{shown}; edge verify compares two artifacts of one model. How two "
                "different detectors compare, edge evaluate --against tells on labelled pictures"
            )
    return mine


def _inputs(
    spec: ModelSpec, data: str | Path, images: int
) -> Iterator[tuple[NDArray[np.float32], Letterbox]]:
    preprocess = Preprocessor(spec.contract)
    for item in open_dataset(data, spec.classes, images).items:
        tensor, fit = preprocess(load(item)[0])
        yield tensor.copy(), fit


def _detect(
    network: Network,
    spec: ModelSpec,
    arrays: list[tuple[NDArray[np.float32], Letterbox]],
    score: float,
) -> list[Detections]:
    decode = Decoder(spec)
    found = []
    for array, fit in arrays:
        tensors = network.run(array)
        boxes = decode([tensors[name] for name in spec.tensors], score)
        boxes = decode.suppress(boxes, 0.45, 300)
        xyxy = fit.to_source(boxes.xyxy).astype(np.float32)
        found.append(Detections(xyxy, boxes.score, boxes.class_id))
    return found
