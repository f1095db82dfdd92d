"""Is the input contract of an artifact the one that its weights were trained with?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

__all__ = [
    "BothWays",
    "ContractAccuracy",
    "ContractComparison",
    "Suspicion",
    "compare_contracts",
    "other_contract",
    "suspicion",
]

# Enough to tell 10 points apart, and done in seconds.
_IMAGES = 32
# mAP@.5 by which the other contract must be better, beside its 95 % interval.
_MARGIN = 0.02
# Sides of picture and input as alike as this look the same either way.
_ALIKE = 1.05


def other_contract(own: InputContract) -> InputContract:
    """`own`, but stretch for letterbox and letterbox for stretch."""
    return replace(own, resize="stretch" if own.resize == "letterbox" else "letterbox")


@dataclass(frozen=True)
class BothWays:
    """mAP@.5 with the artifact's own way of resizing and with the other one."""

    own: float
    other: float


@dataclass(frozen=True)
class Suspicion:
    """The other way of resizing does better, beyond chance.

    Attributes:
        resize: that other way.
        images: how many it was tried on.
        map50: with both.
    """

    resize: str
    images: int
    map50: BothWays


@dataclass(frozen=True)
class ContractAccuracy:
    """Accuracy with one way of resizing, 0..1."""

    map50: float
    map50_95: float


@dataclass(frozen=True)
class ContractComparison:
    """Accuracy by way of resizing, the artifact's own first, and the one that `fits` best."""

    by_resize: dict[str, ContractAccuracy]
    fits: str

    def to_json(self) -> dict[str, Any]:
        """JSON values, in which each way is a key beside `fits`."""
        return {**self.by_resize, "fits": self.fits}


def suspicion(
    backend: Backend, dataset: Dataset, found: Sequence[Detections], **thresholds: Any
) -> Suspicion | None:
    """Try the other way of resizing on a few images; None where it does not do better.

    Args:
        dataset: in pixels.
        found: by item, with the artifact's own contract.
        thresholds: of the `Detector`.
    """
    spec = backend.manifest.spec
    few = [i for i in thin(range(len(dataset)), _IMAGES) if _differs(dataset.items[i].hw, spec)]
    if not few:
        return None
    part = replace(dataset, items=tuple(dataset.items[i] for i in few))
    other = other_contract(spec.contract)
    detector = Detector(backend, contract=other, **thresholds)
    others = run_over([detector], part, what="checking the input contract")[0][0]
    try:
        whole = compare_slices(part, [found[i] for i in few], others, spec.classes).slices["all"]
    except DataError:  # these few show no object
        return None
    if whole.difference < _MARGIN or whole.interval[0] <= 0:
        return None
    return Suspicion(other.resize, len(few), BothWays(whole.before, whole.now))


def _differs(hw: tuple[int, int] | None, spec: ModelSpec) -> bool:
    if hw is None:
        return False
    ratio = (hw[0] / hw[1]) / (spec.contract.hw[0] / spec.contract.hw[1])
    return max(ratio, 1 / ratio) > _ALIKE


def compare_contracts(
    contracts: Sequence[InputContract], figures: Sequence[Metrics]
) -> ContractComparison:
    """Put mAP side by side by way of resizing, and name the one that fits the weights."""
    table = {
        contract.resize: ContractAccuracy(one.map50, one.map50_95)
        for contract, one in zip(contracts, figures, strict=True)
    }
    fits = max(table, key=lambda resize: table[resize].map50_95)
    return ContractComparison({str(resize): one for resize, one in table.items()}, fits)
