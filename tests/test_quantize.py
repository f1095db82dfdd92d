"""From an FP32 file and a table to the INT8 and FP16 files beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.qdq import convolutions
from calibration.table import CalibrationTable
from edge.artifact import read_manifest
from edge.errors import ArtifactError, CalibrationError
from edge.files import sha256_of
from edge.runtime.detector import Detector
from export.graph.writer import attach_manifest
from export.int8.quantize import write_half, write_int8
from tests.support.small_models import decibel, picture, run, write_small
from tests.support.tolerances import HALF_DB


@pytest.fixture
def fp32(tmp_path: Path) -> Path:
    write_small(tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def table_for(path: Path) -> CalibrationTable:
    model = onnx.load(str(path))
    names = dict.fromkeys(node.input[0] for node in convolutions(model))
    amax = tuple((name, 1.0 if name == "images" else 6.0) for name in names)
    digest = read_manifest(path).spec.contract.digest
    return CalibrationTable(amax, "minmax", sha256_of(path), digest, ("a" * 64, "b" * 64))


def test_int8_file_tells_where_it_comes_from(fp32: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.int8.onnx"
    manifest = write_int8(fp32, table_for(fp32), target).manifest
    assert read_manifest(target) == manifest
    before = read_manifest(fp32)
    assert (manifest.precision, manifest.parent_sha256) == ("int8", sha256_of(fp32))
    assert manifest.spec == before.spec and manifest.outputs == before.outputs
    arguments = {name: json.loads(value) for name, value in manifest.arguments}
    assert arguments["method"] == "minmax"
    assert (arguments["images"], arguments["keep"]) == (2, [])
    assert (arguments["equalised_tensors"], arguments["corrected_biases"]) == (0, 0)
    assert target.stat().st_size < fp32.stat().st_size


def test_kept_layers_make_it_mixed(fp32: Path, tmp_path: Path) -> None:
    keep = [convolutions(onnx.load(str(fp32)))[i].name for i in (3, 0)]
    manifest = write_int8(fp32, table_for(fp32), tmp_path / "b.onnx", keep=keep).manifest
    assert manifest.precision == "mixed"
    assert json.loads(dict(manifest.arguments)["keep"]) == sorted(keep)


def test_half_file_is_close_to_its_parent(fp32: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.fp16.onnx"
    manifest = write_half(fp32, target).manifest
    assert read_manifest(target) == manifest
    assert (manifest.precision, manifest.parent_sha256) == ("fp16", sha256_of(fp32))
    image = picture((48, 64), seed=2)
    for mine, wanted in zip(run(target, image), run(fp32, image), strict=True):
        assert decibel(wanted, mine) > HALF_DB


def test_labels_of_the_parent_are_repeated(fp32: Path, tmp_path: Path) -> None:
    model, manifest = onnx.load(str(fp32)), read_manifest(fp32)
    attach_manifest(model, replace(manifest, labels=("random weights",)))
    onnx.save(model, str(fp32))
    for found in (
        write_int8(fp32, table_for(fp32), tmp_path / "b.onnx"),
        write_half(fp32, tmp_path / "c.onnx"),
    ):
        assert found.manifest.labels == ("random weights",)
        assert found.manifest.made_by == manifest.made_by


def test_every_file_opens_as_a_detector(fp32: Path, tmp_path: Path) -> None:
    write_int8(fp32, table_for(fp32), tmp_path / "a.int8.onnx")
    write_half(fp32, tmp_path / "a.fp16.onnx")
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for name in ("a.onnx", "a.int8.onnx", "a.fp16.onnx"):
        with Detector.open(tmp_path / name, threads=1, score=0.001) as detector:
            assert len(detector(frame)) > 0


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_table_of_another_graph_or_contract_is_refused(fp32: Path, tmp_path: Path) -> None:
    table = table_for(fp32)
    for wrong, what in (
        (replace(table, graph_sha256="0" * 64), "another graph"),
        (replace(table, contract_digest="0" * 64), "another input contract"),
        (replace(table, amax=table.amax[:-1]), "no threshold for its input"),
        (replace(table, gains=(("nowhere", (1.0,)),)), "gains do not fit .*nowhere"),
        (replace(table, bias=(("layers.0.conv", (0.0,) * 5),)), "biases do not fit"),
    ):
        with pytest.raises(CalibrationError, match=what):
            write_int8(fp32, wrong, tmp_path / "b.onnx")
    with pytest.raises(ValueError, match="no such convolution: x"):
        write_int8(fp32, table, tmp_path / "b.onnx", keep=["x"])
    assert left(tmp_path) == ["a.onnx"]


def test_only_fp32_files_of_edge_are_taken(fp32: Path, tmp_path: Path) -> None:
    write_half(fp32, tmp_path / "h.onnx")
    foreign = onnx.load(str(fp32))
    del foreign.metadata_props[:]
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 100)
    (tmp_path / "empty.onnx").write_bytes(b"")
    before = left(tmp_path)
    for name, what in (
        ("h.onnx", "already fp16"),
        ("foreign.onnx", "without a manifest"),
        ("junk.onnx", "not an ONNX file"),
        ("empty.onnx", "empty.onnx"),
        ("gone.onnx", "gone.onnx"),
    ):
        source = tmp_path / name
        with pytest.raises(ArtifactError, match=what):
            write_half(source, tmp_path / "b.onnx")
        with pytest.raises(ArtifactError, match=what):
            write_int8(source, table_for(fp32), tmp_path / "b.onnx")
    assert left(tmp_path) == before


def test_a_weight_beyond_half_names_file_and_tensor(fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(str(fp32))
    weight = next(i for i in model.graph.initializer if i.name.endswith(".weight"))
    array = onnx.numpy_helper.to_array(weight).copy()
    array.reshape(-1)[0] = 1e6
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, str(tmp_path / "wide.onnx"))
    with pytest.raises(ArtifactError, match=rf"wide\.onnx: {weight.name} reaches 1e\+06"):
        write_half(tmp_path / "wide.onnx", tmp_path / "b.onnx")
    assert "b.onnx" not in left(tmp_path)


def test_a_folder_that_is_not_there_is_one_line(fp32: Path, tmp_path: Path) -> None:
    for write in (
        lambda target: write_half(fp32, target),
        lambda target: write_int8(fp32, table_for(fp32), target),
    ):
        with pytest.raises(ArtifactError, match="cannot be written"):
            write(tmp_path / "gone" / "b.onnx")
