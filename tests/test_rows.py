"""Decoding inside the graph gives the rows that the decoder on the host gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from apps import cli
from edge.detections import Detections
from edge.runtime.detector import Detector
from export.foreign.importing import import_model
from export.graph.rows import write_rows
from tests.support.foreign import DATA, FOLDERS
from tests.support.foreign_families import FAMILIES, write_graph
from tests.support.small_models import write_small


def same(one: Detections, other: Detections) -> None:
    assert one.class_id.tolist() == other.class_id.tolist()
    np.testing.assert_allclose(one.score, other.score, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.xyxy, other.xyxy, rtol=1e-4, atol=0.02)


def both(graph: Path, frame: Any, score: float) -> tuple[Detections, Detections]:
    rows = graph.with_name("rows.onnx")
    manifest = write_rows(graph, rows)
    assert manifest.outputs[0].shape[2] == 6 and dict(manifest.arguments)["output_form"] == '"rows"'
    kinds = {node.op_type for node in onnx.load(str(rows)).graph.node}
    assert "NonMaxSuppression" not in kinds and {"TopK", "GatherElements"} <= kinds
    found = []
    for path in (graph, rows):
        with Detector.open(path, score=score, threads=1) as detector:
            found.append(detector(frame))
    return found[0], found[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_a_family_are_its_detections(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    source = write_graph(family, tmp_path / "net.onnx")
    names = tmp_path / "net.names"
    names.write_text("\n".join(f"class {number}" for number in range(max(1, family.classes))))
    found = import_model(source, names=names if family.classes else None, output=tmp_path)
    plain, rows = both(found.file, np.full((*family.hw, 3), 90, np.uint8), 0.3)
    assert len(plain) == len(family.objects)
    same(plain, rows)


@pytest.mark.parametrize("kind", ["yolo", "new_coords"])
def test_rows_of_our_own_heads_are_their_detections(kind: str, tmp_path: Path) -> None:
    cfg = None
    if kind == "new_coords":
        from tests.test_new_coords import NEW

        cfg = NEW
    write_small(tmp_path / "net.onnx", *(() if cfg is None else (cfg,)))
    frame = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    plain, rows = both(tmp_path / "net.onnx", frame, 0.01)
    assert 0 < len(plain) < 300
    same(plain, rows)


@pytest.mark.skipif(not FOLDERS, reason="EDGE_DATA has no foreign detectors")
def test_rows_of_a_trained_network_are_its_detections(tmp_path: Path) -> None:
    import cv2

    (folder,) = (each for each in FOLDERS if each.path.name == "yolo11n-coco-320")
    found = import_model(folder.onnx, output=tmp_path)
    plain, rows = both(found.file, cv2.imread(str(DATA / "photos" / "dog.jpg")), 0.1)
    assert len(plain) > 4
    same(plain, rows)


def test_tensorrt_rtx_builds_rows(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from export.engine.build import build_engine
    from export.engine.options import BuildOptions

    write_small(tmp_path / "net.onnx")
    write_rows(tmp_path / "net.onnx", tmp_path / "rows.onnx")
    options = BuildOptions(builder="rtx")
    build_engine(tmp_path / "rows.onnx", tmp_path / "rows.engine", options)
    assert (tmp_path / "rows.engine").stat().st_size > 1000


def test_export_engine_writes_rows_beside_the_graph_of_any_precision(tmp_path: Path) -> None:
    write_small(tmp_path / "net.fp32.onnx")
    command = ["export-engine", str(tmp_path / "net.fp32.onnx"), "--builder", "none"]
    frame = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    for precision in ("fp32", "fp16"):
        out = tmp_path / precision
        asked = [f"--{precision}", "--output-form", "rows", "-o", str(out)]
        assert cli.main([*command, *asked]) == 0
        (written,) = out.glob(f"*.rows.{precision}.onnx")
        plain = written.with_name(written.name.replace(".rows", ""))
        found = []
        for path in (plain if plain.exists() else tmp_path / "net.fp32.onnx", written):
            with Detector.open(path, score=0.01, threads=1) as detector:
                found.append(detector(frame))
        assert len(found[0]) > 0
        same(*found)
    again = ["export-engine", str(written), "--fp16", "--builder", "none"]
    assert cli.main([*again, "--output-form", "rows", "-o", str(out)]) == 2
