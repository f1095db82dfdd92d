"""Where the development data lies, and markers that skip with a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.commands.terminal import Terminal
from edge.reporting import listen

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def edge_data() -> Path:
    """The folder of `EDGE_DATA`, by default `../shared/data` beside the project."""
    folder = Path(os.environ.get("EDGE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"development data is absent: EDGE_DATA={folder}")
    return folder


@pytest.fixture(autouse=True)
def _terminal() -> Iterator[None]:
    """What the library says goes to stderr, as on the command line, so that tests can read it."""
    before = listen(Terminal())
    yield
    listen(before)
