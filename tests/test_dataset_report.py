"""`edge data` finds what was planted: duplicates, tiny boxes, missing labels, shared pictures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from apps.cli import main
from edge.built_in import BUILT_IN
from edge.data.datasets import load, open_dataset
from edge.data.items import Item
from edge.detections import Detections, iou_matrix
from edge.measure.dataset_report import find_faults, report_dataset
from edge.measure.views import with_views
from edge.runtime.detector import Detector
from tests.support.folders import write_yolo_folder

NAMES = ("red", "blue")


def item(*boxes: tuple[float, float, float, float, int]) -> Item:
    rows = np.array(boxes, np.float32).reshape(-1, 5)
    no = np.zeros(len(rows), bool)
    area = (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])
    return Item(Path("a.png"), rows[:, :4], rows[:, 4].astype(np.int32), no, no, area, (100, 100))


def found(*boxes: tuple[float, float, float, float, float, int]) -> Detections:
    rows = np.array(boxes, np.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int32))


def kinds(*arguments: object) -> list[str]:
    return sorted(fault.kind for fault in find_faults(*arguments))  # type: ignore[arg-type]


def test_tiny_and_double_labels_are_found_and_neighbours_are_not() -> None:
    assert kinds(item((0, 0, 50, 50, 0), (0, 0, 49, 50, 0)), NAMES) == ["duplicate"]
    assert kinds(item((0, 0, 50, 50, 0), (0, 0, 49, 50, 1)), NAMES) == []
    assert kinds(item((10, 10, 11, 40, 0), (60, 60, 90, 90, 1)), NAMES) == ["tiny"]


def test_sure_boxes_that_no_label_explains_are_likely_missing() -> None:
    known = item((0, 0, 40, 40, 0))
    assert kinds(known, NAMES, found((0, 0, 41, 40, 0.9, 0))) == []
    assert kinds(known, NAMES, found((60, 60, 90, 90, 0.9, 1))) == ["likely missing"]
    assert kinds(known, NAMES, found((60, 60, 90, 90, 0.3, 1))) == []
    assert kinds(known, NAMES, found((0, 0, 41, 40, 0.9, 1))) == ["likely wrong class"]


def test_regions_that_need_no_single_labels_explain_boxes() -> None:
    known = item((0, 0, 90, 90, 0))
    crowd = replace(known, crowd=np.array([True]))
    assert kinds(crowd, NAMES, found((30, 30, 50, 50, 0.9, 0))) == []


def test_removed_labels_of_the_built_in_world_are_found() -> None:
    """Of a tenth of the labels taken away most are listed, and few boxes are listed besides."""
    rng, dataset = np.random.default_rng(1), open_dataset("scenes://?seed=5200000&count=60")
    gone = listed = right = labels = 0
    with Detector.open(BUILT_IN["tiny-yolo-scenes"], score=0.2, threads=1) as detector:
        look = with_views(detector, ("plain", "flip"))
        for each in dataset.items:
            frame, known = load(each)
            drop = rng.random(len(known)) < 0.1
            arrays = {name: getattr(known, name)[~drop] for name in ("xyxy", "class_id", "crowd")}
            arrays |= {name: getattr(known, name)[~drop] for name in ("ignore", "area")}
            faults = find_faults(replace(known, **arrays), dataset.classes, look(frame))
            boxes = [fault.box for fault in faults if fault.kind == "likely missing"]
            overlaps = iou_matrix(known.xyxy[drop], np.array(boxes, np.float32).reshape(-1, 4))
            gone, labels = gone + int(drop.sum()), labels + int((~drop).sum())
            listed += len(boxes)
            right += int((overlaps.max(axis=1, initial=0) > 0.5).sum())
    assert right / gone >= 0.75
    assert (listed - right) / labels <= 0.02


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three scenes with YOLO labels; the third is the first again, as a JPEG of half the size."""
    root = write_yolo_folder(tmp_path / "set", "scenes://?seed=91000&count=2")
    labels = root / "labels" / "1.txt"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join([*lines, lines[0], "0 1.5 1.5 0.1 0.1", "0 0.5 0.5 0 0"]))
    half = cv2.resize(cv2.imread(str(root / "images" / "0.png")), None, fx=0.5, fy=0.5)
    cv2.imwrite(str(root / "images" / "2.jpg"), half)
    shutil.copy(root / "labels" / "0.txt", root / "labels" / "2.txt")
    return root


def test_every_planted_fault_is_counted(folder: Path) -> None:
    report = report_dataset(open_dataset(folder))
    assert report.counted == {"duplicate": 1, "box outside the image": 1, "box without area": 1}
    assert [(Path(one.first).name, Path(one.second).name) for one in report.twins] == [
        ("0.png", "2.jpg")
    ]
    assert report.images == 3 and not report.twins[0].exact
    assert sum(one["boxes"] for one in report.classes.values()) == report.boxes
    assert sum(map(sum, report.positions)) == report.boxes == sum(report.sizes.values())


def test_the_command_writes_json_and_a_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    mirrored = cv2.imread(str(folder / "images" / "1.png"))[:, ::-1]
    cv2.imwrite(str(other / "images" / "m.png"), mirrored)
    json_path, artifact = tmp_path / "d.json", BUILT_IN["tiny-yolo-scenes"]
    flags = f"--val {other} --against {artifact} --report {tmp_path} --json {json_path}"
    assert main(["data", str(folder), *flags.split()]) == 0
    result = json.loads(json_path.read_text())
    assert [Path(one["second"]).name for one in result["leaks"]] == ["m.png"]
    page = (tmp_path / "data.html").read_text()
    assert "labels that look wrong" in capsys.readouterr().out
    assert page.count("<img") >= 3 and "http" not in page.replace("http-equiv", "")
