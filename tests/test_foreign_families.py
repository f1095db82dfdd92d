"""Every family of detectors: recognised by a small graph of it, and decoded to what is planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
