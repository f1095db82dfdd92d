"""Several artifacts over the same labelled images, with all that a bootstrap and a report need."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.data.coco import find_coco
from edge.data.datasets import Dataset, Item, load, match_classes, open_dataset
from edge.data.metrics import Metrics, evaluate_detections
from edge.detections import Detections
from edge.errors import DataError
from edge.measure.results import ClassResults, by_class
from edge.measure.slices import SIZES, sized
from edge.reporting import track
from edge.runtime.detector import Detector

__all__ = [
    "OPTIONS",
    "Accuracy",
    "accuracy",
    "clip",
    "data_digest",
    "detect",
    "labelled",
    "open_exact",
    "run_over",
    "score",
]

# A low score keeps the whole curve; an anchor counts for each of its classes, as in Darknet.
OPTIONS: dict[str, Any] = {"score": 0.005, "limit": 500, "multi_label": True}


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How right one artifact is.

    Attributes:
        metrics: COCO average precision.
        results, small: for the bootstrap; of all objects and of small ones.
        detections: by image, in the dataset's order.
        classes: of the model.
        backend: what ran it.
    """

    metrics: Metrics
    results: dict[str, ClassResults]
    small: dict[str, ClassResults]
    detections: list[Detections]
    classes: tuple[str, ...]
    backend: str


def labelled(data: str | Path, classes: Sequence[str], images: int | None = None) -> Dataset:
    """Open `data` and refuse what cannot be measured on before anything is run.

    Raises:
        DataError: no labels, or no class in common with the model.
    """
    dataset = open_dataset(data, classes, images, part="val")
    if dataset.kind == "images":
        raise DataError(f"{data}: images without labels; {_where_labels_lie(Path(data))}")
    match_classes(dataset.classes, classes)
    return dataset


def _where_labels_lie(folder: Path) -> str:
    above = folder.resolve().parent
    if folder.resolve().name == "images" and ((above / "labels").is_dir() or find_coco(above)):
        return f"they lie beside this folder, so give {above}"
    return (
        "there is nothing to compare with (YOLO labels/ or .txt beside the images, VOC "
        "Annotations/ and JPEGImages/, KITTI label_2/, or one COCO json)"
    )


def data_digest(dataset: Dataset) -> str:
    """sha256 over the images and labels of `dataset`; of built-in scenes over one rendered picture.

    Raises:
        DataError: an image cannot be read.
    """
    digest = hashlib.sha256("\n".join(dataset.classes).encode())
    for number, item in enumerate(dataset.items):
        if item.seed is None:
            try:
                digest.update(hashlib.sha256(item.image.read_bytes()).digest())
            except OSError as error:
                raise DataError(f"{item.image}: cannot be read: {error.strerror}") from error
        else:
            # The renderer's own changes show in any picture.
            digest.update(str(item.seed).encode() if number else load(item)[0].tobytes())
        for column in (item.xyxy, item.class_id, item.crowd, item.ignore):
            digest.update(column.tobytes())
    return digest.hexdigest()


def clip(found: Detections, hw: tuple[int, ...]) -> Detections:
    """Labels end at the image's edge, and so must boxes that are compared with them."""
    return replace(found, xyxy=np.clip(found.xyxy, 0, (hw[1], hw[0], hw[1], hw[0])))


def run_over(
    detectors: Sequence[Detector],
    dataset: Dataset,
    skipped: list[str] | None = None,
    what: str = "detecting",
) -> tuple[list[list[Detections]], Dataset]:
    """Detections by detector and image, and the dataset in pixels.

    Args:
        skipped: receives a line for each image that cannot be read; None refuses such images.

    Raises:
        DataError: an image cannot be read, or none.
    """
    found: list[list[Detections]] = [[] for _ in detectors]
    items: list[Item] = []
    for item in track(dataset.items, what, len(dataset)):
        try:
            frame, known = load(item)
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        # With its seed a scene can be rendered again, for the report.
        items.append(replace(known, seed=item.seed))
        for kept, run in zip(found, detectors, strict=True):
            kept.append(clip(run(frame), frame.shape[:2]))
    if not items:
        first = skipped[0] if skipped else "it is empty"
        raise DataError(f"{dataset.source}: no image can be used; the first: {first}")
    return found, replace(dataset, items=tuple(items))


def open_exact(artifact: str | Path, threads: int | None = None) -> Detector:
    """A detector whose Q/DQ graph runs as TensorRT computes it, not as the CPU's kernels round it.

    Raises:
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`.
    """
    return Detector.open(artifact, **OPTIONS, threads=threads, exact=True)


def detect(
    artifact: str | Path, dataset: Dataset, threads: int | None = None
) -> tuple[list[Detections], Dataset, Detector]:
    """Detections in every image, the dataset in pixels, and the (closed) detector.

    Raises:
        DataError: an image cannot be read: a gate compares the same images or none.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`.
    """
    with open_exact(artifact, threads) as detector:
        found, pixels = run_over([detector], dataset, what=f"evaluating {Path(artifact).name}")
    return found[0], pixels, detector


def score(
    found: list[Detections], dataset: Dataset, classes: tuple[str, ...], backend: str = ""
) -> Accuracy:
    """Judge detections against a dataset in pixels.

    Raises:
        DataError: no boxes.
    """
    metrics = evaluate_detections(dataset, found, classes)
    return Accuracy(
        metrics,
        by_class(metrics.matches, len(dataset)),
        sized(dataset, found, classes, *SIZES["small"]),
        found,
        classes,
        backend,
    )


def accuracy(artifact: str | Path, dataset: Dataset, threads: int | None = None) -> Accuracy:
    """Run `artifact` over `dataset` and judge what it finds; raises as `detect` and `score`."""
    found, pixels, detector = detect(artifact, dataset, threads)
    return score(found, pixels, detector.spec.classes, detector.backend.name)
