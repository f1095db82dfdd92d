"""`edge evaluate` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edge.data.items import Dataset
from edge.data.metrics import evaluate_detections, voc_ap, voc_curves
from edge.data.overlap import calibrated_on, overlap, refuse_overlap
from edge.detections import Detections
from edge.errors import ArtifactError
from edge.files import write_json
from edge.measure.accuracy import labelled, run_over
from edge.measure.contracts import compare_contracts, other_contract, suspicion
from edge.measure.slices import compare_slices
from edge.reporting import say
from edge.runtime.backend import Backend, open_backend
from edge.runtime.detector import Detector
from edge.spec import ModelSpec

__all__ = ["evaluate"]

# One in so many images that look like those of the calibration.
_MANY = 3


def evaluate(
    artifact: str | Path,
    data: str | Path = "scenes",
    *,
    images: int | None = None,
    score: float = 0.005,
    iou: float | None = None,
    limit: int = 500,
    multi_label: bool = True,
    threads: int | None = None,
    exact: bool = True,
    foreign: bool = False,
    against: str | Path | None = None,
    try_contracts: bool = False,
    allow_overlap: bool = False,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Run the artifact over labelled images and measure its average precision.

    Args:
        data: as `open_dataset` takes it; `scenes` are fresh ones of the built-in world.
        images: take at most so many, spread evenly.
        score, iou, limit: of the `Detector`; a low score keeps the whole curve.
        multi_label: let an anchor count for each of its classes, as Darknet's own evaluation does.
        threads: of the CPU backend.
        exact: run a Q/DQ graph as TensorRT computes it, not on the CPU's own INT8 kernels.
        foreign: leave a Q/DQ graph of another tool to onnxruntime, as it is.
        against: another artifact of the model, compared on the same images, slice by slice.
        try_contracts: measure with letterbox and with stretch and tell which fits the weights.
        allow_overlap: go on though images that the artifact was calibrated on are among them.
        json_path: where to write the result too.

    Returns:
        `artifact`, `backend`, `images`, `map50`, `map50_95`, `by_class`, `by_size` (0..1), how it
        was measured, what was left out, and `suspicious_contract` (None, or how the other way of
        resizing does better on a few images); with `against`, `against` (`artifact`, `slices`,
        `scores`, see `compare_slices`).

    Raises:
        DataError: no labels, no class in common, or no readable image.
        CalibrationError: the artifact was calibrated on these very images, or one in three is like
            them.
        ArtifactError, EngineMismatch, MissingDependency: as `open_backend`.
    """
    cpu: dict[str, Any] = {
        "threads": threads,
        "exact": exact and not foreign,
        "rearrange": not foreign,
    }
    options: dict[str, Any] = {
        "score": score,
        "iou": iou,
        "limit": limit,
        "multi_label": multi_label,
    }
    with ExitStack() as stack:
        backend = stack.enter_context(open_backend(artifact, **cpu))
        spec = backend.manifest.spec
        dataset = labelled(data, spec.classes, images)
        seen = _seen(backend, dataset, str(artifact), allow_overlap)
        contracts = [spec.contract, *([other_contract(spec.contract)] if try_contracts else [])]
        detectors = [Detector(backend, contract=each, **options) for each in contracts]
        if against is not None:
            detectors.append(_rival(stack, against, spec, options, threads))
        skipped: list[str] = []
        found, dataset = run_over(detectors, dataset, skipped)
        figures = [
            evaluate_detections(dataset, each, spec.classes) for each in found[: len(contracts)]
        ]
        result = {
            "artifact": str(artifact),
            **_facts(backend),
            **figures[0].to_json(),
            "voc": _voc(dataset, found[0], spec.classes),
            "data": dataset.source,
            **options,
            "iou": detectors[0].iou,
            "skipped": skipped,
            "dropped": dataset.dropped,
            "calibrated_on": seen,
            "suspicious_contract": None
            if try_contracts
            else suspicion(backend, dataset, found[0], options),
        }
    if against is not None:
        compared = compare_slices(dataset, found[-1], found[0], spec.classes)
        result["against"] = {"artifact": str(against), **compared}
    if try_contracts:
        result["contracts"] = compare_contracts(contracts, figures)
    write_json(result, json_path)
    return result


def _seen(backend: Backend, dataset: Dataset, artifact: str, allowed: bool) -> int:
    """How many of the images the artifact's scales were made from, or look alike.

    Frames of one series look alike, and series may resemble each other across an honest split by
    whole series: those are told, not refused. One in three or more is no chance.
    """
    hashes, digests = calibrated_on(backend.manifest)
    if not hashes and not digests:
        return 0
    found = overlap(hashes, dataset, digests)
    if not allowed and (any(one.exact for one in found) or _MANY * len(found) >= len(dataset)):
        refuse_overlap(found, artifact, dataset.source)
    if found:
        say(
            f"{len(found)} of {len(dataset)} images are, or look like, calibration images of "
            f"{artifact}: its figures may flatter it"
        )
    return len(found)


def _rival(
    stack: ExitStack,
    against: str | Path,
    spec: ModelSpec,
    options: dict[str, Any],
    threads: int | None,
) -> Detector:
    backend = stack.enter_context(open_backend(against, threads=threads, exact=True))
    if backend.manifest.spec.classes != spec.classes:
        raise ArtifactError(f"{against}: its classes are not those of {spec.name}")
    return Detector(backend, **options)


def _facts(backend: Backend) -> dict[str, Any]:
    manifest = backend.manifest
    return {
        "backend": backend.name,
        "precision": manifest.precision,
        "labels": list(manifest.labels),
        "resize": manifest.spec.contract.resize,
    }


def _voc(dataset: Dataset, found: list[Detections], classes: Sequence[str]) -> dict[str, float]:
    curves = voc_curves(dataset, found, classes).values()
    return {
        "map50_area": round(float(np.mean([voc_ap(*curve) for curve in curves])), 6),
        "map50_11_point": round(
            float(np.mean([voc_ap(*curve, method="11-point") for curve in curves])), 6
        ),
    }
