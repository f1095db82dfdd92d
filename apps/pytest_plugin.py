"""pytest plugin: a regression suite as tests, and fixtures for tests of one's own.

    pytest --edge-suite suite.toml          every margin of every artifact is a test
    def test_mine(edge_artifact): ...       runs once for each artifact of the suite
    @pytest.mark.edge("tiny int8")          ... for these artifacts only
    def test_yours(edge_measure): edge_measure("a.onnx")["latency_ms"]["p99"] < 20

Nothing of edge is imported before one of these is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = [
    "edge_artifact",
    "edge_measure",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
]

_SUITE = pytest.StashKey[Any]()
_OUTCOME = pytest.StashKey[Any]()
_WITHOUT = "it needs a suite: pytest --edge-suite suite.toml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--edge-suite` and `--edge-report`."""
    group = parser.getgroup("edge", "speed and accuracy of detectors")
    group.addoption("--edge-suite", metavar="F", help="run this regression suite as tests")
    group.addoption("--edge-report", metavar="DIR", help="write the suite's report there")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; read the suite where one is given."""
    config.addinivalue_line("markers", "edge(*names): run for these artifacts of the suite only")
    config.addinivalue_line("markers", "edge_gate: a margin of the suite given by --edge-suite")
    path = config.getoption("--edge-suite")
    if path is None:
        return
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None):
        raise pytest.UsageError(
            "--edge-suite measures time, which processes beside it would disturb: leave out -n"
        )
    config.stash[_SUITE] = _read(path)


def _read(path: str) -> Any:
    from apps.regress.suite import read_suite
    from edge.errors import EdgeError

    try:
        return read_suite(path)
    except EdgeError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each artifact, or for those that `@pytest.mark.edge` names."""
    if "edge_artifact" not in metafunc.fixturenames:
        return
    suite = metafunc.config.stash.get(_SUITE, None)
    if suite is None:
        skip = pytest.mark.skip(reason=_WITHOUT)
        metafunc.parametrize("edge_artifact", [pytest.param(None, marks=skip)], ids=["no suite"])
        return
    marker = metafunc.definition.get_closest_marker("edge")
    known = {entry.name: entry.path for entry in suite.entries}
    names = list(marker.args) if marker and marker.args else list(known)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise pytest.Collector.CollectError(
            f"{suite.path}: no artifact {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(map(repr, known))}"
        )
    metafunc.parametrize("edge_artifact", [known[name] for name in names], ids=names)


@pytest.fixture
def edge_artifact() -> Path:
    """The file of an artifact of the suite; parametrised by `pytest_generate_tests`."""
    raise NotImplementedError("every use is parametrised by pytest_generate_tests")


@pytest.fixture
def edge_measure(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """A function that times an artifact; its row and options are those of `bench`."""
    suite = request.config.stash.get(_SUITE, None)

    def measure(artifact: str | Path, **options: Any) -> dict[str, Any]:
        from edge.files import to_plain
        from edge.measure.bench import BenchOptions, bench

        if suite is not None:
            options = {"baseline": suite.baseline, "threads": suite.threads, **options}
        rows = bench([artifact], BenchOptions(**options)).rows
        row: dict[str, Any] = to_plain(next(r for r in rows if Path(r.artifact) == Path(artifact)))
        return row

    return measure


class _Failed(Exception):
    """A gate's verdict is worse."""


class _GateItem(pytest.Item):
    def __init__(self, *, artifact: str, gate: str, **options: Any) -> None:
        super().__init__(**options)
        self.artifact, self.gate = artifact, gate
        self.add_marker("edge_gate")

    def runtest(self) -> None:
        outcome = _measured(self.config)
        gate = next(
            one for one in outcome.gates if (one.artifact, one.name) == (self.artifact, self.gate)
        )
        self.user_properties.append(("verdict", gate.verdict))
        self.add_report_section("call", "edge", f"{gate.verdict}: {gate.said}")
        if gate.verdict == "worse":
            raise _Failed("\n    ".join((gate.said, *gate.where)))
        if gate.verdict in ("cannot tell", "not compared"):
            pytest.skip(f"{gate.verdict}: {gate.said}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, _Failed):
            return f"{self.artifact}, {self.gate}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"{self.artifact}: {self.gate}"


def _measured(config: pytest.Config) -> Any:
    """Return the suite's outcome, measured once, when the first gate runs."""
    from apps.regress.run import regress
    from edge.errors import EdgeError

    if _OUTCOME not in config.stash:
        suite = config.stash[_SUITE]
        try:
            found: Any = regress(suite.path, report=config.getoption("--edge-report"))
        except EdgeError as error:
            found = error
        config.stash[_OUTCOME] = found
    found = config.stash[_OUTCOME]
    if isinstance(found, EdgeError):
        pytest.fail(str(found), pytrace=False)
    return found


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for every margin of the suite."""
    suite = config.stash.get(_SUITE, None)
    if suite is None:
        return
    from apps.regress.gate import gate_names

    parent = _SuiteCollector.from_parent(session, name=suite.path.name, path=suite.path.resolve())
    for entry in suite.entries:
        for gate in gate_names(entry):
            name = f"{entry.name}-{gate}".replace(" ", "-")
            item: pytest.Item = _GateItem.from_parent(
                parent, name=name, artifact=entry.name, gate=gate
            )
            items.append(item)


class _SuiteCollector(pytest.File):
    def collect(self) -> list[pytest.Item]:
        return []
