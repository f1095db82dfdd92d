"""Is the input contract of an artifact the one that its weights were trained with?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edge.data.items import Dataset, thin
from edge.data.metrics import Metrics
from edge.detections import Detections
from edge.errors import DataError
from edge.measure.accuracy import run_over
from edge.measure.slices import compare_slices
from edge.runtime.backend import Backend
from edge.runtime.detector import Detector
from edge.spec import InputContract, ModelSpec

__all__ = ["compare_contracts", "other_contract", "suspicion"]

# So few tell 10 points apart, and take seconds.
_IMAGES = 32
# mAP@.5 by which the other contract must be better, beside its 95 % interval.
_MARGIN = 0.02
# Sides of picture and input as alike as this look the same either way.
_ALIKE = 1.05


def other_contract(own: InputContract) -> InputContract:
    """`own`, but stretch for letterbox and letterbox for stretch."""
    return replace(own, resize="stretch" if own.resize == "letterbox" else "letterbox")


def suspicion(
    backend: Backend, dataset: Dataset, found: Sequence[Detections], options: dict[str, Any]
) -> dict[str, Any] | None:
    """How the other way of resizing does on a few images, where it does better beyond chance.

    Args:
        dataset: in pixels.
        found: by item, with the artifact's own contract.
        options: of the detector.

    Returns:
        None, or `resize`, `images`, and `map50` of `own` and `other`.
    """
    spec = backend.manifest.spec
    few = [i for i in thin(range(len(dataset)), _IMAGES) if _differs(dataset.items[i].hw, spec)]
    if not few:
        return None
    part = replace(dataset, items=tuple(dataset.items[i] for i in few))
    other = other_contract(spec.contract)
    detector = Detector(backend, contract=other, **options)
    others = run_over([detector], part, what="checking the input contract")[0][0]
    try:
        sides = [found[i] for i in few], others
        whole = compare_slices(part, *sides, spec.classes)["slices"]["all"]
    except DataError:  # these few show no object
        return None
    if whole["difference"] < _MARGIN or whole["interval"][0] <= 0:
        return None
    map50 = {"own": whole["before"], "other": whole["now"]}
    return {"resize": other.resize, "images": len(few), "map50": map50}


def _differs(hw: tuple[int, int] | None, spec: ModelSpec) -> bool:
    if hw is None:
        return False
    ratio = (hw[0] / hw[1]) / (spec.contract.hw[0] / spec.contract.hw[1])
    return max(ratio, 1 / ratio) > _ALIKE


def compare_contracts(
    contracts: Sequence[InputContract], figures: Sequence[Metrics]
) -> dict[str, Any]:
    """mAP by way of resizing, and which of them `fits`."""
    table: dict[str, Any] = {
        contract.resize: {"map50": one.map50, "map50_95": one.map50_95}
        for contract, one in zip(contracts, figures, strict=True)
    }
    return {**table, "fits": max(table, key=lambda resize: table[resize]["map50_95"])}
