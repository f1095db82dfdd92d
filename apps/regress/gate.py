"""A gate: one margin of one artifact, its verdict, and where a loss comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from apps.regress.gather import Gathered
from apps.regress.measurement import Measurement
from apps.regress.suite import Entry, Suite
from edge.measure.statistics import Comparison

__all__ = ["Case", "Change", "Clue", "Gate", "gate_names", "margin_of", "more", "undisturbed"]


@dataclass(frozen=True)
class Change:
    """By how much and how sure, as words with their units.

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
        """All of it as one line."""
        return "; ".join((self.said, *self.where))


def gate_names(entry: Entry) -> list[str]:
    """The gates that an artifact's margins ask for, in the order of
    `apps.regress.gates.judge_all`."""
    margins = entry.margins
    single = ("map50", "small", "reference")
    names = [name for name in single if getattr(margins, name) is not None]
    names += [f"class {name}" for name, _ in margins.classes]
    camera = ("frame_age_p99", "camera_fps")
    later = ("slowdown", "speedup", "p99_ms", *camera, "bytes", "memory", "noise_db")
    return names + [name for name in later if getattr(margins, name) is not None]


def margin_of(entry: Entry, name: str) -> float | None:
    """The margin behind a gate's name."""
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
        assert value is not None
        return value

    def gate(
        self,
        verdict: str,
        said: str,
        found: Comparison | None = None,
        change: Change | None = None,
        clues: tuple[Clue, ...] = (),
    ) -> Gate:
        """The gate of this case; clues of what did not get worse are left out."""
        kept = clues if verdict == "worse" else ()
        return Gate(self.entry.name, self.name, verdict, said, found, change, kept)

    def absent(self) -> Gate:
        """Nothing to compare with."""
        return self.gate("not compared", "no stored result")


def more(found: Comparison, what: str) -> str:
    """How much longer to run where it cannot be told; else nothing."""
    if found.verdict != "cannot tell":
        return ""
    if found.more == 0:
        return f"; the margin lies too near to tell with any number of {what}"
    return f"; run longer: {found.more} more {what}"


def undisturbed(gate: Gate, warnings: list[str]) -> Gate:
    """Two runs on a machine that did other work differ by what it did, whatever each interval."""
    if gate.verdict != "worse" or not warnings:
        return gate
    advice = "cannot be told from a stored figure; give faster_than, or run on a quiet machine"
    said = f"{gate.said}; {warnings[0]}: {advice}"
    return replace(gate, verdict="cannot tell", said=said, clues=())
