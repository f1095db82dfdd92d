"""The built-in detector of photographs: one small package that finds people on foreign pictures."""

from __future__ import annotations

from pathlib import Path

from apps.camera.app import built_in
from edge.built_in import PACKAGED
from edge.edgez.graph import cached_package_onnx
from edge.edgez.package import read_package
from edge.measure.evaluate import EvaluateOptions, evaluate
from edge.models.dense import load_dense
from export.source import fp32_onnx

ASSET = PACKAGED["squeezedet-photo"]


def test_the_package_is_small_and_says_what_it_is(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    assert ASSET.stat().st_size <= 1_000_000
    spec = read_package(ASSET).manifest.spec
    assert (spec.name, spec.family, spec.classes) == (
        "squeezedet-photo",
        "squeezedet",
        ("person", "car"),
    )
    unfolded = built_in(photos=True)
    assert unfolded == cached_package_onnx(ASSET)
    assert load_dense("squeezedet-photo", tmp_path).spec == spec
    named = fp32_onnx("squeezedet-photo", tmp_path)
    assert named.path.read_bytes() == unfolded.read_bytes()


def test_it_finds_people_on_photographs(edge_data: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path))
    found = evaluate(
        cached_package_onnx(ASSET),
        edge_data / "coco" / "val",
        EvaluateOptions(images=60, threads=1),
    )
    assert found.by_class["person"].boxes > 100
    # 0.48 over all 300 images; 60 of them scatter by some .03.
    assert found.by_class["person"].ap50 > 0.4
