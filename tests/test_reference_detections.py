"""The whole way from weights to boxes against detections that other code made and stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.detections import Detections, iou_matrix
from edge.models.zoo import load_model
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import Decoder, nms
from edge.spec import HeadSpec, ModelSpec
from export.graph.writer import write_onnx
from tests.support.tolerances import REFERENCE_IOU, REFERENCE_ROUNDED_PX, REFERENCE_SCORE

SCORE = 0.25
YOLO = ["mbv2-yolo-fastest-voc-v1", "mbv2-yolov3-nano-coco", "yolo-fastest-1.1"]
AIX = ["yolov3-tiny-aix2022", "yolov4-tiny-aix2023"]
YOLO_LITE = ["yololite-voc-trial3", "yololite-voc-trial3-noBatch", "yololite-voc-trial7"]


def reference(edge_data: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (edge_data / "weights" / f"{name}.reference.json").read_text()
    )
    return found


def detector(edge_data: Path, name: str, folder: Path, **options: Any) -> Detector:
    weights = edge_data / "weights"
    names = weights / "aix.names" if "aix" in name else None
    loaded = load_model(weights / f"{name}.cfg", names=names, resize="stretch")
    write_onnx(loaded.module, loaded.spec, folder / f"{name}.onnx")
    return Detector.open(folder / f"{name}.onnx", threads=1, **options)


def frame_of(edge_data: Path, folder: str, name: str, image: dict[str, Any]) -> np.ndarray:
    frame = cv2.imread(str(edge_data / folder / name))
    assert [frame.shape[1], frame.shape[0]] == image["image_size_wh"]
    return frame


def stored(image: dict[str, Any], classes: tuple[str, ...]) -> Detections:
    rows = image["detections"]
    label = [row.get("class_id", classes.index(row["class"].strip())) for row in rows]
    assert [classes[i].strip() for i in label] == [row["class"].strip() for row in rows]
    boxes = np.reshape([row["box_xyxy"] for row in rows], (-1, 4))
    return Detections(boxes, np.array([row["score"] for row in rows]), np.array(label))


def unmatched(wanted: Detections, found: Detections) -> list[Any]:
    """Boxes of `wanted` above `SCORE` without a partner of class, place and score."""
    overlap = iou_matrix(wanted.xyxy, found.xyxy)
    same = wanted.class_id[:, None] == found.class_id[None]
    near = np.abs(wanted.score[:, None] - found.score[None]) <= REFERENCE_SCORE
    partner = ((overlap >= REFERENCE_IOU) & same & near).any(axis=1)
    return wanted[~partner & (wanted.score >= SCORE)].to_json(tuple(map(str, range(100))))


def assert_agrees(found: Detections, wanted: Detections) -> None:
    assert unmatched(wanted, found) == []
    assert unmatched(found, wanted) == []


def count_above(images: dict[str, Any]) -> int:
    return sum(row["score"] >= SCORE for image in images.values() for row in image["detections"])


@pytest.mark.parametrize("name", YOLO + AIX)
def test_yolo_finds_the_stored_boxes(edge_data: Path, tmp_path: Path, name: str) -> None:
    folder = "aix/images" if name in AIX else "photos"
    images = reference(edge_data, name)["images"]
    assert count_above(images) > 10
    # The stored lists start at 0.2: a box at 0.25 may stand 0.02 lower in the other list.
    options = {"score": 0.2, "multi_label": name in AIX}
    with detector(edge_data, name, tmp_path, **options) as detect:
        for file, image in images.items():
            found = detect(frame_of(edge_data, folder, file, image))
            assert_agrees(found, stored(image, detect.spec.classes))


def region_cells(raw: np.ndarray, head: HeadSpec, spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """Every anchor's box in input pixels and its score by class, above thresh 0.001."""
    rows, columns = head.grid_hw
    grid = raw.reshape(len(head.anchors), 5 + len(spec.classes), rows, columns).astype(float)
    x, y, w, h, objectness = np.moveaxis(grid[:, :5], 1, 0)
    powers = np.exp(grid[:, 5:] - grid[:, 5:].max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True) / (1 + np.exp(-objectness[:, None]))
    anchors = np.array(head.anchors)[:, :, None, None]
    into_h, into_w = spec.contract.hw
    cx = (np.arange(columns) + 1 / (1 + np.exp(-x))) * into_w / columns
    cy = (np.arange(rows)[:, None] + 1 / (1 + np.exp(-y))) * into_h / rows
    w, h = anchors[:, 0] * np.exp(w), anchors[:, 1] * np.exp(h)
    boxes = np.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), axis=-1).reshape(-1, 4)
    by_class = np.moveaxis(scores, 1, -1).reshape(len(boxes), -1)
    return boxes, np.where(by_class > 0.001, by_class, 0)


def as_opencvs_region_layer(raw: np.ndarray, head: HeadSpec, spec: ModelSpec) -> Detections:
    """OpenCV's RegionLayer, then best class, then NMS 0.45, as the references were made.

    The layer suppresses at IoU 0.4 within each class over all anchors and sets a suppressed
    class's score to 0 (modules/dnn/src/layers/region_layer.cpp, do_nms_sort); only then is each
    anchor's best class taken.
    """
    boxes, scores = region_cells(raw, head, spec)
    left = np.zeros_like(scores)
    for label in range(scores.shape[1]):
        every = np.arange(len(boxes))
        kept = cv2.dnn.NMSBoxes(_xywh(boxes), scores[:, label].astype(np.float32), 0.001, 0.4)
        rows = every[np.asarray(kept, int).reshape(-1)]
        left[rows, label] = scores[rows, label]
    best = left.argmax(axis=1)
    top = left.max(axis=1)
    found = Detections(boxes, top, best)[top > 0.1]
    return nms(found, 0.45)


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.hstack((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]))


@pytest.mark.parametrize("name", YOLO_LITE)
def test_yolo_lite_finds_the_stored_boxes(edge_data: Path, tmp_path: Path, name: str) -> None:
    images = reference(edge_data, name)["images"]
    assert count_above(images) > 10
    with detector(edge_data, name, tmp_path, score=0.1, iou=1.0, limit=3000) as detect:
        (head,) = detect.spec.heads
        for file, image in images.items():
            frame = frame_of(edge_data, "photos", file, image)
            ran = detect.run(detect.prepare(frame))
            fit, (raw,) = ran.fit, ran.heads
            found = as_opencvs_region_layer(raw, head, detect.spec)
            found = Detections(fit.to_source(found.xyxy), found.score, found.class_id)
            assert_agrees(found, stored(image, detect.spec.classes))
            # Decoding by the product gives the same boxes and scores before any suppression.
            boxes, scores = region_cells(raw, head, detect.spec)
            mine = Decoder(detect.spec)([raw], 0.1)
            above = scores.max(axis=1) > 0.1
            assert len(mine) == above.sum() > 0
            np.testing.assert_allclose(mine.xyxy, boxes[above], atol=1e-2)
            np.testing.assert_allclose(mine.score, scores.max(axis=1)[above], atol=1e-5)
            assert mine.class_id.tolist() == scores.argmax(axis=1)[above].tolist()


@pytest.mark.parametrize("name", YOLO_LITE)
def test_yolo_lite_differs_from_opencv_by_its_early_suppression_alone(
    edge_data: Path, tmp_path: Path, name: str
) -> None:
    images = reference(edge_data, name)["images"]
    missed = 0
    with detector(edge_data, name, tmp_path, score=0.1) as detect:
        for file, image in images.items():
            found = detect(frame_of(edge_data, "photos", file, image))
            missed += len(unmatched(stored(image, detect.spec.classes), found))
    assert missed <= 2 < count_above(images)


def test_squeezedet_finds_the_stored_boxes(edge_data: Path, tmp_path: Path) -> None:
    name = "squeezedet_kitti_forge"
    loaded = load_model(edge_data / "weights" / f"{name}.npz")
    write_onnx(loaded.module, loaded.spec, tmp_path / "a.onnx")
    ((file, image),) = reference(edge_data, name)["images"].items()
    with Detector.open(tmp_path / "a.onnx", threads=1, score=0.05, iou=0.4) as detect:
        found = detect(frame_of(edge_data, "photos", file, image))
    wanted = stored(image, loaded.spec.classes)
    assert len(found) == len(wanted) == 5
    assert found.class_id.tolist() == wanted.class_id.tolist()
    np.testing.assert_allclose(found.score, wanted.score, atol=REFERENCE_SCORE)
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=REFERENCE_ROUNDED_PX)


def test_every_reference_of_the_data_is_tested(edge_data: Path) -> None:
    files = {path.name for path in (edge_data / "weights").glob("*.reference.json")}
    names = [*YOLO, *AIX, *YOLO_LITE, "squeezedet_kitti_forge"]
    assert files == {f"{name}.reference.json" for name in names}
