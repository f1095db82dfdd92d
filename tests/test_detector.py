"""The detector: one path from frame to boxes, and artifacts that it refuses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from edge.artifact import read_manifest
from edge.detections import Detections
from edge.errors import ArtifactError
from edge.letterbox import Letterbox
from edge.runtime.backend import open_backend
from edge.runtime.backend_ort import OrtBackend
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import Decoder, nms
from edge.spec import Manifest
from export.graph.writer import attach_manifest
from export.int8.quantize import write_int8
from tests.support.small_models import run, write_small
from tests.support.steps import scales

FRAME = np.random.default_rng(0).integers(0, 256, (70, 130, 3), np.uint8)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "small.onnx"
    write_small(path)
    return path


def test_equals_the_stages_by_hand(artifact: Path) -> None:
    with Detector.open(artifact, threads=1, score=0.005, iou=0.3, limit=40) as detector:
        found = detector(FRAME)
        spec = detector.spec
    # 64x48 takes 130x70 as 64x34 between borders of 7 pixels.
    inside = cv2.resize(FRAME, (64, 34))
    image = cv2.copyMakeBorder(inside, 7, 7, 0, 0, cv2.BORDER_CONSTANT, value=[128] * 3)
    raw = run(artifact, cv2.dnn.blobFromImage(image, 1 / 255, swapRB=True))
    wanted = nms(Decoder(spec)(raw, 0.005), 0.3, 40)
    assert len(found) == len(wanted) > 5
    scale = np.array([130 / 64, 70 / 34] * 2)
    boxes = (wanted.xyxy - [0, 7, 0, 7]) * scale
    np.testing.assert_allclose(found.xyxy, boxes, atol=0.01)
    np.testing.assert_allclose(found.score, wanted.score, atol=1e-5)
    assert found.class_id.tolist() == wanted.class_id.tolist()
    assert (np.diff(found.score) <= 0).all()


def test_thresholds_can_be_changed_between_frames(artifact: Path) -> None:
    with Detector.open(artifact, threads=1, score=0.002) as detector:
        many = detector(FRAME)
        detector.score, detector.limit = float(np.median(many.score)), 3
        assert 0 < len(detector(FRAME)) <= 3 < len(many)


def test_earlier_results_stay_when_the_next_frame_comes(artifact: Path) -> None:
    with Detector.open(artifact, threads=1, score=0.002) as detector:
        first = detector(FRAME)
        kept = first.xyxy.copy()
        detector(FRAME[::-1])
        assert np.array_equal(first.xyxy, kept) and len(kept)


def test_every_stage_is_timed(artifact: Path) -> None:
    with Detector.open(artifact, threads=1) as detector:
        assert detector.stages_ms == {}
        detector(FRAME)
        assert list(detector.stages_ms) == ["preprocess", "engine", "decode", "nms"]
        assert all(0 < stage < 5000 for stage in detector.stages_ms.values())


def test_multi_label_finds_more(artifact: Path) -> None:
    def found(multi_label: bool) -> Detections:
        options: dict[str, Any] = {"score": 0.002, "limit": 10_000, "iou": 1.0}
        with Detector.open(artifact, threads=1, multi_label=multi_label, **options) as detector:
            return detector(FRAME)

    assert len(found(True)) > len(found(False)) > 0


def test_another_contract_can_be_tried_at_the_same_size(artifact: Path) -> None:
    with Detector.open(artifact, threads=1) as detector:
        contract = replace(detector.spec.contract, resize="stretch", mean=(9.0, 9.0, 9.0))
    with Detector.open(artifact, threads=1, contract=contract, score=0.002) as detector:
        assert detector.contract == contract != detector.spec.contract
        found, fit = detector(FRAME), Letterbox.fit(FRAME.shape[:2], contract)
        assert fit.resized_hw == contract.hw and len(found)
    other = replace(contract, hw=(64, 64))
    with pytest.raises(ValueError, match=r"takes \(48, 64\), the contract \(64, 64\)"):
        Detector.open(artifact, threads=1, contract=other)


def test_three_steps_give_what_a_call_gives_also_for_several_frames_ahead(artifact: Path) -> None:
    frames = [FRAME, FRAME[::-1], FRAME[:40, :90]]
    with Detector.open(artifact, threads=1, score=0.002) as detector:
        wanted = [detector(frame) for frame in frames]
        prepared = [detector.prepare(frame) for frame in frames]
        with ThreadPoolExecutor(3) as pool:
            raw = list(pool.map(detector.run, prepared))
        for one, expected in zip(raw, wanted, strict=True):
            found = detector.finish(one)
            assert len(found) and np.array_equal(found.xyxy, expected.xyxy)
            assert np.array_equal(found.score, expected.score)
            assert list(detector.stages_ms) == ["preprocess", "engine", "decode", "nms"]
        with pytest.raises(ValueError, match="prepare it again"):
            detector.run(prepared[0])


def test_a_detector_that_two_threads_call_at_once_says_so(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    plain = OrtBackend.run

    def held(self: OrtBackend, tensor: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return plain(self, tensor)

    with Detector.open(artifact, threads=1, score=0.002) as detector:
        wanted = detector(FRAME)
        with ThreadPoolExecutor(1) as pool:
            monkeypatch.setattr(detector.pipeline, "_run", lambda tensor: held(backend, tensor))
            backend: Any = detector.backend
            first = pool.submit(detector, FRAME)
            assert begun.wait(10)
            with pytest.raises(RuntimeError, match="open one for each thread"):
                detector(FRAME[::-1])
            go_on.set()
            assert np.array_equal(first.result().xyxy, wanted.xyxy)
        assert np.array_equal(detector(FRAME).xyxy, wanted.xyxy)


class Counted(OrtBackend):
    closed = 0

    def close(self) -> None:
        Counted.closed += 1
        super().close()


def test_the_backend_is_closed_once_done_and_when_opening_fails(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.runtime.backend_ort.OrtBackend", Counted)
    with Detector.open(artifact, threads=1):
        pass
    assert Counted.closed == 1
    contract = replace(_contract(artifact), hw=(32, 32))
    before = Counted.closed
    with pytest.raises(ValueError):
        Detector.open(artifact, threads=1, contract=contract)
    assert Counted.closed == before + 1


def _contract(artifact: Path) -> Any:
    with open_backend(artifact, threads=1) as backend:
        return backend.manifest.spec.contract


def rewritten(artifact: Path, target: Path, change: Any) -> Path:
    """The artifact with another manifest."""
    with open_backend(artifact, threads=1) as backend:
        manifest = backend.manifest
    model = onnx.load(str(artifact))
    attach_manifest(model, change(manifest))
    onnx.save(model, str(target))
    return target


def _other_classes(manifest: Manifest) -> Manifest:
    return replace(manifest, spec=replace(manifest.spec, classes=("a", "b", "c")))


def _other_grid(manifest: Manifest) -> Manifest:
    heads = tuple(head.at_grid((1, 1)) for head in manifest.spec.heads)
    return replace(manifest, spec=replace(manifest.spec, heads=heads))


def _other_tensor(manifest: Manifest) -> Manifest:
    first, *rest = manifest.spec.heads
    (columns,) = first.layout.tensors
    gone = replace(first.layout, tensors=(replace(columns, tensor="gone"),))
    heads = (replace(first, layout=gone), *rest)
    return replace(manifest, spec=replace(manifest.spec, heads=heads))


def _swapped(manifest: Manifest) -> Manifest:
    return replace(manifest, outputs=manifest.outputs[::-1])


@pytest.mark.parametrize("change", [_other_classes, _other_grid, _other_tensor, _swapped])
def test_heads_that_are_not_the_outputs_are_refused(
    artifact: Path, tmp_path: Path, change: Any
) -> None:
    with pytest.raises(ArtifactError, match="export the model again"):
        Detector.open(rewritten(artifact, tmp_path / "a.onnx", change), threads=1)


def test_artifacts_that_cannot_be_opened_are_refused_by_name(
    artifact: Path, tmp_path: Path
) -> None:
    for name, content in (
        ("gone.onnx", None),
        ("empty.onnx", b""),
        ("junk.onnx", bytes(range(256)) * 9),
        ("half.onnx", artifact.read_bytes()[:-500]),
        ("front.onnx", artifact.read_bytes()[500:]),
        ("model.weights", b"x"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=name) as caught:
            Detector.open(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_damaged_graph_with_a_whole_manifest_is_one_line(artifact: Path, tmp_path: Path) -> None:
    model = onnx.load(str(artifact))
    model.graph.node[0].op_type = "NoSuchOperation"
    onnx.save(model, str(tmp_path / "a.onnx"))
    with pytest.raises(ArtifactError, match=r"a\.onnx: onnxruntime cannot load it") as caught:
        Detector.open(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("exact", [True, False])
def test_a_quantizer_without_its_scale_is_one_line(
    artifact: Path, tmp_path: Path, exact: bool
) -> None:
    write_int8(artifact, scales(artifact, images=2).table, tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            node.input[1] = "nowhere"
    onnx.save(model, str(tmp_path / "a.onnx"))
    with pytest.raises(ArtifactError, match=r"a\.onnx: onnxruntime cannot load it") as caught:
        Detector.open(tmp_path / "a.onnx", exact=exact)
    assert "\n" not in str(caught.value)


def test_outputs_come_in_the_manifests_order_whatever_the_graphs(
    artifact: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(artifact))
    outputs = [type(value).FromString(value.SerializeToString()) for value in model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(outputs[::-1])
    onnx.save(model, str(tmp_path / "a.onnx"))
    with (
        Detector.open(artifact, score=0.002) as one,
        Detector.open(tmp_path / "a.onnx", score=0.002) as two,
    ):
        assert np.array_equal(one(FRAME).xyxy, two(FRAME).xyxy)


def test_the_backend_says_what_it_runs_on(artifact: Path) -> None:
    with open_backend(artifact, threads=1) as backend:
        assert backend.name.startswith("onnxruntime ")
        assert "1 thread" in backend.name
        assert not backend.on_device
        backend.close()
        backend.close()


def test_a_fitted_score_is_the_default_and_gives_way_to_the_callers(
    artifact: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(artifact))
    manifest = read_manifest(artifact)
    fitted = tmp_path / "fitted.onnx"
    attach_manifest(model, replace(manifest, arguments=(*manifest.arguments, ("score", "0.31"))))
    onnx.save(model, str(fitted))
    for path, score, wanted in ((artifact, None, 0.25), (fitted, None, 0.31), (fitted, 0.4, 0.4)):
        with Detector.open(path, score=score) as detector:
            assert detector.score == wanted
