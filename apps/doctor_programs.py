"""Programs, packages and modules asked in a process of their own, with a time limit."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

__all__ = ["import_apart", "run_program", "version_of"]

_TIMEOUT_S = 60


def run_program(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `command` and take its output as text; raises TimeoutExpired after a minute."""
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
    )


def import_apart(module: str, expression: str = "''") -> tuple[str, str]:
    """What `expression` over `module` gives in a fresh process, or "" and why it cannot.

    A broken package may end the process that imports it.
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


def version_of(*distributions: str) -> str:
    """Version of the first of `distributions` that is installed, or nothing."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""
