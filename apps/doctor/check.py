"""One finding of `edge doctor`, and how its checks run programs and import packages."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

__all__ = ["Check", "Status", "import_apart", "run_program", "version_of"]

Status = Literal["ok", "missing", "problem"]
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: of what was checked.
        status: `ok`, `missing` (not there, and not needed everywhere) or `problem`.
        found: what is there, or why it does not work.
        advice: what to do about it; empty where there is nothing to do.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def run_program(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `command` and return its output as text.

    Raises:
        TimeoutExpired: it takes more than a minute.
        OSError: it cannot be started.
    """
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
    )


def import_apart(module: str, expression: str = "''") -> tuple[str, str]:
    """Import `module` in a process of its own, because a broken package may crash on import.

    Returns:
        The text of `expression`, in which the module is `m` ("yes" where that is empty), and "";
        or "" and the reason why it cannot be imported.
    """
    code = f"import importlib; m = importlib.import_module({module!r}); print('>', {expression})"
    try:
        done = run_program([sys.executable, "-c", code])
    except subprocess.TimeoutExpired:
        return "", f"importing it takes more than {_TIMEOUT_S} s"
    if done.returncode < 0:
        return "", f"importing it ends the process with signal {-done.returncode}"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
    return done.stdout.rpartition(">")[2].strip() or "yes", ""


def version_of(distribution: str) -> str:
    """Version of an installed Python package; empty where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
