"""The parts of a gate: one margin of one artifact, its verdict, and where a loss comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from apps.regress.gather import Gathered
from apps.regress.measurement import Measurement
from apps.regress.suite import Entry, Suite
from edge.measure.statistics import Comparison

__all__ = ["Case", "Change", "Clue", "Gate", "gate_names", "margin_of", "more", "undisturbed"]


@dataclass(frozen=True)
class Change:
    """A change and how sure it is, as words with their units.

    Attributes:
        by: the change, `-12.3 points`.
        interval: its bounds at the suite's level.
        margin: what is tolerated.
        beyond: probability that the loss exceeds the margin; empty where it is no test.
    """

    by: str
    interval: str = ""
    margin: str = ""
    beyond: str = ""


@dataclass(frozen=True)
class Clue:
    """One place that a loss comes from.

    Attributes:
        kind: `class`, `size`, `layer` or `stage`.
        name: of it.
        by: what changed there.
        sure: bounds of that, or what it was before.
        loss: share of AP lost, for a bar beside others; None where it is no share.
    """

    kind: str
    name: str
    by: str
    sure: str = ""
    loss: float | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.by}" + (f" ({self.sure})" if self.sure else "")


_LEADS = {
    "class": "most in: ",
    "size": "by size: ",
    "layer": "first layer that departs: ",
    "stage": "most in: ",
}


@dataclass(frozen=True)
class Gate:
    """One margin of one artifact.

    Attributes:
        artifact, name: of the artifact in the suite, and of the margin.
        verdict: better, same, worse, cannot tell, or not compared.
        said: one sentence, by how much and how sure.
        comparison: the figures behind it, where it is a test.
        change: the same as words of their own, where something was compared.
        clues: where it comes from; of what got worse only.
    """

    artifact: str
    name: str
    verdict: str
    said: str
    comparison: Comparison | None = None
    change: Change | None = None
    clues: tuple[Clue, ...] = ()

    @property
    def where(self) -> list[str]:
        """One line for each kind of clue."""
        kinds = dict.fromkeys(clue.kind for clue in self.clues)
        return [
            _LEADS[kind] + ", ".join(str(clue) for clue in self.clues if clue.kind == kind)
            for kind in kinds
        ]

    @property
    def text(self) -> str:
        """The gate as one line."""
        return "; ".join((self.said, *self.where))


def gate_names(entry: Entry) -> list[str]:
    """Return the gates that an artifact's margins ask for, in the order of judging."""
    margins = entry.margins
    single = ("map50", "small", "reference")
    names = [name for name in single if getattr(margins, name) is not None]
    names += [f"class {name}" for name, _ in margins.classes]
    camera = ("frame_age_p99", "camera_fps")
    later = ("slowdown", "speedup", "p99_ms", *camera, "bytes", "memory", "noise_db")
    return names + [name for name in later if getattr(margins, name) is not None]


def margin_of(entry: Entry, name: str) -> float | None:
    """Return the margin behind a gate's name."""
    if name.startswith("class "):
        return dict(entry.margins.classes)[name.removeprefix("class ")]
    value: float | None = getattr(entry.margins, name)
    return value


@dataclass(frozen=True)
class Case:
    """What a gate is judged from.

    Attributes:
        stored: the artifact's stored measurement, if there is one.
        name: of the gate.
    """

    suite: Suite
    entry: Entry
    gathered: Gathered
    stored: Measurement | None
    name: str

    @property
    def now(self) -> Measurement:
        """What this run measured."""
        return self.gathered.measurements[self.entry.name]

    @property
    def margin(self) -> float:
        """What is tolerated."""
        value = margin_of(self.entry, self.name)
        if value is None:
            raise ValueError(f"{self.entry.name!r} has no margin {self.name}")
        return value

    def gate(
        self,
        verdict: str,
        said: str,
        found: Comparison | None = None,
        change: Change | None = None,
        clues: tuple[Clue, ...] = (),
    ) -> Gate:
        """Return the gate of this case; clues are kept only where it got worse."""
        kept = clues if verdict == "worse" else ()
        return Gate(self.entry.name, self.name, verdict, said, found, change, kept)

    def absent(self) -> Gate:
        """Return the gate of a case without a stored result."""
        return self.gate("not compared", "no stored result")


def more(found: Comparison, what: str) -> str:
    """Return how much longer to run where nobody can tell; else nothing."""
    if found.verdict != "cannot tell":
        return ""
    if found.more == 0:
        return f"; the margin lies too near to tell with any number of {what}"
    return f"; run longer: {found.more} more {what}"


def undisturbed(gate: Gate, warnings: list[str]) -> Gate:
    """Return the gate, as `cannot tell` where the machine did other work while it got worse."""
    if gate.verdict != "worse" or not warnings:
        return gate
    advice = "a stored figure cannot tell; give faster_than, or run on a quiet machine"
    said = f"{gate.said}; {warnings[0]}: {advice}"
    return replace(gate, verdict="cannot tell", said=said, clues=())
