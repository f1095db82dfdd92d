"""TensorRT's calibration cache: its text as TensorRT's own documents show it, there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import CalibrationError
from export.engine.legacy_cache import cache_text, read_cache, version_number, write_cache

# Of the README of TensorRT's sampleINT8; the last is a softmax, whose range ends at 1.
SAMPLE = """TRT-7000-EntropyCalibration2
data: 3c008912
conv1: 3c88edfc
prob: 3c010a14
"""


def test_the_sample_of_tensorrt_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.calib").write_text(SAMPLE)
    found = read_cache(tmp_path / "a.calib")
    assert list(found) == ["data", "conv1", "prob"]
    assert found["prob"] == pytest.approx(1.0, rel=1e-3)
    # NVIDIA's answer in a thread of its forum: 3c92aa10 is 0.0179033577.
    (tmp_path / "b.calib").write_text("TRT-7000-EntropyCalibration2\nrelu46: 3c92aa10\n")
    assert read_cache(tmp_path / "b.calib")["relu46"] / 127 == pytest.approx(0.0179033577)


def test_a_scale_is_amax_over_127_highest_byte_first() -> None:
    text = cache_text({"images": 1.0, "layers.0: act": 6.5}, "10.3.0.30")
    first, images, other = text.splitlines()
    assert first == "TRT-100300-EntropyCalibration2"
    assert images == "images: 3c010204"
    name, digits = other.rsplit(": ", 1)
    assert name == "layers.0: act"
    assert digits == np.array([6.5 / 127], ">f4").tobytes().hex()


@pytest.mark.parametrize(
    ("version", "number"),
    [("8.5.1", 8501), ("8.6.1.6", 8601), ("10.3.0", 100300), ("10.7.1", 100701)],
)
def test_the_number_is_the_headers(version: str, number: int) -> None:
    assert version_number(version) == number


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
        st.floats(1e-20, 1e20),
        max_size=8,
    )
)
def test_there_and_back(amax: dict[str, float]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.calib"
        write_cache(amax, "10.3.0", path)
        found = read_cache(path)
    assert found.keys() == amax.keys()
    assert all(found[name] == pytest.approx(value, rel=1e-6) for name, value in amax.items())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_what_gives_no_scale_is_refused(value: float) -> None:
    with pytest.raises(CalibrationError, match="tensor 'a': its threshold"):
        cache_text({"a": value}, "10.3.0")


@pytest.mark.parametrize("version", ["", "10", "10.x.0", "ten"])
def test_what_is_no_version_is_a_value_error(version: str) -> None:
    with pytest.raises(ValueError, match="no version of TensorRT"):
        cache_text({}, version)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a calibration cache"),
        ("{}", "begins with"),
        ("TRT-100300-EntropyCalibration2\na: 3c01", r":2: not .tensor: 8 hex"),
        ("TRT-100300-EntropyCalibration2\na: 3c010a14\nno colon", r":3: not"),
    ],
)
def test_another_form_names_the_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.calib").write_text(text)
    with pytest.raises(CalibrationError, match=words):
        read_cache(tmp_path / "a.calib")
    with pytest.raises(CalibrationError, match="not a calibration cache"):
        read_cache(tmp_path / "gone.calib")
