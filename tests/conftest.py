"""Where the development data lies, and markers that skip with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def edge_data() -> Path:
    """The folder of `EDGE_DATA`, by default `../shared/data` beside the project."""
    folder = Path(os.environ.get("EDGE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"development data is absent: EDGE_DATA={folder}")
    return folder
