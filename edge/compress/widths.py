"""How wide every convolution is when families keep some of their labels."""

from __future__ import annotations

from edge.compress.channels import FIXED, Wiring

__all__ = ["Widths"]


class Widths:
    """Input and output channels of every convolution at some counts of the families.

    Attributes:
        parts: by path, channels per label of each family, entering and leaving; under -1 those
            that always stay.
    """

    def __init__(self, wiring: Wiring) -> None:
        family_of = {
            label: number
            for number, family in enumerate(wiring.families)
            for label in family.labels
        }
        self.parts: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
        sizes = [len(family.labels) for family in wiring.families]
        for path in wiring.ends:
            sides = (wiring.enters[path].tolist(), wiring.leaves[path].tolist())
            entering, leaving = (_parts(side, family_of, sizes) for side in sides)
            self.parts[path] = (entering, leaving)

    def at(self, path: str, counts: list[int]) -> tuple[int, int]:
        """Input and output channels of a convolution, with `counts` labels of each family."""
        entering, leaving = (
            round(sum(each * (1 if f < 0 else counts[f]) for f, each in part.items()))
            for part in self.parts[path]
        )
        return entering, leaving

    def touched(self, family: int) -> list[str]:
        """Convolutions whose widths depend on a family's count."""
        return [path for path, sides in self.parts.items() if any(family in s for s in sides)]


def _parts(labels: list[int], family_of: dict[int, int], sizes: list[int]) -> dict[int, float]:
    """Channels per kept label of each family; under -1 those that always stay."""
    found: dict[int, float] = {}
    for label in labels:
        key = -1 if label == FIXED else family_of[label]
        found[key] = found.get(key, 0.0) + (1.0 if key < 0 else 1.0 / sizes[key])
    return found
