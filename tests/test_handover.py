"""`edge handover triton`: a repository that Triton's own message type and server take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from apps.cli import main
from edge.artifact import manifest_path, read_manifest
from edge.built_in import BUILT_IN
from edge.errors import ArtifactError, EngineMismatch
from export.handover.triton import TritonOptions, handover_triton

TINY = BUILT_IN["tiny-yolo-scenes"]
ROOT = Path(__file__).resolve().parents[1]


def config(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Bytes that stand for a plan, with a manifest that vouches for them."""
    path = tmp_path / "tiny.engine"
    path.write_bytes(b"plan")
    manifest = replace(read_manifest(TINY), sha256=sha256(b"plan").hexdigest())
    manifest_path(path).write_text(manifest.to_json())
    return path


def test_an_onnx_file_becomes_one_python_model(tmp_path: Path) -> None:
    options = TritonOptions(name="cars", score=0.4, iou=0.5, instances=3, threads=2)
    result = handover_triton(TINY, tmp_path / "m", options)
    assert {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*.*")} == set(
        result.files
    )
    found = config(tmp_path / "m" / "cars" / "config.pbtxt")
    assert (found.name, found.backend, found.max_batch_size) == ("cars", "python", 0)
    assert [(one.name, one.optional) for one in found.input] == [("image", True), ("encoded", True)]
    assert [list(one.dims) for one in found.output] == [[-1, 4], [-1], [-1]]
    assert found.instance_group[0].count == 3
    told = {name: value.string_value for name, value in found.parameters.items()}
    assert told == {"SCORE": "0.4", "IOU": "0.5", "NETWORK": "", "EXACT": "true", "THREADS": "2"}
    assert (tmp_path / "m" / "cars" / "1" / "model.onnx").read_bytes() == TINY.read_bytes()
    labels = (tmp_path / "m" / "cars" / "labels.txt").read_text().splitlines()
    assert tuple(labels) == read_manifest(TINY).spec.classes


def test_an_engine_becomes_a_plan_and_a_model_before_it(tmp_path: Path, engine: Path) -> None:
    handover_triton(engine, tmp_path / "m")
    name, manifest = read_manifest(TINY).spec.name, read_manifest(TINY)
    found = config(tmp_path / "m" / f"{name}-network" / "config.pbtxt")
    assert found.platform == "tensorrt_plan"
    assert [(one.name, list(one.dims)) for one in found.input] == [
        (one.name, list(one.shape)) for one in manifest.inputs
    ]
    assert [one.name for one in found.output] == [one.name for one in manifest.outputs]
    assert found.model_warmup[0].inputs[manifest.inputs[0].name].zero_data
    # The plain plan, without any header before it.
    assert (tmp_path / "m" / f"{name}-network" / "1" / "model.plan").read_bytes() == b"plan"
    assert config(tmp_path / "m" / name / "config.pbtxt").parameters["NETWORK"].string_value == (
        f"{name}-network"
    )


def test_an_engine_that_is_not_its_manifests_is_refused(tmp_path: Path, engine: Path) -> None:
    engine.write_bytes(b"other")
    with pytest.raises(EngineMismatch):
        handover_triton(engine, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_handing_over_the_other_kind_leaves_nothing_of_the_first(
    tmp_path: Path, engine: Path
) -> None:
    handover_triton(engine, tmp_path / "m")
    files = handover_triton(TINY, tmp_path / "m").files
    assert {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*.*")} == set(files)


@pytest.mark.parametrize("name", ["../up", "a/b", ".x", ""])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    if name:
        with pytest.raises(ArtifactError, match="cannot be a file name"):
            handover_triton(TINY, tmp_path / "m", TritonOptions(name=name))
    assert list(tmp_path.iterdir()) == []


def test_the_command_lists_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["handover", "triton", str(TINY), "-o", str(tmp_path / "m"), "--json", "-"]
    assert main(words) == 0
    result, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    assert result["kind"] == "triton" and "README.md" in result["files"] and result["notes"]


def test_the_python_model_answers_as_edge_detects(tmp_path: Path) -> None:
    """The copied model.py, under a stand-in for the module that only the server has."""
    handover_triton(TINY, tmp_path / "m", TritonOptions(name="cars"))
    script = ROOT / "tests" / "support" / "triton_stand_in.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "m" / "cars")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same", "same", "refused", "refused"]


def test_a_real_server_answers_as_edge_detects(tmp_path: Path, edge_data: Path) -> None:
    """Needs an environment with PyTriton's wheel; tools/handover/triton_check.py says how."""
    python = os.environ.get("EDGE_TRITON")
    if not python:
        pytest.skip("EDGE_TRITON names no Python with nvidia-pytriton and tritonclient")
    command = [sys.executable, str(ROOT / "tools" / "handover" / "triton_check.py"), str(TINY)]
    command += [str(edge_data / "photos"), "--triton", python, "--json", str(tmp_path / "t.json")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300)
    result = json.loads((tmp_path / "t.json").read_text())
    assert result["different"] == [] and result["errors"] == 0 and result["boxes"] > 0
