"""How right a detector is: `edge evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.table import say, show, steps
from edge.artifact import write_atomic
from edge.data.datasets import Dataset, Item, load, match_classes, open_dataset
from edge.data.metrics import Metrics, evaluate_detections, voc_ap, voc_curves
from edge.detections import Detections
from edge.errors import DataError
from edge.runtime.backend import Backend, cpu_options, open_backend
from edge.runtime.detector import Detector
from edge.spec import InputContract

__all__ = ["evaluate", "print_evaluation"]


def evaluate(
    artifact: str | Path,
    data: str | Path = "scenes",
    *,
    images: int | None = None,
    score: float = 0.005,
    iou: float = 0.45,
    limit: int = 500,
    multi_label: bool = True,
    threads: int | None = None,
    exact: bool = True,
    try_contracts: bool = False,
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Run the artifact over labelled images and measure its average precision.

    Args:
        data: as `open_dataset` takes it; `scenes` are fresh ones of the built-in world.
        images: take at most so many, spread evenly.
        score, iou, limit: of the detector; a low score keeps the whole curve.
        multi_label: let an anchor count for each of its classes, as Darknet's own evaluation does.
        threads: of the CPU backend.
        exact: run a Q/DQ graph as TensorRT computes it, not on the CPU's own INT8 kernels.
        try_contracts: measure with letterbox and with stretch and tell which fits the weights.
        json_path: where to write the result too.

    Returns:
        `artifact`, `backend`, `images`, `map50`, `map50_95`, `by_class`, `by_size` (0..1), how it
        was measured, and what was left out.

    Raises:
        DataError: no labels, no class in common, or no readable image.
        ArtifactError, EngineMismatch, MissingDependency: as `open_backend`.
    """
    backend_options = cpu_options(artifact, threads=threads, exact=exact)
    options: dict[str, Any] = {
        "score": score,
        "iou": iou,
        "limit": limit,
        "multi_label": multi_label,
    }
    with open_backend(artifact, **backend_options) as backend:
        spec = backend.manifest.spec
        dataset = _labelled(data, spec.classes, images)
        contracts = [spec.contract, *(_others(spec.contract) if try_contracts else ())]
        detectors = [Detector(backend, contract=each, **options) for each in contracts]
        found, dataset, skipped = _detect(detectors, dataset)
        figures = [evaluate_detections(dataset, each, spec.classes) for each in found]
        result = {
            "artifact": str(artifact),
            **_facts(backend),
            **figures[0].to_json(),
            "voc": _voc(dataset, found[0], spec.classes),
            "data": dataset.source,
            **options,
            "skipped": skipped,
            "dropped": dataset.dropped,
        }
    if try_contracts:
        result["contracts"] = _compared(contracts, figures)
    if json_path is not None:
        write_atomic(Path(json_path), json.dumps(result, indent=1).encode())
    return result


def _facts(backend: Backend) -> dict[str, Any]:
    manifest = backend.manifest
    return {
        "backend": backend.name,
        "precision": manifest.precision,
        "labels": list(manifest.labels),
        "resize": manifest.spec.contract.resize,
    }


def _labelled(data: str | Path, classes: Sequence[str], images: int | None) -> Dataset:
    """The dataset, refused before an hour's work instead of after it."""
    dataset = open_dataset(data, classes, images)
    if dataset.kind == "images":
        raise DataError(f"{data}: images without labels; there is nothing to compare with")
    match_classes(dataset.classes, classes)
    return dataset


def _others(own: InputContract) -> list[InputContract]:
    return [replace(own, resize="stretch" if own.resize == "letterbox" else "letterbox")]


def _detect(
    detectors: Sequence[Detector], dataset: Dataset
) -> tuple[list[list[Detections]], Dataset, list[str]]:
    """Detections by detector, the dataset in pixels, and what could not be read."""
    found: list[list[Detections]] = [[] for _ in detectors]
    items: list[Item] = []
    skipped: list[str] = []
    for item in steps(dataset.items, "detecting", len(dataset)):
        try:
            frame, labelled = load(item)
        except DataError as error:
            skipped.append(str(error))
            continue
        items.append(labelled)
        for kept, run in zip(found, detectors, strict=True):
            kept.append(_clip(run(frame), frame.shape[:2]))
    if not items:
        raise DataError(f"{dataset.source}: no image can be used; the first: {skipped[0]}")
    return found, replace(dataset, items=tuple(items)), skipped


def _clip(found: Detections, hw: tuple[int, ...]) -> Detections:
    """Labels end at the image's edge, and so must boxes that are compared with them."""
    return replace(found, xyxy=np.clip(found.xyxy, 0, (hw[1], hw[0], hw[1], hw[0])))


def _voc(dataset: Dataset, found: list[Detections], classes: Sequence[str]) -> dict[str, float]:
    curves = voc_curves(dataset, found, classes).values()
    return {
        "map50_area": round(float(np.mean([voc_ap(*curve) for curve in curves])), 6),
        "map50_11_point": round(
            float(np.mean([voc_ap(*curve, method="11-point") for curve in curves])), 6
        ),
    }


def _compared(contracts: Sequence[InputContract], figures: Sequence[Metrics]) -> dict[str, Any]:
    table: dict[str, Any] = {
        contract.resize: {"map50": one.map50, "map50_95": one.map50_95}
        for contract, one in zip(contracts, figures, strict=True)
    }
    return {**table, "fits": max(table, key=lambda resize: table[resize]["map50_95"])}


def print_evaluation(result: dict[str, Any], classes: int = 5) -> None:
    """The result as tables on stdout: overall, by size, and the best and worst `classes`."""
    name = ", ".join([Path(result["artifact"]).name, *result["labels"]])
    rows = [("all", _percent(result["map50"]), _percent(result["map50_95"]))]
    rows += [
        (size, _percent(one["map50"]), _percent(one["map50_95"]))
        for size, one in result["by_size"].items()
    ]
    title = f"{name} on {result['images']} images of {result['data']}, {result['backend']}"
    show(title, ("objects", "mAP@.5 %", "mAP@.5:.95 %"), rows)
    _print_classes(result["by_class"], classes)
    if "contracts" in result:
        _print_contracts(result)
    _print_left_out(result)


def _print_classes(by_class: dict[str, dict[str, float]], count: int) -> None:
    ranked = sorted(by_class.items(), key=lambda entry: -entry[1]["ap50"])
    if len(ranked) > 2 * count:
        title = f"best and worst {count} of {len(ranked)} classes"
        ranked = ranked[:count] + ranked[-count:]
    else:
        title = "classes"
    rows = (
        (name, _percent(one["ap50"]), _percent(one["ap50_95"]), str(one["boxes"]))
        for name, one in ranked
    )
    show(title, ("class", "AP@.5 %", "AP@.5:.95 %", "objects"), rows)


def _print_contracts(result: dict[str, Any]) -> None:
    table = {key: value for key, value in result["contracts"].items() if key != "fits"}
    rows = [(key, _percent(v["map50"]), _percent(v["map50_95"])) for key, v in table.items()]
    show("input contract", ("resize", "mAP@.5 %", "mAP@.5:.95 %"), rows)
    fits = result["contracts"]["fits"]
    advice = "as the artifact says" if fits == result["resize"] else f"export with --resize {fits}"
    say(f"the weights fit {fits}: {advice}")


def _print_left_out(result: dict[str, Any]) -> None:
    for reason, count in result["dropped"].items():
        say(f"{count} x {reason}")
    for text in result["skipped"][:5]:
        say(f"skipped: {text}")
    if len(result["skipped"]) > 5:
        say(f"skipped: {len(result['skipped']) - 5} more")
    if result["left_out"]:
        named = ", ".join(f"{name} ({boxes})" for name, boxes in result["left_out"].items())
        say(f"classes that the model does not have: {named}")


def _percent(share: float) -> str:
    return f"{share * 100:.2f}"
