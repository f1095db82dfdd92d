"""What differs between two calibration tables, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from calibration.table import CalibrationTable

__all__ = ["TableDiff", "ThresholdChange", "compare_tables"]


@dataclass(frozen=True)
class ThresholdChange:
    """The thresholds of one tensor in two tables, None where a table has none."""

    tensor: str
    old: float | None
    new: float | None

    @property
    def ratio(self) -> float | None:
        """The new threshold divided by the old one."""
        return None if self.old is None or self.new is None else self.new / self.old


@dataclass(frozen=True)
class TableDiff:
    """What differs between two tables.

    Attributes:
        facts: (what, old, new) of the graph, contract, method, recipe and version.
        added, removed, common: pictures.
        tensors: thresholds that differ, those that changed most first.
        noise_db: (convolution, new less old) where both tables know it and they differ.
    """

    facts: tuple[tuple[str, str, str], ...]
    added: int
    removed: int
    common: int
    tensors: tuple[ThresholdChange, ...]
    noise_db: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """The differences as `edge calibrate --diff --json` writes them."""
        return {
            "facts": {what: {"old": old, "new": new} for what, old, new in self.facts},
            "images": {"common": self.common, "added": self.added, "removed": self.removed},
            "amax": {one.tensor: {"old": one.old, "new": one.new} for one in self.tensors},
            "noise_db": dict(self.noise_db),
        }


def compare_tables(old: CalibrationTable, new: CalibrationTable) -> TableDiff:
    """Compare two tables, of one graph or not."""
    facts = [
        ("graph", old.graph_sha256[:12], new.graph_sha256[:12]),
        ("input contract", old.contract_digest[:12], new.contract_digest[:12]),
        ("method", old.method, new.method),
        ("recipe", " ".join(old.recipe), " ".join(new.recipe)),
        ("made by", old.made_by, new.made_by),
        ("equalised tensors", str(len(old.gains)), str(len(new.gains))),
        ("corrected biases", str(len(old.bias)), str(len(new.bias))),
        ("adaptively rounded", str(len(old.rounding)), str(len(new.rounding))),
    ]
    before, after = Counter(old.images), Counter(new.images)
    return TableDiff(
        facts=tuple(fact for fact in facts if fact[1] != fact[2]),
        added=(after - before).total(),
        removed=(before - after).total(),
        common=(before & after).total(),
        tensors=_tensors(dict(old.amax), dict(new.amax)),
        noise_db=_noise(dict(old.noise_db), dict(new.noise_db)),
    )


def _tensors(old: dict[str, float], new: dict[str, float]) -> tuple[ThresholdChange, ...]:
    changes = [ThresholdChange(name, old.get(name), new.get(name)) for name in {**old, **new}]
    differing = [change for change in changes if change.old != change.new]
    return tuple(sorted(differing, key=lambda change: -_size(change)))


def _size(change: ThresholdChange) -> float:
    ratio = change.ratio
    return float("inf") if ratio is None else max(ratio, 1 / ratio)


def _noise(old: dict[str, float], new: dict[str, float]) -> tuple[tuple[str, float], ...]:
    both = ((name, round(new[name] - old[name], 3)) for name in old if name in new)
    return tuple(pair for pair in both if pair[1])
