"""The calls of the build for a DLA exist in TensorRT 10.3; in 11.4 they are gone, as is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_trt_stubs import _mypy

pytest.importorskip("mypy")
pytest.importorskip("pybind11_stubgen")


@pytest.mark.parametrize("label", ["10.3.0", "10.16.1"])
def test_our_calls_are_in(label: str, tmp_path: Path) -> None:
    status, said = _mypy(
        label, tmp_path, "export/engine/dla_child.py", "export/engine/legacy_cache.py"
    )
    assert status == 0, said


def test_tensorrt_11_has_lost_them(tmp_path: Path) -> None:
    status, said = _mypy("11.4.0", tmp_path, "export/engine/dla_child.py")
    assert status != 0
    for name in ("IInt8EntropyCalibrator2", "int8_calibrator", "INT8"):
        assert name in said
