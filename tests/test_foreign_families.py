"""Every family of detectors: recognised by a small graph of it, and decoded to what is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.runtime.detector import Detector
from export.foreign.importing import import_model
from tests.support.foreign_families import FAMILIES, write_graph


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_recognised_and_its_objects_are_found(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    source = write_graph(family, tmp_path / "net.onnx")
    names = None
    if family.classes:
        names = tmp_path / "net.names"
        names.write_text("\n".join(f"class {number}" for number in range(family.classes)))
    found = import_model(source, names=names, output=tmp_path / "out")
    assert found.head == family.kind
    for field, value in family.contract.items():
        assert getattr(found.contract, field) == value
    height, width = family.hw
    with Detector.open(found.file, score=0.3) as detector:
        seen = detector(np.full((height, width, 3), 90, np.uint8))
    wanted = sorted(family.objects, key=lambda each: -each.score)
    assert seen.class_id.tolist() == [each.class_id for each in wanted]
    np.testing.assert_allclose(seen.score, [each.score for each in wanted], atol=2e-3)
    np.testing.assert_allclose(seen.xyxy, [each.xyxy for each in wanted], atol=0.1)
