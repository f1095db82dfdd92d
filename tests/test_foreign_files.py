"""Every foreign detector of the development data: recognised, and its detections are its own.

The oracle is an independent decoder, whose detections lie beside each file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest

from edge.runtime.detector import Detector
from export.foreign.importing import ImportResult, import_model
from export.int8.quantize import write_half
from tests.support.foreign import DATA, FOLDERS, Folder, unmatched

pytestmark = pytest.mark.skipif(not FOLDERS, reason="EDGE_DATA has no foreign detectors")

WANTED: dict[str, dict[str, Any]] = {
    "nanodet-m-0.5x-coco": {"head": "nanodet", "channel_order": "BGR", "resize": "letterbox"},
    "retinaface-mnet025-face": {
        "head": "retinaface",
        "channel_order": "BGR",
        "placement": "top left",
        "mean": (104.0, 117.0, 123.0),
    },
    "rfb-320-face": {"head": "ssd", "channel_order": "RGB", "resize": "stretch"},
    "rfb-320-face-raw": {"head": "ssd-raw", "channel_order": "RGB", "resize": "stretch"},
    "ssd-mobilenetv1-coco-raw": {
        "head": "ssd-raw",
        "channel_order": "RGB",
        "resize": "stretch",
        "mean": (128.0, 128.0, 128.0),
    },
    "tiny-yolov2-face": {
        "head": "yolov2-maps",
        "channel_order": "RGB",
        "placement": "top left",
        "mean": (117.001, 114.697, 97.404),
    },
    "v5lite-e-coco-320": {"head": "yolov5-sigmoid", "channel_order": "RGB", "resize": "stretch"},
    "v5lite-e-coco-320-decoded": {"head": "yolov5", "channel_order": "RGB", "resize": "stretch"},
    "yolo-fastestv2-coco": {
        "head": "yolo-fastestv2",
        "channel_order": "BGR",
        "resize": "stretch",
    },
    "yolo11n-coco-320": {"head": "yolov8", "channel_order": "RGB", "resize": "letterbox"},
    "yolo11n-coco-320-nms": {"head": "rows", "channel_order": "RGB", "resize": "letterbox"},
    "yolo26n-coco-end2end": {"head": "rows", "channel_order": "RGB", "resize": "letterbox"},
    "yolox-nano-coco": {
        "head": "yolox-raw",
        "channel_order": "BGR",
        "placement": "top left",
        "scale": (1.0, 1.0, 1.0),
    },
    "yunet-n-face": {"head": "yunet", "channel_order": "BGR", "placement": "top left"},
}
# Their anchors are not in the file, and two families have such outputs.
NEEDS_LABELS = {"v5lite-e-coco-320": "yolov5-sigmoid"}
by_name = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.path.name)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImportResult]:
    return {}


def result_of(
    folder: Folder, imported: dict[str, ImportResult], tmp_path_factory: pytest.TempPathFactory
) -> ImportResult:
    name = folder.path.name
    if name not in imported:
        target = tmp_path_factory.mktemp("imported")
        head = NEEDS_LABELS.get(name)
        imported[name] = import_model(folder.onnx, names=folder.names, head=head, output=target)
    return imported[name]


@by_name
def test_head_contract_and_names_are_recognised(
    folder: Folder,
    imported: dict[str, ImportResult],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    found, wanted = result_of(folder, imported, tmp_path_factory), WANTED[folder.path.name]
    assert found.head == wanted["head"]
    for field, value in wanted.items():
        if field != "head":
            assert getattr(found.contract, field) == value
    names = folder.names
    if names is not None:
        assert list(found.classes) == names.read_text().split("\n")[: len(found.classes)]
    assert len(found.classes) in (1, 80, 90) and len(found.evidence) > 3
    told = any("TensorRT may refuse" in each.says for each in found.evidence)
    assert told == folder.path.name.endswith("-nms")


@by_name
def test_detections_are_those_of_the_independent_decoder(
    folder: Folder,
    imported: dict[str, ImportResult],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    found = result_of(folder, imported, tmp_path_factory)
    seen = 0
    with Detector.open(found.file, score=0.05, iou=folder.iou, limit=100) as detector:
        for picture in folder.reference["pictures"].values():
            own = detector(cv2.imread(str(DATA / picture["path"]))).to_json(found.classes)
            wanted = [
                {"class": each["cls"], "score": each["score"], "xyxy": each["xyxy"]}
                for each in picture["detections"]
            ]
            assert not unmatched(wanted, own) and not unmatched(own, wanted), picture["path"]
            seen += sum(each["score"] >= 0.25 for each in wanted)
    assert seen >= 5


@pytest.mark.slow
def test_labels_choose_between_anchors_that_no_shape_tells_apart(tmp_path: Path) -> None:
    (folder,) = (each for each in FOLDERS if each.path.name == "v5lite-e-coco-320")
    found = import_model(
        folder.onnx, names=folder.names, data=DATA / "coco" / "val", output=tmp_path
    )
    assert found.head == "yolov5-sigmoid" and found.sure
    assert "yolov7-sigmoid" in found.candidates


def test_no_two_convolutions_share_a_constant(edge_data: Path, tmp_path: Path) -> None:
    """INT8 equalises, rounds and corrects each by itself; this one's heads share their weights."""
    source = edge_data / "foreign" / "yolo-fastestv2-coco" / "yolo-fastestv2.onnx"

    def constants(path: str | Path) -> list[str]:
        graph = onnx.load(str(path)).graph
        stored = {one.name for one in graph.initializer}
        every = (name for node in graph.node if node.op_type == "Conv" for name in node.input[1:])
        return [name for name in every if name in stored]

    assert len(set(constants(source))) < len(constants(source))
    made = constants(import_model(source, output=tmp_path).file)
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", ["yolo26n-coco-end2end", "yolox-nano-coco"])
def test_half_precision_finds_the_same(
    name: str, imported: dict[str, ImportResult], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Labels that were whole numbers meet boxes and scores in one type."""
    (folder,) = (each for each in FOLDERS if each.path.name == name)
    found = result_of(folder, imported, tmp_path_factory)
    half = found.file.with_name("half.onnx")
    write_half(found.file, half)
    frame = cv2.imread(str(DATA / "photos" / "dog.jpg"))
    seen = []
    for path in (found.file, half):
        with Detector.open(path, score=0.5) as detector:
            seen.append(detector(frame))
    assert len(seen[0]) == 3
    assert seen[0].class_id.tolist() == seen[1].class_id.tolist()
    assert abs(seen[0].xyxy - seen[1].xyxy).max() < 5
