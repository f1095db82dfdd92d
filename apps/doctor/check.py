"""One finding of `edge doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Check", "Status"]

Status = Literal["ok", "missing", "problem"]


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it stands, what was found, what to do."""

    name: str
    status: Status
    found: str
    advice: str = ""
