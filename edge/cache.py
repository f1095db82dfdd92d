"""Where this project keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_root"]


def cache_root() -> Path:
    """`$EDGE_CACHE`, else `edge` in the user's cache folder; it need not exist."""
    root = os.environ.get("EDGE_CACHE")
    if root:
        return Path(root)
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user) / "edge"
