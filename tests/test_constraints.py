"""The pins of constraints.txt can be had on every Python that pyproject.toml allows."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("python", ["3.10.12", "3.11.7", "3.12.3"])
def test_each_pin_that_holds_on_a_python_has_a_release_for_it(python: str) -> None:
    place = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    wrong = []
    for pin in map(Requirement, LINES):
        if pin.marker is not None and not pin.marker.evaluate(place):
            continue
        try:
            installed = metadata(pin.name)
        except PackageNotFoundError:
            continue
        # What a package asks for is known of the release that is installed alone.
        if installed["Version"] in pin.specifier:
            asked = installed.get("Requires-Python") or ">=3"
            if python not in SpecifierSet(asked):
                wrong.append(f"{pin.name} {installed['Version']} asks for Python {asked}")
    assert wrong == []


def test_pins_name_a_release_each() -> None:
    assert all(str(Requirement(line).specifier).startswith("==") for line in LINES)
    assert len(LINES) > 20
