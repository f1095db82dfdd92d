"""Run a suite: measure it, hold it against its margins, write the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apps.regress.gate import Gate, gate_names
from apps.regress.gates import Reach, detectable, judge_all
from apps.regress.gather import Gathered, gather, open_data
from apps.regress.measurement import Measurement, read_measurements, write_measurements
from apps.regress.suite import Entry, Suite, read_suite
from apps.report.junit import write_junit
from apps.report.markdown import write_markdown
from apps.report.page import write_report
from edge.errors import DataError
from edge.files import make_folder
from edge.reporting import say

__all__ = ["Outcome", "regress"]

# Gates that need no stored result.
_IN_RUN = ("reference", "speedup", "p99_ms", "frame_age_p99", "camera_fps", "noise_db")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a run of a suite.

    Attributes:
        suite: what was run.
        gates: verdicts, artifact by artifact.
        gathered: everything measured.
        before: stored measurements by name; empty where there were none.
        detectable: how far each accuracy gate sees, by artifact and gate.
    """

    suite: Suite
    gates: list[Gate]
    gathered: Gathered
    before: Mapping[str, Measurement]
    detectable: Mapping[tuple[str, str], Reach]

    @property
    def worse(self) -> list[Gate]:
        """The gates that failed."""
        return [gate for gate in self.gates if gate.verdict == "worse"]

    @property
    def unsure(self) -> list[Gate]:
        """The gates that could not tell."""
        return [gate for gate in self.gates if gate.verdict == "cannot tell"]


def regress(
    suite: str | Path, *, update: bool = False, report: str | Path | None = None
) -> Outcome:
    """Measure every artifact of a suite and compare it with its margins.

    Args:
        suite: a TOML file, see `apps.regress.suite`.
        update: write what was measured to the suite's results file, whatever the verdicts.
        report: folder for `report.html`, `report.md`, `junit.xml` and `measurements.jsonl`.

    Raises:
        DataError: the suite, its images or its stored results cannot be used: another dataset,
            another schema, too few images.
        ArtifactError, EngineMismatch, MissingDependency: an artifact cannot be run.
        CameraError: the suite's source cannot be opened.
    """
    plan = read_suite(suite)
    dataset, digest = open_data(plan)
    before = _stored(plan, digest, update)
    reach = detectable(plan, before)
    for (artifact, name), one in reach.items():
        say(f"{artifact}, {name}: {one}")
    gathered = gather(plan, dataset, digest)
    outcome = Outcome(plan, judge_all(plan, gathered, before), gathered, before, reach)
    if report is not None:
        _write(outcome, Path(report))
    if update:
        write_measurements(gathered.measurements.values(), plan.results)
    return outcome


def _stored(suite: Suite, digest: str, update: bool) -> dict[str, Measurement]:
    """Return the stored measurements by name; those of other images are refused."""
    if not suite.results.is_file() and (update or not _needing(suite)):
        return {}
    try:
        found = {one.name: one for one in read_measurements(suite.results)}
        for entry in suite.entries:
            if not update or entry.name in found:
                _check_stored(suite, entry, found.get(entry.name), digest)
    except DataError as error:
        if update:
            say(f"no diff: {str(error).partition('; ')[0]}")
            return {}
        raise
    return found


def _needing(suite: Suite) -> bool:
    return any(set(gate_names(entry)) - set(_IN_RUN) for entry in suite.entries)


def _check_stored(suite: Suite, entry: Entry, stored: Measurement | None, digest: str) -> None:
    if stored is None:
        if set(gate_names(entry)) - set(_IN_RUN):
            raise DataError(
                f"{suite.results}: no result of {entry.name!r}; "
                f"measure it: edge regress --suite {suite.path} --update"
            )
    elif stored.data_sha256 != digest:
        raise DataError(
            f"{suite.results}: {entry.name!r} was measured on other images or labels "
            f"({stored.images} of {stored.data}, {stored.data_sha256[:12]}, here {digest[:12]}); "
            f"measure again: edge regress --suite {suite.path} --update"
        )


def _write(outcome: Outcome, folder: Path) -> None:
    make_folder(folder)
    write_measurements(outcome.gathered.measurements.values(), folder / "measurements.jsonl")
    write_junit(outcome.suite.path.stem, outcome.gates, folder / "junit.xml")
    write_markdown(
        outcome.suite.path.stem,
        outcome.gates,
        outcome.gathered.measurements,
        outcome.before,
        folder / "report.md",
    )
    write_report(
        outcome.suite,
        outcome.gates,
        outcome.gathered,
        outcome.before,
        outcome.detectable,
        folder / "report.html",
    )
