"""The manifest inside an ONNX file, against what the onnx package writes, and against noise."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.artifact import read_manifest
from edge.errors import ArtifactError, EngineMismatch
from edge.files import sha256_of, write_file
from edge.onnx_metadata import MANIFEST_KEY, read_metadata
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec

onnx = pytest.importorskip("onnx")

SPEC = ModelSpec(
    "mini",
    "darknet",
    ("car", "Fußgänger"),
    InputContract((8, 8)),
    (HeadSpec.of_grid("head", "yolo", (8, 8), ((4.0, 2.5),)),),
)
MANIFEST = Manifest(
    SPEC,
    "fp32",
    (TensorSpec("images", (1, 3, 8, 8)),),
    (TensorSpec("head", (1, 7, 8, 8)),),
    made_by=(("edge", "0"),),
    labels=("random weights",),
)


def _model(metadata: dict[str, str], weights: int = 16) -> bytes:
    helper, kinds = onnx.helper, onnx.TensorProto
    data = np.zeros(weights, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", kinds.FLOAT, [weights])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, [weights])],
        [onnx.numpy_helper.from_array(data, "w")],
    )
    model = helper.make_model(graph, producer_name="test", opset_imports=[])
    helper.set_model_props(model, metadata)
    return model.SerializeToString()  # type: ignore[no-any-return]


def test_metadata_equals_what_the_onnx_package_wrote(tmp_path: Path) -> None:
    metadata = {"a": "1", "umlaut": "Fußgänger", "empty": "", "long": "x" * 70_000}
    path = tmp_path / "m.onnx"
    path.write_bytes(_model(metadata))
    assert read_metadata(path) == metadata


def test_manifest_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_model({MANIFEST_KEY: MANIFEST.to_json()}))
    assert read_manifest(path) == MANIFEST


def test_weights_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_model({MANIFEST_KEY: MANIFEST.to_json()}, weights=5_000_000))
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    read_manifest(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_every_truncation_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = _model({MANIFEST_KEY: MANIFEST.to_json()})
    path = tmp_path / "m.onnx"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError) as caught:
            read_manifest(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=300, deadline=500, suppress_health_check=list(HealthCheck))
@given(noise=st.binary(max_size=400), at=st.integers(0, 10_000), keep=st.booleans())
def test_noise_gives_a_manifest_or_an_artifact_error(
    tmp_path: Path, noise: bytes, at: int, keep: bool
) -> None:
    whole = _model({MANIFEST_KEY: MANIFEST.to_json()})
    at %= len(whole)
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :] if keep else noise)
    try:
        assert isinstance(read_manifest(path), Manifest)
    except ArtifactError as error:
        assert "\n" not in str(error)


def test_a_file_of_endless_fields_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x01" * 2_000_000)
    with pytest.raises(ArtifactError, match="more than"):
        read_manifest(path)


def test_a_length_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x72\xff\xff\xff\xff\xff\xff\xff\xff\x7f")  # field 14, 2^63 - 1 bytes
    with pytest.raises(ArtifactError, match="behind the file"):
        read_manifest(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "nonsense", "[" * 100_000, '{"schema": "x"}', '{"spec": 3}']
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_model({MANIFEST_KEY: text}))
    with pytest.raises(ArtifactError, match="not a manifest of edge"):
        read_manifest(path)


def test_an_onnx_file_of_others_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_model({"author": "somebody"}))
    with pytest.raises(ArtifactError, match=r"without a manifest.*edge import"):
        read_manifest(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    for name in ("absent.onnx", "absent.engine", "photo.jpg"):
        with pytest.raises(ArtifactError, match=name):
            read_manifest(tmp_path / name)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ArtifactError, match=r"folder\.onnx"):
        read_manifest(tmp_path / "folder.onnx")


def _engine(folder: Path, manifest: str | None) -> Path:
    path = folder / "m.engine"
    path.write_bytes(b"plan")
    if manifest is not None:
        (folder / "m.engine.json").write_text(manifest)
    return path


def test_an_engine_reads_the_manifest_beside_it(tmp_path: Path) -> None:
    # printf plan | sha256sum
    sha256 = "64879f7d6b960a01909762d911a32d4582c20010c5641ee90278b644a9e3b525"
    known = json.loads(MANIFEST.to_json()) | {"sha256": sha256}
    path = _engine(tmp_path, json.dumps(known))
    assert sha256_of(path) == sha256
    assert read_manifest(path).spec == SPEC


@pytest.mark.parametrize(
    ("manifest", "error", "words"),
    [
        (None, ArtifactError, "missing"),
        ("not json", ArtifactError, "not a manifest"),
        ("[" * 100_000, ArtifactError, "not a manifest"),
        (MANIFEST.to_json(), EngineMismatch, "sha256"),
    ],
)
def test_an_engine_without_its_own_manifest_names_the_rebuild(
    tmp_path: Path, manifest: str | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        read_manifest(_engine(tmp_path, manifest))
    assert "export-engine" in str(caught.value) and "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ArtifactError, match="taken"):
        write_file(tmp_path / "taken", b"data")
    write_file(tmp_path / "file", b"data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken"]
    assert (tmp_path / "file").read_bytes() == b"data"
