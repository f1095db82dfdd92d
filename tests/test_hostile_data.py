"""Damaged and malicious images, labels and results end in one line, fast and in little memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.data.datasets import open_dataset
from edge.data.image_files import read_image
from edge.data.image_header import image_hw
from edge.errors import DataError, EdgeError
from edge.measure.bench import read_bench
from edge.runtime.detector import Detector

# Run in a process of its own, where memory can be measured: the peak before and after each file.
WORKER = """
import json, resource, sys, time
from pathlib import Path
from tests.test_hostile_data import READERS
from edge.errors import EdgeError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

for name in sys.argv[2:]:
    path, work = Path(name), Path(sys.argv[1])
    before, began = peak(), time.monotonic()
    try:
        READERS[path.parent.name](path, work)
        said = ""
    except EdgeError as error:
        said = str(error)
    except Exception as error:
        said = f"TRACEBACK {type(error).__name__}: {error}"
    print(json.dumps({"file": name, "said": said, "seconds": time.monotonic() - began,
                      "mib": peak() - before}), flush=True)
"""


def picture(path: Path, hw: tuple[int, int] = (48, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*hw, 3), 90, np.uint8))
    return path


def coco(path: Path, work: Path) -> None:
    folder = work / path.stem
    for name in ("a.jpg", "b.jpg"):
        picture(folder / name)
    shutil.copy(path, folder / "annotations.json")
    open_dataset(folder / "annotations.json")


def yolo(path: Path, work: Path) -> None:
    picture(work / path.stem / "images" / "a.jpg")
    (work / path.stem / "labels").mkdir()
    shutil.copy(path, work / path.stem / "labels" / "a.txt")
    open_dataset(work / path.stem)


def kitti(path: Path, work: Path) -> None:
    picture(work / path.stem / "image_2" / "a.png")
    (work / path.stem / "label_2").mkdir()
    shutil.copy(path, work / path.stem / "label_2" / "a.txt")
    open_dataset(work / path.stem)


def voc(path: Path, work: Path) -> None:
    picture(work / path.stem / "JPEGImages" / "a.jpg", (480, 640))
    (work / path.stem / "Annotations").mkdir()
    shutil.copy(path, work / path.stem / "Annotations" / "a.xml")
    open_dataset(work / path.stem)


def bomb(path: Path, work: Path) -> None:
    {".txt": yolo, ".xml": voc}.get(path.suffix, lambda one, _: read_image(one))(path, work)


def classes(path: Path, work: Path) -> None:
    picture(work / path.stem / "images" / "a.jpg")
    (work / path.stem / "labels").mkdir()
    (work / path.stem / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n")
    name = "classes.txt" if path.suffix == ".txt" else "x.names"
    shutil.copy(path, work / path.stem / name)
    open_dataset(work / path.stem)


def detector(path: Path, _: Path) -> None:
    frame = np.full((120, 160, 3), 90, np.uint8)
    with Detector.open(path, threads=1) as opened:
        opened(frame).to_json(opened.spec.classes)


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "coco-json": coco,
    "yolo-txt": yolo,
    "kitti-txt": kitti,
    "voc-xml": voc,
    "image": lambda path, _: read_image(path),
    "bombs": bomb,
    "names": classes,
    "classes-txt": classes,
    "onnx-detector": detector,
    "bench-json": lambda path, _: read_bench(path),
}


def told(files: list[Path], work: Path) -> list[dict[str, Any]]:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(work), *map(str, files)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def hostile(edge_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    kept = (".jpg", ".bmp", ".ppm", ".txt", ".xml")
    files = [
        path
        for kind in READERS
        for path in sorted((edge_data / "hostile" / kind).iterdir())
        # `a.jpg` is the sound picture beside the labels of `a.txt`.
        if kind != "bombs" or (path.suffix in kept and path.name != "a.jpg")
    ]
    return told(files, tmp_path_factory.mktemp("hostile"))


def test_every_hostile_file_of_data_is_refused_in_one_line(hostile: list[dict[str, Any]]) -> None:
    assert len(hostile) > 25
    for one in hostile:
        assert one["said"] and "TRACEBACK" not in one["said"], one
        assert "\n" not in one["said"] and "\x1b" not in one["said"], one


def test_no_hostile_file_of_data_costs_time_or_memory(hostile: list[dict[str, Any]]) -> None:
    for one in hostile:
        assert one["seconds"] < 2 and one["mib"] < 300, one


FORMATS = (".jpg", ".png", ".bmp", ".webp", ".tif", ".ppm", ".pgm", ".jp2", ".hdr", ".pfm")


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_header_states_the_size_that_opencv_decodes(tmp_path: Path, suffix: str) -> None:
    kind = np.float32 if suffix in (".hdr", ".pfm") else np.uint8
    frame = np.random.default_rng(0).integers(0, 255, (37, 53, 3)).astype(kind)
    frame = frame[..., 0] if suffix == ".pgm" else frame
    assert cv2.imwrite(str(tmp_path / f"a{suffix}"), frame)
    assert image_hw((tmp_path / f"a{suffix}").read_bytes()) == (37, 53)


@pytest.mark.parametrize("lossless", [True, False])
def test_the_header_of_both_kinds_of_webp(tmp_path: Path, lossless: bool) -> None:
    quality = 101 if lossless else 80
    frame = np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8)
    done, data = cv2.imencode(".webp", frame, [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done and image_hw(data.tobytes()) == (37, 53)


def test_the_environment_lifts_the_limit_of_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "a.jpg", (100, 100))
    monkeypatch.setenv("EDGE_MAX_PIXELS", "9999")
    with pytest.raises(DataError, match="set EDGE_MAX_PIXELS=10000"):
        read_image(path)
    monkeypatch.setenv("EDGE_MAX_PIXELS", "10000")
    assert read_image(path).shape == (100, 100, 3)
    monkeypatch.setenv("EDGE_MAX_PIXELS", "many")
    with pytest.raises(DataError, match="takes a number of pixels"):
        read_image(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.jpg", "x/../../a.jpg", ""])
def test_a_coco_image_stays_below_its_folder(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "d" / "b.jpg")
    images = [{"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": name}]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "d" / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"images\[1\].*leaves the folder"):
        open_dataset(tmp_path / "d")


def test_a_voc_split_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    split = tmp_path / "ImageSets" / "Main" / "val.txt"
    split.parent.mkdir(parents=True)
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    split.write_bytes(b"\xff\xfea\n")
    with pytest.raises(EdgeError, match=r"val\.txt: not a list of images in UTF-8"):
        open_dataset(split)
