"""One export opens each file once: the graph is opened once and handed on."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import edge.artifact
import edge.onnx_metadata
from apps.cli import main
from calibration.graph import Graph
from edge.errors import ArtifactError
from edge.files import sha256_of
from export.graph.writer import write_onnx
from export.int8.quantize import annotate
from tests.support.small_models import small, write_small

FEW = "scenes://?seed=500000&count=4"
KINDS = (".onnx", ".calib.json", ".precision.json", ".engine", ".engine.json", ".cfg")
_counted: list[Counter[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _counted or not isinstance(arguments[0], (str, Path)):
        return
    path, mode, flags = arguments
    reads = "r" in mode if mode else (flags & (os.O_WRONLY | os.O_RDWR)) == 0
    if reads and str(path).endswith(KINDS):
        _counted[-1][os.path.basename(path)] += 1


sys.addaudithook(_hook)


@pytest.fixture
def opens() -> Iterator[Counter[str]]:
    """How often each file is opened for reading in this process, by name."""
    _counted.append(Counter())
    yield _counted[-1]
    _counted.pop()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of what reads a manifest, hashes a file and parses a graph from one."""
    found: Counter[str] = Counter()
    for module, name in (
        (edge.onnx_metadata, "read_metadata"),
        (edge.artifact, "sha256_of"),
        (onnx, "load"),
        (onnx, "load_from_string"),
    ):
        real = getattr(module, name)

        def counting(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            # Shape inference hands its result back as bytes; no file is parsed there.
            if sys._getframe(1).f_globals["__name__"] != "onnx.shape_inference":
                found[_name] += 1
            return _real(*args, **options)

        monkeypatch.setattr(module, name, counting)
    return found


def write_small_of_scenes(folder: Path) -> None:
    """A network whose two classes the built-in scenes have."""
    module, spec = small()
    named = replace(spec, classes=("car", "van"))
    write_onnx(module, named, folder / "small.fp32.onnx")


def exported(folder: Path, *options: str) -> None:
    command = ["export-engine", str(folder / "small.fp32.onnx"), "--int8", "--calib", FEW]
    assert main([*command, "--builder", "none", "-o", str(folder / "out"), *options]) in (0, 1)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--method", "best", "--adaround"),
        ("--keep", "heads", "--accuracy-data", "scenes://?seed=700000&count=2"),
        ("--max-map-drop", "0.02", "--accuracy-data", "scenes://?seed=700000&count=2"),
    ],
    ids=["plain", "best", "labels", "search"],
)
def test_an_export_opens_each_file_once(
    tmp_path: Path, options: tuple[str, ...], opens: Counter[str], calls: Counter[str]
) -> None:
    write_small_of_scenes(tmp_path)
    opens.clear()
    calls.clear()
    images = ("--images", "8" if "best" in options else "4")
    folder = tmp_path / "out"
    calib = ("--calib", "scenes://?seed=500000&count=8")
    exported(tmp_path, *images, *calib, *options)
    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if name.endswith(".int8.onnx")}
    # What is written here is known and not read again; the FP32 file is what was given.
    assert max(opens.values()) == 1, opens
    assert not [name for name in opens if ".int8." in name], opens
    assert calls == {"load_from_string": 1}


def test_a_second_export_reads_what_is_there_once(
    tmp_path: Path, opens: Counter[str], calls: Counter[str]
) -> None:
    write_small_of_scenes(tmp_path)
    exported(tmp_path, "--images", "4")
    opens.clear()
    calls.clear()
    exported(tmp_path, "--images", "4")
    assert max(opens.values()) == 1, opens
    assert {name.partition(".")[2] for name in opens} == {"fp32.onnx", "fp16.onnx", "calib.json"}
    assert calls == {"load_from_string": 1}


def test_a_table_that_is_given_is_opened_once(tmp_path: Path, opens: Counter[str]) -> None:
    write_small_of_scenes(tmp_path)
    exported(tmp_path, "--images", "4", "--no-verdict")
    table = next((tmp_path / "out").glob("*.calib.json"))
    opens.clear()
    exported(tmp_path, "--calib", str(table), "--no-verdict")
    assert opens[table.name] == 1


def test_a_graph_is_what_its_file_is(tmp_path: Path) -> None:
    manifest = write_small(tmp_path / "a.onnx")
    path, graph = tmp_path / "a.onnx", Graph(tmp_path / "a.onnx")
    assert Graph.open(graph) is graph
    assert (str(graph), Path(graph)) == (str(path), path)
    assert graph.manifest == manifest
    assert graph.sha256 == sha256_of(path)
    assert graph.model == onnx.load(str(path))
    # Once it is parsed, the bytes are made from the model and are still a graph's.
    assert onnx.load_from_string(graph.data) == graph.model
    changed = annotate(graph, score=0.3)
    assert changed.sha256 == sha256_of(path) != graph.sha256
    assert changed.manifest == Graph(path).manifest


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x09"])
def test_what_is_no_graph_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"a\.onnx: not an ONNX file"):
        _ = Graph(tmp_path / "a.onnx").manifest
    with pytest.raises(ArtifactError, match=r"gone\.onnx: cannot be read"):
        _ = Graph(tmp_path / "gone.onnx").model
