"""apps: what a person meets. `main` is the command `edge`, `export_engine` is `export-engine`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.cli import export_engine, main

__all__ = ["export_engine", "main"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'apps' has no attribute {name!r}")
    from apps import cli

    return getattr(cli, name)
