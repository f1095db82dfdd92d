"""Trials of `gate_sensitivity.py` as JSON lines: one line each, so that a run can be continued."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from edge.errors import DataError
from edge.files import write_file

__all__ = ["Trials", "interval", "summary"]

Trial = dict[str, Any]
SCHEMA = 1


class Trials:
    """The trials of one run, kept in a file where one is given.

    Args:
        settings: what must not differ between the parts of a run.
        path: continued if it is there.

    Raises:
        DataError: the file holds something else, or a run with other settings.
    """

    def __init__(self, settings: Trial, path: Path | None) -> None:
        self._path, self.lines = path, list[Trial]()
        start = {"kind": "start", "schema": SCHEMA, **settings}
        if path is None or not path.exists():
            self.add(start)
            return
        self.lines = read(path)
        # What a killed run left of its last line must not run into the next.
        write_file(path, "".join(json.dumps(one) + "\n" for one in self.lines).encode())
        known = self.lines[0]
        for name in sorted({*start, *known}):
            if start.get(name) != known.get(name):
                raise DataError(
                    f"{path}: was run with {name} {known.get(name)}, not {start.get(name)}; "
                    "name another file"
                )

    def of(self, kind: str) -> list[Trial]:
        """The trials of a kind, in their order."""
        return [one for one in self.lines if one["kind"] == kind]

    def add(self, trial: Trial) -> None:
        """Keep one; it is on the disk when this returns."""
        self.lines.append(trial)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(trial) + "\n")
                file.flush()
                os.fsync(file.fileno())


def read(path: Path) -> list[Trial]:
    """The lines of a file, without a last one that was cut off.

    Raises:
        DataError: it cannot be read, or is of another kind.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
        lines = [json.loads(text) for text in texts[:-1]]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not the trials of this tool: {error}") from error
    with contextlib.suppress(ValueError):
        lines += [json.loads(text) for text in texts[-1:]]
    first = lines[0] if lines else None
    if not isinstance(first, dict) or (first.get("kind"), first.get("schema")) != ("start", SCHEMA):
        raise DataError(f"{path}: not the trials of this tool; name another file")
    return lines


def summary(lines: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Rows of the tables: `what`, `trials`, `worse`, `cannot_tell`, `interval` of worse's share."""
    found = [one for one in lines if one["kind"] == "accuracy"]
    drops = [one["drop"] for one in lines if one["kind"] == "announced"]
    tables: dict[str, list[Trial]] = {"accuracy": [], "latency": []}
    if found and drops:
        still = [one["verdict"] for one in found if not one["regression"]]
        lost = [(one["true"], one["verdict"]) for one in found if one["regression"]]
        tables["accuracy"] = [_row("changed too little to matter", still)]
        ends = (-1.0, *(share * drops[0] for share in (0.25, 0.5, 1, 1.5)), 1.0)
        for low, high in pairwise(ends):
            text = f"true drop {'' if low < 0 else f'{low * 100:.1f} to '}{high * 100:.1f}"
            verdicts = [verdict for true, verdict in lost if low < true <= high]
            tables["accuracy"].append(_row(text, verdicts))
    verdicts_of: dict[str, list[str]] = {}
    for one in lines:
        for kind, verdict in one.get("verdicts", {}).items():
            verdicts_of.setdefault(kind, []).append(verdict)
    tables["latency"] = [_row(kind, each) for kind, each in sorted(verdicts_of.items())]
    return tables


def _row(what: str, verdicts: Sequence[str]) -> Trial:
    worse, unsure = (sum(one == kind for one in verdicts) for kind in ("worse", "cannot tell"))
    return {
        "what": what,
        "trials": len(verdicts),
        "worse": worse,
        "cannot_tell": unsure,
        "interval": list(interval(worse, len(verdicts))),
    }


def interval(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a probability: Wilson 1927, doi:10.1080/01621459.1927.10502953."""
    if not trials:
        return 0.0, 1.0
    z = 1.959964
    share, weight = hits / trials, z * z / trials
    middle = share + weight / 2
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return (
        max(0.0, (middle - half) / (1 + weight)),
        min(1.0, (middle + half) / (1 + weight)),
    )
