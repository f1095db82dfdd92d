"""`edge detect` finds what was painted, names pictures as they were given, and draws them whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from apps import cli
from edge.errors import ArtifactError, DataError
from edge.files import to_plain, write_json
from edge.measure.detect import DetectOptions, detect_pictures
from edge.runtime import detector
from edge.runtime.backend import open_backend
from edge.spec import HeadSpec, InputContract, Manifest, ModelSpec, TensorSpec

RED, BLUE = (0, 0, 255), (255, 0, 0)


class Painted:
    """A network that sees a cat in each of 2x2 cells that is red and a dog in each blue one."""

    on_device = False
    name = "painted 1.0"

    def __init__(self) -> None:
        contract = InputContract((64, 64), "stretch")
        head = HeadSpec.of_grid("head", "yolo", (2, 2), ((20.0, 20.0),))
        spec = ModelSpec("painted", "darknet", ("cat", "dog"), contract, (head,))
        sides = (TensorSpec("image", (1, 3, 64, 64)),), (TensorSpec("head", (1, 7, 2, 2)),)
        self.manifest = Manifest(spec, "fp32", *sides, labels=("random weights",))

    def run(self, tensor: np.ndarray) -> list[np.ndarray]:
        seen = tensor[0, :, 16::32, 16::32]
        head = np.zeros((1, 7, 2, 2), np.float32)
        head[0, 5], head[0, 6] = seen[0] * 20 - 10, seen[2] * 20 - 10
        head[0, 4] = np.abs(seen[0] - seen[2]) * 20 - 10
        return [head]

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Make every artifact open as a `Painted`; the options that each was opened with."""
    asked: list[dict[str, Any]] = []

    def replace(_: object, **options: Any) -> Painted:
        asked.append(options)
        return Painted()

    monkeypatch.setattr(detector, "open_backend", replace)
    return asked


def paint(path: Path, cells: dict[tuple[int, int], tuple[int, int, int]]) -> Path:
    """An image of 128x96 with a 40x30 patch in the middle of some of its 2x2 cells."""
    image = np.zeros((96, 128, 3), np.uint8)
    for (row, column), bgr in cells.items():
        y, x = row * 48 + 9, column * 64 + 12
        image[y : y + 30, x : x + 40] = bgr
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


def test_json_has_each_picture_and_its_boxes_and_nothing_else(tmp_path: Path) -> None:
    a = paint(tmp_path / "a.png", {(0, 0): RED, (1, 1): BLUE})
    b = paint(tmp_path / "b.png", {})
    write_json(detect_pictures("m.onnx", [a, b]), tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert [one["image"] for one in found] == [str(a), str(b)]
    assert all(set(one) == {"image", "detections"} for one in found)
    assert found[1]["detections"] == []
    boxes = {one["class"]: one for one in found[0]["detections"]}
    assert set(boxes) == {"cat", "dog"} and boxes["dog"]["class_id"] == 1
    assert set(boxes["cat"]) == {"class", "class_id", "score", "xyxy"}
    # The anchor is 20x20 pixels of 64x64, so 40x30 of the picture: the patch itself.
    assert np.allclose(boxes["cat"]["xyxy"], (12, 9, 52, 39), atol=0.01)
    assert np.allclose(boxes["dog"]["xyxy"], (76, 57, 116, 87), atol=0.01)


def test_pictures_are_named_as_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paint(Path("here.png"), {})
    paint(Path("folder/deep/2.png"), {})
    paint(Path("folder/1.jpg"), {})
    (tmp_path / "folder" / "notes.txt").write_text("no picture")
    found = detect_pictures("m.onnx", ["here.png", "folder"]).pictures
    assert [one.image for one in found] == ["here.png", "folder/1.jpg", "folder/deep/2.png"]


def test_drawn_pictures_show_the_boxes_and_the_names_do_not_clash(tmp_path: Path) -> None:
    one = paint(tmp_path / "in" / "x.png", {(0, 0): RED})
    two = paint(tmp_path / "in" / "deep" / "x.bmp", {})
    target = tmp_path / "new" / "drawn"
    detect_pictures("m.onnx", [one, two], DetectOptions(draw=target))
    assert sorted(path.name for path in target.iterdir()) == ["x-2.detected.jpg", "x.detected.jpg"]
    drawn, before = (cv2.imread(str(p)).astype(int) for p in (target / "x.detected.jpg", one))
    assert drawn.shape == before.shape
    # The box runs along the patch's sides; the other half of the picture is as it was.
    assert np.abs(drawn - before)[24, 10:15].max() > 60
    assert np.abs(drawn - before)[50:].max() < 30
    assert np.abs(cv2.imread(str(target / "x-2.detected.jpg")).astype(int)).max() < 10


def test_a_corrupt_picture_is_one_line_and_leaves_no_half(tmp_path: Path) -> None:
    good = paint(tmp_path / "good.jpg", {})
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(good.read_bytes()[:300])
    target = tmp_path / "drawn"
    with pytest.raises(DataError, match=r"broken\.jpg") as caught:
        detect_pictures("m.onnx", [broken, good], DetectOptions(draw=target))
    assert "\n" not in str(caught.value)
    assert list(target.iterdir()) == []


def test_what_is_not_there_is_told_before_the_network_is_loaded(
    tmp_path: Path, opened: list[dict[str, Any]]
) -> None:
    (tmp_path / "empty").mkdir()
    for wrong in ("gone.jpg", "empty"):
        with pytest.raises(DataError, match=wrong):
            detect_pictures("m.onnx", [tmp_path / wrong])
    with pytest.raises(ValueError, match="nothing to look at"):
        detect_pictures("m.onnx", [])
    assert opened == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    picture = paint(tmp_path / "a.png", {})
    with pytest.raises(ArtifactError, match="no folder can be made"):
        detect_pictures("m.onnx", [picture], DetectOptions(draw=picture / "drawn"))


def test_only_the_cpu_backend_gets_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def opened(path: Path, **options: Any) -> Painted:
        asked.append((path.name, options))
        return Painted()

    monkeypatch.setattr(detector, "open_backend", open_backend)
    monkeypatch.setattr("edge.runtime.backend_ort.OrtBackend", opened)
    monkeypatch.setattr("edge.runtime.backend_trt.TrtBackend", opened)
    picture = paint(tmp_path / "a.png", {})
    for name in ("m.onnx", "m.engine"):
        (tmp_path / name).write_bytes(b"")
        detect_pictures(tmp_path / name, [picture], DetectOptions(threads=3))
    assert asked == [
        ("m.onnx", {"threads": 3, "exact": True, "rearrange": True}),
        ("m.engine", {}),
    ]


def test_score_decides_what_counts(tmp_path: Path) -> None:
    picture = paint(tmp_path / "a.png", {(0, 0): (120, 0, 200)})

    def found(score: float) -> tuple[dict[str, Any], ...]:
        result = detect_pictures("m.onnx", [picture], DetectOptions(score=score))
        return result.pictures[0].detections

    score = found(0.01)[0]["score"]
    assert 0.01 < score < 0.99
    assert found(score + 0.01) == ()


def test_output_names_the_backend_the_labels_and_the_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = paint(tmp_path / "a.png", {(0, 0): RED, (0, 1): RED})
    assert cli.main(["detect", "nets/m.onnx", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert "2 detections in 1 images" in out and "2 cat" in out and "dog" not in out
    assert err.strip() == "m.onnx, random weights, painted 1.0"


def test_a_cut_picture_of_a_folder_is_told_and_the_others_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = paint(tmp_path / "in" / "b.jpg", {(0, 0): RED})
    (tmp_path / "in" / "a.jpg").write_bytes(good.read_bytes()[:300])
    target = tmp_path / "r.json"
    assert cli.main(["detect", "m.onnx", str(tmp_path / "in"), "--json", str(target)]) == 0
    cut, whole = json.loads(target.read_text())
    assert (cut["image"], cut["detections"]) == (str(tmp_path / "in" / "a.jpg"), [])
    assert "a.jpg: the image is cut off" in cut["error"]
    assert set(whole) == {"image", "detections"} and len(whole["detections"]) == 1
    out, err = capsys.readouterr()
    assert "1 detections in 1 images" in out and "cannot be read" in out
    assert "skipped:" in err and "cut off" in err
    (tmp_path / "in" / "b.jpg").unlink()
    with pytest.raises(DataError, match="no picture can be read; the first"):
        detect_pictures("m.onnx", [tmp_path / "in"])


def test_only_the_classes_that_were_asked_for_are_reported(tmp_path: Path) -> None:
    picture = paint(tmp_path / "a.png", {(0, 0): RED, (1, 1): BLUE})
    found = detect_pictures("m.onnx", [picture], DetectOptions(classes=("dog",))).pictures[0]
    assert [one["class"] for one in found.detections] == ["dog"]
    with pytest.raises(DataError, match="has no bird; it has cat, dog"):
        detect_pictures("m.onnx", [picture], DetectOptions(classes=("bird", "cat")))


def test_every_frame_of_a_video_is_looked_at_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (128, 96))
    for cells in ({(0, 0): RED}, {}, {(0, 0): RED, (1, 1): BLUE}):
        writer.write(cv2.imread(str(paint(tmp_path / "one.png", cells))))
    writer.release()
    options = DetectOptions(draw=tmp_path / "drawn", score=0.3)
    found = detect_pictures("m.onnx", [path], options)
    assert [one.frame for one in found.pictures] == [0, 1, 2]
    assert [len(one.detections) for one in found.pictures] == [1, 0, 2]
    assert to_plain(found)[1] == {"image": str(path), "frame": 1, "detections": []}
    assert [one.name for one in (tmp_path / "drawn").iterdir()] == ["v.detected.mp4"]
    drawn = cv2.VideoCapture(str(tmp_path / "drawn" / "v.detected.mp4"))
    assert int(drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
