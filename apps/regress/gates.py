"""Judges each margin of a suite, and says beforehand what its images can show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from apps.regress.accuracy_gates import ACCURACY, sliced
from apps.regress.gate import Case, Gate, gate_names, margin_of
from apps.regress.gather import Gathered
from apps.regress.measurement import Measurement
from apps.regress.speed_gates import SPEED
from apps.regress.suite import Entry, Suite
from edge.measure.statistics import minimum_detectable_drop

__all__ = ["Reach", "detectable", "judge_all"]

_POWER = 0.95
_KINDS = {**ACCURACY, **SPEED}
# A gate that finds only losses of this many margins speaks of great losses alone.
_ADVISORY = 3.0


@dataclass(frozen=True)
class Reach:
    """What an accuracy gate can find on the suite's images.

    Attributes:
        drop: smallest loss of AP, 0..1, that it finds with 95 %.
        margin: of the gate.
        images, objects: what it judges.
    """

    drop: float
    margin: float
    images: int
    objects: int

    @property
    def advisory(self) -> bool:
        """Whether a loss of several margins can pass as `cannot tell`."""
        return self.drop > _ADVISORY * self.margin

    def needed(self, drop: float) -> int:
        """Return the images that would show `drop`: what is found falls with their square root."""
        return math.ceil(self.images * (self.drop / drop) ** 2)

    def __str__(self) -> str:
        text = f"a drop of {self.drop * 100:.1f} points is found with 95 %"
        if not self.advisory:
            return text
        target = _ADVISORY * self.margin
        return (
            f"{text} ({self.objects} objects); losses between the margin "
            f"{self.margin * 100:g} and that are advisory: {target * 100:g} points would take some "
            f"{self.needed(target)} images"
        )


def detectable(suite: Suite, before: Mapping[str, Measurement]) -> dict[tuple[str, str], Reach]:
    """Return what each accuracy gate finds with 95 %, from the stored results alone."""
    found = {}
    for entry in suite.entries:
        stored = before.get(entry.name)
        for name in gate_names(entry) if stored is not None else ():
            reach = _reach(suite, entry, stored, name)
            if reach is not None:
                found[entry.name, name] = reach
    return found


def _reach(suite: Suite, entry: Entry, stored: Measurement | None, name: str) -> Reach | None:
    results = None if stored is None else sliced(stored, name)
    margin = margin_of(entry, name)
    if not results or margin is None:
        return None
    drop = minimum_detectable_drop(results, margin=margin, alarm=suite.alarm, power=_POWER)
    boxes = [one.boxes for one in results.values()]
    return Reach(drop, margin, len(boxes[0]), int(sum(each.sum() for each in boxes)))


def judge_all(suite: Suite, gathered: Gathered, before: Mapping[str, Measurement]) -> list[Gate]:
    """Judge all gates of a suite; `before` holds the stored measurements by name."""
    return [gate for entry in suite.entries for gate in _gates_of(suite, entry, gathered, before)]


def _gates_of(
    suite: Suite, entry: Entry, gathered: Gathered, before: Mapping[str, Measurement]
) -> Iterator[Gate]:
    for name in gate_names(entry):
        kind = "class" if name.startswith("class ") else name
        yield _KINDS[kind](Case(suite, entry, gathered, before.get(entry.name), name))
