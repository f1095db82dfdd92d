"""Every family of detectors: recognised by a small graph of it, and decoded to what is planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from edge.runtime.detector import Detector
from export.foreign.importing import import_model
from tests.support.foreign_families import FAMILIES, HW, write_graph


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_recognised_and_its_objects_are_found(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    source = write_graph(family, tmp_path / "net.onnx")
    names = None
    if family.classes:
        names = tmp_path / "net.names"
        names.write_text("\n".join(f"class {number}" for number in range(family.classes)))
    found = import_model(source, names=names, output=tmp_path / "out")
    assert found.head == family.kind
    for field, value in family.contract.items():
        assert getattr(found.contract, field) == value
    height, width = family.hw
    with Detector.open(found.file, score=0.3) as detector:
        seen = detector(np.full((height, width, 3), 90, np.uint8))
    wanted = sorted(family.objects, key=lambda each: -each.score)
    assert seen.class_id.tolist() == [each.class_id for each in wanted]
    np.testing.assert_allclose(seen.score, [each.score for each in wanted], atol=2e-3)
    np.testing.assert_allclose(seen.xyxy, [each.xyxy for each in wanted], atol=0.1)


def test_rows_whose_number_depends_on_the_picture_are_cut_before_suppression(
    tmp_path: Path,
) -> None:
    """YOLOv7's export with onnxruntime's suppression in the graph: boxes and scores are read."""
    family = FAMILIES["yolov4"]()
    boxes = family.outputs["boxes"][:, :, 0] * (HW[1], HW[0], HW[1], HW[0])
    plain = replace(family, outputs={"boxes": boxes, "confs": family.outputs["confs"]})
    model = onnx.load(str(write_graph(plain, tmp_path / "net.onnx")))
    constants = {
        "limit": np.array([100], np.int64),
        "iou": np.array([0.45], np.float32),
        "least": np.array([0.25], np.float32),
    }
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("Transpose", ["confs"], ["by_class"], perm=[0, 2, 1]),
            make("NonMaxSuppression", ["boxes", "by_class", *constants], ["chosen"]),
        ]
    )
    del model.graph.output[:]
    value = onnx.helper.make_tensor_value_info("chosen", onnx.TensorProto.INT64, [None, 3])
    model.graph.output.append(value)
    onnx.save(model, str(tmp_path / "net.onnx"))
    names = tmp_path / "net.names"
    names.write_text("a\nb\nc\nd")
    found = import_model(tmp_path / "net.onnx", names=names, output=tmp_path / "out")
    assert any("in front of its NonMaxSuppression" in each.says for each in found.evidence)
    with Detector.open(found.file, score=0.3) as detector:
        seen = detector(np.full((*HW, 3), 90, np.uint8))
    wanted = sorted(family.objects, key=lambda each: -each.score)
    assert seen.class_id.tolist() == [each.class_id for each in wanted]
    np.testing.assert_allclose(seen.xyxy, [each.xyxy for each in wanted], atol=0.1)


def test_labels_tell_where_the_classes_begin(tmp_path: Path) -> None:
    """TensorFlow's labels begin at 1, TFLite's at 0; without the first class only labels tell."""
    family = FAMILIES["tensorflow detections"]()
    seen = [each for each in family.objects if each.class_id]
    outputs = {name: array.copy() for name, array in family.outputs.items()}
    for name in ("detection_scores", "detection_classes"):
        outputs[name][0, 0] = 0
    outputs["detection_classes"][0, 1 : len(family.objects)] -= 1
    outputs["detection_classes"][0, len(family.objects) :] = 1
    source = write_graph(replace(family, outputs=outputs), tmp_path / "net.onnx")
    height, width = family.hw
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    lines = [
        f"{each.class_id} {each.centre[0] / width} {each.centre[1] / height} "
        f"{each.size[0] / width} {each.size[1] / height}"
        for each in seen
    ]
    for number in range(3):
        picture = np.full((height, width, 3), 40 * number, np.uint8)
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{number}.png"), picture)
        (tmp_path / "set" / "labels" / f"{number}.txt").write_text("\n".join(lines))
    names = tmp_path / "set" / "net.names"
    names.write_text("a\nb\nc\nd")
    options: dict[str, Any] = {"names": names, "output": tmp_path / "out"}
    assert import_model(source, **options).classes == ("a", "b", "c", "d")
    found = import_model(source, data=tmp_path / "set", **options)
    with Detector.open(found.file, score=0.3) as detector:
        labels = detector(np.full((height, width, 3), 90, np.uint8)).class_id.tolist()
    assert labels == [each.class_id for each in sorted(seen, key=lambda each: -each.score)]
    assert any(each.of == "labels" and "first_label=0" in each.says for each in found.evidence)
