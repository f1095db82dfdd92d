"""When to stop."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["stale"]


def stale(scores: Sequence[float], patience: int) -> bool:
    """Whether the best of `scores`, the last one newest, is `patience` or more scores old."""
    if not scores:
        return False
    return len(scores) - 1 - max(range(len(scores)), key=scores.__getitem__) >= patience
