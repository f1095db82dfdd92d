"""A suite file says what is measured; what it cannot mean is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.regress.gate import gate_names
from apps.regress.suite import Margins, read_suite
from edge.errors import DataError

WHOLE = """schema = 1
data = "val"
images = 300
baseline = "full.onnx"
seconds = 2
[margins]
map50 = 0.01
slowdown = 0.05
classes = {cat = 0.03}
[[artifact]]
name = "a"
path = "a.onnx"
[[artifact]]
path = "deep/b.int8.onnx"
reference = "a.onnx"
faster_than = "old.onnx"
[artifact.margins]
map50 = 0.02
speedup = 4
reference = 0.01
p99_ms = 20
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "s.toml"
    path.write_text(text)
    return path


def test_paths_count_from_the_file_and_margins_are_inherited(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, WHOLE))
    a, b = suite.entries
    assert (suite.data, suite.images, suite.seconds) == (str(tmp_path / "val"), 300, 2)
    assert suite.baseline == tmp_path / "full.onnx"
    assert suite.results == tmp_path / "s.jsonl"
    assert (a.name, a.path, a.reference) == ("a", tmp_path / "a.onnx", None)
    assert (b.name, b.path) == ("b.int8", tmp_path / "deep" / "b.int8.onnx")
    assert (b.reference, b.faster_than) == (tmp_path / "a.onnx", tmp_path / "old.onnx")
    assert a.margins == Margins(map50=0.01, slowdown=0.05, classes=(("cat", 0.03),))
    assert (b.margins.map50, b.margins.slowdown, b.margins.speedup) == (0.02, 0.05, 4)


def test_scenes_are_no_path(tmp_path: Path) -> None:
    text = WHOLE.replace('"val"', '"scenes://?count=50"')
    assert read_suite(write(tmp_path, text)).data == "scenes://?count=50"


def test_alarms_are_shared_out_among_the_statistical_gates(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, WHOLE))
    names = [gate_names(entry) for entry in suite.entries]
    assert names == [
        ["map50", "class cat", "slowdown"],
        ["map50", "reference", "class cat", "slowdown", "speedup", "p99_ms"],
    ]
    assert suite.alarm == pytest.approx(0.02 / 8)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("schema = 1", "", "schema = 1"),
        ("schema = 1", "schema = 2", "schema = 1"),
        ('data = "val"', "", "data: is missing"),
        ("images = 300", "images = 0", "images is 0"),
        ("images = 300", "image = 300", "no image; known"),
        ("map50 = 0.01", "map50 = -1", "map50 of [margins] is -1"),
        ("map50 = 0.01", 'map50 = "1 %"', "takes a number"),
        ("map50 = 0.02", "mAP = 0.02", "'b.int8' has no mAP"),
        ("{cat = 0.03}", "{cat = true}", "margin cat"),
        ('baseline = "full.onnx"', "", "needs a baseline"),
        ('reference = "a.onnx"', "", "needs a reference"),
        ('path = "deep/b.int8.onnx"', 'name = "a"\npath = "x"', "a name of its own"),
        ("schema = 1", "schema = 1\nalarms = 2", "alarms is 2"),
        ("[margins]", "[margins", "not TOML"),
        ('path = "a.onnx"', "", "path: is missing"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in WHOLE
    path = write(tmp_path, WHOLE.replace(old, new, 1))
    with pytest.raises(DataError) as error:
        read_suite(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.toml: cannot be read"):
        read_suite(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("images = 300", "images = 2.5", "images: takes a whole number"),
        ("images = 300", "images = 300\nrounds = inf", "rounds: takes a whole number"),
        ("images = 300", "images = 300\nthreads = 1e-320", "threads: takes a whole number"),
        ("images = 300", "images = 300\nalarms = nan", "alarms is nan"),
        ("seconds = 2", "seconds = inf", "seconds is inf"),
        ("map50 = 0.01", "map50 = inf", "map50 of [margins] is inf"),
        ("map50 = 0.01", "map50 = nan", "map50 of [margins] is nan"),
        ("{cat = 0.03}", "{cat = inf}", "margin cat of [margins] is inf"),
        ("{cat = 0.03}", "3", "margin classes of [margins] takes a table"),
        ('data = "val"', "data = 3", "data: takes text"),
        ('path = "a.onnx"', "path = 2020-01-01", "path: takes text"),
        ("images = 300", "images = " + "[" * 5000 + "]" * 5000, "not TOML: nested too deeply"),
    ],
)
def test_what_is_of_another_type_or_without_end_is_refused_by_name(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in WHOLE
    path = write(tmp_path, WHOLE.replace(old, new, 1))
    with pytest.raises(DataError) as error:
        read_suite(path)
    assert words in str(error.value) and str(path) in str(error.value)


def test_every_hostile_suite_is_one_line(edge_data: Path) -> None:
    for path in sorted((edge_data / "hostile" / "suite-toml").glob("*.toml")):
        with pytest.raises(DataError) as error:
            read_suite(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
