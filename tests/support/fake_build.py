"""Shared libraries for the fake GPU, built from the sources beside this file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def build(program: str, target: Path, *options: str) -> Path:
    compiler = shutil.which(program)
    if compiler is None:
        pytest.skip(f"no {program} for the fake GPU")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, *options], check=True)
    return target
