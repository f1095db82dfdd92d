"""The plugin turns a suite into tests, and stays out of the way without one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apps.regress.run import regress
from tests.support.painted import write_painted, write_painted_int8, write_pictures
from tests.test_regression import SUITE

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    write_pictures(folder / "set")
    write_painted(folder / "fp32.onnx")
    write_painted(folder / "full.onnx", work=48)
    write_painted_int8(folder / "fp32.onnx", folder / "now.onnx")
    (folder / "s.toml").write_text(SUITE)
    regress(folder / "s.toml", update=True)
    return folder


@pytest.fixture
def suite(measured: Path, pytester: pytest.Pytester) -> Path:
    for one in measured.iterdir():
        (shutil.copytree if one.is_dir() else shutil.copy)(one, pytester.path / one.name)
    return pytester.path / "s.toml"


def run(pytester: pytest.Pytester, *argv: object) -> pytest.RunResult:
    # A plugin that is installed is loaded already.
    installed = any(
        one.value.startswith("apps.pytest_plugin")
        for one in __import__("importlib.metadata").metadata.entry_points(group="pytest11")
    )
    load = () if installed else ("-p", "apps.pytest_plugin")
    return pytester.runpytest_inprocess(
        *load, "-p", "no:cacheprovider", "-p", "no:xdist", "-v", *map(str, argv)
    )


def test_every_margin_is_a_test(pytester: pytest.Pytester, suite: Path) -> None:
    result = run(pytester, "--edge-suite", suite)
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) == 0
    assert outcomes["passed"] + outcomes.get("skipped", 0) == 9
    assert outcomes["passed"] >= 6
    result.stdout.fnmatch_lines(["*s.toml::int8-map50 PASSED*"])


def test_a_regression_fails_with_the_gates_sentence(pytester: pytest.Pytester, suite: Path) -> None:
    write_painted_int8(suite.parent / "fp32.onnx", suite.parent / "now.onnx", stale=0.1)
    result = run(pytester, "--edge-suite", suite, "--edge-report", "out", "-k", "map50")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(
        [
            "int8, map50: mAP@.5 fell by*",
            "*by size: small -*",
            "*first layer that departs: layers.1.pool.dequantized*",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert (suite.parent / "out" / "report.html").is_file()


def test_a_suite_that_cannot_be_measured_fails_in_one_line(
    pytester: pytest.Pytester, suite: Path
) -> None:
    (suite.parent / "now.onnx").unlink()
    result = run(pytester, "--edge-suite", suite, "-k", "map50")
    result.stdout.fnmatch_lines(["*now.onnx*"])
    assert result.parseoutcomes()["failed"] == 1
    assert "Traceback" not in result.stdout.str()


def test_a_suite_that_cannot_be_read_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--edge-suite", "none.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*none.toml: cannot be read*"])


TESTS = """
import pytest
def test_each(edge_artifact):
    assert edge_artifact.is_file()
@pytest.mark.edge("int8")
def test_one(edge_artifact, edge_measure):
    row = edge_measure(edge_artifact, frames=10, seconds=1)
    assert row["artifact"] == str(edge_artifact)
    assert 0 < row["latency_ms"]["p99"] < 10_000
"""


def test_fixtures_give_the_suites_artifacts(pytester: pytest.Pytester, suite: Path) -> None:
    text = suite.read_text() + '[[artifact]]\nname = "fp32"\npath = "fp32.onnx"\n'
    suite.write_text(text)
    pytester.makepyfile(TESTS)
    result = run(pytester, "--edge-suite", suite, "-m", "not edge_gate", "--strict-markers")
    assert result.parseoutcomes()["passed"] == 3
    result.stdout.fnmatch_lines(["*test_each?fp32? PASSED*", "*test_one?int8? PASSED*"])


def test_an_artifact_that_the_suite_does_not_have_is_refused(
    pytester: pytest.Pytester, suite: Path
) -> None:
    pytester.makepyfile(TESTS.replace('"int8"', '"fp8"'))
    result = run(pytester, "--edge-suite", suite, "-m", "not edge_gate")
    result.stdout.fnmatch_lines(["*s.toml: no artifact 'fp8'; it has 'int8'"])
    assert "_hookexec" not in result.stdout.str()
    assert result.ret != 0


def test_without_a_suite_such_tests_are_skipped_with_the_reason(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(TESTS.replace('@pytest.mark.edge("int8")', ""))
    result = run(pytester, "-rs")
    assert result.parseoutcomes() == {"skipped": 2}
    result.stdout.fnmatch_lines(["*pytest --edge-suite suite.toml*"])


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    script = (
        "import sys, pytest; before = set(sys.modules)\n"
        "import apps.pytest_plugin\n"
        "print(sorted({n.split('.')[0] for n in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "['apps']", done.stderr
