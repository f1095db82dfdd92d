"""Average precision of an artifact on labelled images, and what else such a run tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.data.items import Dataset
from edge.data.metrics import (
    ClassAccuracy,
    SizeAccuracy,
    evaluate_detections,
    voc_ap,
    voc_curves,
)
from edge.data.overlap import calibrated_on, overlap, refuse_overlap
from edge.detections import Detections
from edge.errors import ArtifactError
from edge.measure.accuracy import labelled, run_over
from edge.measure.confusion import OperatingPoint, operating_point, wrong_names
from edge.measure.contracts import (
    ContractComparison,
    Suspicion,
    compare_contracts,
    other_contract,
    suspicion,
)
from edge.measure.slices import ScoreChange, Slice, compare_slices
from edge.options import count, option, share
from edge.reporting import say
from edge.runtime.backend import Backend, open_backend
from edge.runtime.detector import SCORE, Detector
from edge.spec import ModelSpec

__all__ = ["Against", "EvaluateOptions", "EvaluateResult", "VocAccuracy", "evaluate"]

# One in this many images that look like those of the calibration is no chance.
_MANY = 3


@dataclass(frozen=True)
class EvaluateOptions:
    """How `evaluate` measures.

    Attributes:
        images: use at most N images, spread evenly over the set
        score: leave out detections at or below this score; a low one keeps the whole curve
        iou: IoU above which two boxes of one class count as one object; left out: what the
            network was made for, or 0.45
        multi_label: keep only the best class of a box, as a camera shows, instead of each of its
            classes, as Darknet's own evaluation does; `multi_label=False` in Python
        against: compare with another artifact of the model on the same images: by size, by class,
            and by how scores moved
        try_contracts: measure with letterbox and with stretch, and say which fits the weights
        allow_overlap: evaluate although the artifact was calibrated on some of these images
        threads: CPU threads of onnxruntime; left out: every core
        exact: run INT8 on onnxruntime's own kernels, which round a little differently, instead of
            computing the Q/DQ graph as TensorRT does; `exact=False` in Python
        limit: detections per image at most
        rearrange: arrange a Q/DQ graph for onnxruntime; False leaves one of another tool as it is
    """

    images: int | None = option(None, metavar="N", check=count)
    score: float = option(0.005, metavar="S", check=share)
    iou: float | None = option(None, metavar="I", check=share)
    multi_label: bool = option(True, flag="--best-class")
    against: str | Path | None = option(None, metavar="B")
    try_contracts: bool = False
    allow_overlap: bool = False
    threads: int | None = option(None, metavar="N", check=count)
    exact: bool = option(True, flag="--fast-int8")
    limit: int = option(500, hidden=True)
    rearrange: bool = option(True, hidden=True)


@dataclass(frozen=True)
class VocAccuracy:
    """Mean average precision at IoU 0.5 by Pascal VOC's two definitions, 0..1."""

    map50_area: float
    map50_11_point: float


@dataclass(frozen=True)
class Against:
    """Another artifact on the same images: `before` is the other one, `now` the one evaluated."""

    artifact: str
    slices: dict[str, Slice]
    scores: ScoreChange


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` found.

    Attributes:
        backend: what ran the artifact.
        labels: facts that every report must repeat, such as `random weights`.
        resize: of the input contract that was used.
        images: how many were measured on.
        map50, map50_95: COCO's mean average precision at IoU 0.5, and its mean over 0.5 to 0.95.
        by_class, by_size: the same by class, and by COCO's ranges of object sizes.
        left_out: classes of the labels that the model does not have, with their boxes.
        score, iou, limit, multi_label: of the detector.
        skipped: a line for each image that could not be read.
        dropped: how often each rule had to change or drop a label.
        calibrated_on: how many of the images are, or look like, calibration images.
        suspicious_contract: how the other way of resizing does better on a few images, if it does.
        operating_point: precision, recall, F1 and the confusion of classes at the score that the
            artifact is used with.
        warnings: what makes the figures doubtful, such as many images without labels.
        against, contracts: what `EvaluateOptions` of that name asked for, else None.
    """

    artifact: str
    backend: str
    precision: str
    labels: tuple[str, ...]
    resize: str
    images: int
    map50: float
    map50_95: float
    by_class: dict[str, ClassAccuracy]
    by_size: dict[str, SizeAccuracy]
    left_out: dict[str, int]
    voc: VocAccuracy
    data: str
    score: float
    iou: float
    limit: int
    multi_label: bool
    skipped: tuple[str, ...]
    dropped: dict[str, int]
    calibrated_on: int
    suspicious_contract: Suspicion | None
    against: Against | None = None
    contracts: ContractComparison | None = None
    warnings: tuple[str, ...] = ()
    operating_point: OperatingPoint | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; what was not asked for is left out."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        asked = ("against", "contracts")
        return {k: v for k, v in found.items() if k not in asked or v is not None}


def evaluate(
    artifact: str | Path,
    data: str | Path = "scenes",
    options: EvaluateOptions | None = None,
) -> EvaluateResult:
    """Run an artifact over labelled images and measure its average precision.

    Args:
        data: as `open_dataset` takes it; `scenes` are fresh ones of the built-in world.

    Raises:
        DataError: no labels, no class in common, or no readable image.
        CalibrationError: the artifact was calibrated on these very images, or one in three looks
            like them.
        ArtifactError, EngineMismatch, MissingDependency: as `open_backend`.
    """
    asked = options or EvaluateOptions()
    thresholds: dict[str, Any] = {
        "score": asked.score,
        "iou": asked.iou,
        "limit": asked.limit,
        "multi_label": asked.multi_label,
    }
    with ExitStack() as stack:
        backend = stack.enter_context(
            open_backend(
                artifact,
                threads=asked.threads,
                exact=asked.exact and asked.rearrange,
                rearrange=asked.rearrange,
            )
        )
        manifest = backend.manifest
        spec = manifest.spec
        dataset = labelled(data, spec.classes, asked.images)
        in_calibration = _in_calibration(backend, dataset, str(artifact), asked.allow_overlap)
        contracts = [spec.contract]
        if asked.try_contracts:
            contracts.append(other_contract(spec.contract))
        detectors = [Detector(backend, contract=each, **thresholds) for each in contracts]
        if asked.against is not None:
            rival = _open_rival(stack, asked.against, spec, asked.threads)
            detectors.append(Detector(rival, **thresholds))
        skipped: list[str] = []
        found, dataset = run_over(detectors, dataset, skipped)
        figures = [
            evaluate_detections(dataset, each, spec.classes) for each in found[: len(contracts)]
        ]
        doubt = None if asked.try_contracts else suspicion(backend, dataset, found[0], **thresholds)
    used = manifest.score if manifest.score is not None else SCORE
    point = operating_point(dataset, found[0], spec.classes, max(used, asked.score))
    swapped = wrong_names(point)
    return EvaluateResult(
        artifact=str(artifact),
        backend=backend.name,
        precision=manifest.precision,
        labels=manifest.labels,
        resize=spec.contract.resize,
        images=figures[0].images,
        map50=figures[0].map50,
        map50_95=figures[0].map50_95,
        by_class=figures[0].by_class,
        by_size=figures[0].by_size,
        left_out=figures[0].left_out,
        voc=_voc(dataset, found[0], spec.classes),
        data=dataset.source,
        score=asked.score,
        iou=detectors[0].iou,
        limit=asked.limit,
        multi_label=asked.multi_label,
        skipped=tuple(skipped),
        dropped=dataset.dropped,
        calibrated_on=in_calibration,
        suspicious_contract=doubt,
        against=None
        if asked.against is None
        else _against(asked.against, dataset, found[-1], found[0], spec.classes),
        contracts=compare_contracts(contracts, figures) if asked.try_contracts else None,
        warnings=dataset.warnings if swapped is None else (*dataset.warnings, swapped),
        operating_point=point,
    )


def _in_calibration(backend: Backend, dataset: Dataset, artifact: str, allowed: bool) -> int:
    """Count the images that the artifact's scales were made from, or that look alike.

    Frames of one series look alike, and series may resemble each other across an honest split by
    whole series: a few are reported, not refused. One in three or more is no coincidence.
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


def _open_rival(
    stack: ExitStack, against: str | Path, spec: ModelSpec, threads: int | None
) -> Backend:
    backend = stack.enter_context(open_backend(against, threads=threads, exact=True))
    if backend.manifest.spec.classes != spec.classes:
        raise ArtifactError(
            f"{against}: its classes are not those of {spec.name}; compare two artifacts of one "
            "model"
        )
    return backend


def _against(
    artifact: str | Path,
    dataset: Dataset,
    before: Sequence[Detections],
    now: Sequence[Detections],
    classes: Sequence[str],
) -> Against:
    found = compare_slices(dataset, before, now, classes)
    return Against(str(artifact), found.slices, found.scores)


def _voc(dataset: Dataset, found: Sequence[Detections], classes: Sequence[str]) -> VocAccuracy:
    curves = voc_curves(dataset, found, classes).values()
    return VocAccuracy(
        map50_area=round(float(np.mean([voc_ap(*curve) for curve in curves])), 6),
        map50_11_point=round(
            float(np.mean([voc_ap(*curve, method="11-point") for curve in curves])), 6
        ),
    )
