"""`edge verify A B`: are two artifacts the same detector, and if not, from which layer on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import read_manifest
from edge.data.datasets import load, open_dataset
from edge.detections import Detections
from edge.errors import ArtifactError
from edge.files import write_json
from edge.measure.noise import (
    LIMITS_DB,
    Network,
    agreement,
    compare_tensors,
    first_departure,
    open_network,
)
from edge.optional import require
from edge.runtime.ops_cpu import Decoder, Preprocessor
from edge.spec import ModelSpec

__all__ = ["verify"]

_ARTIFACTS = (".onnx", ".engine")


def verify(
    first: str | Path,
    second: str | Path,
    data: str | Path = "scenes",
    *,
    images: int = 8,
    limit_db: float | None = None,
    score: float = 0.25,
    names: str | Path | None = None,
    resize: str | None = None,
    threads: int | None = None,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Compare two networks of one model, tensor by tensor and box by box.

    Args:
        first, second: .onnx or .engine, or for one of them what torch runs: a zoo name, .cfg,
            .npz or .safetensors.
        data: images, as `open_dataset` takes them; labels are not needed.
        images: at most so many, spread evenly.
        limit_db: signal to noise below which a tensor departs; by default the lower precision's.
        score: detections below it are not compared.
        names, resize: of a torch model.

    Returns:
        `first`, `second`, `images`, `limit_db`, `tensors` (name, db, own_db in the graph's
        order), `departs` (name or None), `worst` (where most noise arises), `agreement`, `ok`.

    Raises:
        ArtifactError: not two networks of one model.
    """
    spec = _spec(first, second)
    options = {"names": names, "resize": resize}
    networks = [_open(one, spec, options, threads) for one in (first, second)]
    arrays = list(_inputs(spec, data, images))
    noises = compare_tensors(networks[0], networks[1], (array for array, _ in arrays))
    if limit_db is None:
        limit_db = min(LIMITS_DB[one.precision] for one in networks)
    departs = first_departure(noises, limit_db)
    worst = min(noises, key=lambda one: one.own_db)
    found = [_detect(one, spec, arrays, score) for one in networks]
    same = agreement(found[0], found[1], score)
    result = {
        "first": str(first),
        "second": str(second),
        "images": len(arrays),
        "limit_db": limit_db,
        "tensors": [asdict(one) for one in noises],
        "departs": None if departs is None else departs.name,
        "worst": worst.name,
        "agreement": {k: v if v == v else None for k, v in asdict(same).items()},
        "ok": departs is None,
    }
    write_json(result, json_path)
    return result


def _spec(first: str | Path, second: str | Path) -> ModelSpec:
    for one in (first, second):
        if Path(one).suffix in _ARTIFACTS:
            return read_manifest(one).spec
    raise ArtifactError(f"{first}, {second}: one of the two must be an .onnx or an .engine")


def _open(
    model: str | Path, spec: ModelSpec, options: dict[str, Any], threads: int | None
) -> Network:
    if Path(model).suffix in _ARTIFACTS:
        return open_network(model, threads)
    given = {key: value for key, value in options.items() if value is not None}
    given.setdefault("resize", spec.contract.resize)
    network: Network = require("export.verify_torch").open_torch(model, **given)
    return network


def _inputs(
    spec: ModelSpec, data: str | Path, images: int
) -> Iterator[tuple[NDArray[np.float32], Any]]:
    preprocess = Preprocessor(spec.contract)
    for item in open_dataset(data, spec.classes, images).items:
        tensor, fit = preprocess(load(item)[0])
        yield tensor.copy(), fit


def _detect(
    network: Network, spec: ModelSpec, arrays: list[tuple[NDArray[np.float32], Any]], score: float
) -> list[Detections]:
    decode = Decoder(spec)
    found = []
    for array, fit in arrays:
        tensors = network.run(array)
        boxes = decode([tensors[name] for name in spec.tensors], score)
        boxes = decode.suppress(boxes, 0.45, 300)
        found.append(Detections(fit.to_source(boxes.xyxy), boxes.score, boxes.class_id))
    return found
