"""Label files of every kind give the boxes that their format means, or one line of complaint."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.data.datasets import load, match_classes, open_dataset
from edge.data.world.world import render
from edge.errors import DataError

XML = """<annotation><size><width>{w}</width><height>40</height></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def picture(path: Path, hw: tuple[int, int] = (40, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    assert cv2.imwrite(str(path), rng.integers(0, 256, (*hw, 3), np.uint8))
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def voc(folder: Path, objects: str, name: str = "a", width: int = 60) -> Path:
    picture(folder / "JPEGImages" / f"{name}.jpg")
    write(folder / "Annotations" / f"{name}.xml", XML.format(w=width, objects=objects))
    return folder


def coco(path: Path, annotations: list[dict[str, object]], **image: object) -> Path:
    document = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40, **image}],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [{"id": i, "image_id": 7, **a} for i, a in enumerate(annotations)],
    }
    return write(path, json.dumps(document))


def one_line(error: pytest.ExceptionInfo[DataError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/sub/a.jpg", "labels/sub/a.txt"),
        ("images/sub/a.JPG", "images/sub/a.txt"),
        ("a.jpg", "labels/a.txt"),
        ("a.PNG", "a.txt"),
        ("sub/a.jpg", "sub/a.txt"),
    ],
)
def test_yolo_fractions_become_pixels(tmp_path: Path, image: str, label: str) -> None:
    picture(tmp_path / image)
    write(tmp_path / label, "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.1 0.2 0.2\n")
    write(tmp_path / "x.names", "cat\n dog \n\n")
    dataset = open_dataset(tmp_path)
    assert (dataset.kind, dataset.classes, dataset.problems) == ("yolo", ("cat", "dog"), ())
    frame, item = load(dataset.items[0])
    assert frame.shape == (40, 60, 3)
    np.testing.assert_allclose(item.xyxy, [[22.5, 10, 37.5, 30], [0, 0, 12, 8]], atol=1e-5)
    np.testing.assert_allclose(item.area, [300, 96], rtol=1e-5)
    assert item.class_id.tolist() == [1, 0]


def test_an_empty_line_among_names_would_move_the_classes_after_it(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", "1 0.5 0.5 0.2 0.2")
    write(tmp_path / "x.names", "cat\n\ndog\n")
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    one_line(error, "x.names:2: an empty line")


def test_a_folder_in_a_label_files_place_is_not_a_missing_label(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    picture(tmp_path / "images/b.jpg")
    write(tmp_path / "labels/b.txt", "0 0.5 0.5 0.2 0.2")
    (tmp_path / "labels/a.txt").mkdir()
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    one_line(error, "a.txt", "cannot be read")


def test_yolo_image_without_label_file_shows_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    picture(tmp_path / "images/b.jpg")
    write(tmp_path / "labels/b.txt", "2 0.5 0.5 0.2 0.2")
    dataset = open_dataset(tmp_path)
    assert [len(item) for item in dataset.items] == [0, 1]
    assert dataset.classes == ("0", "1", "2")
    assert open_dataset(tmp_path, classes=("a", "b", "c")).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2", ["a.txt:2", "4 fields"]),
        ("x 0.5 0.5 0.2 0.2", ["a.txt:2", "class cx cy w h"]),
        ("0 0.5 nan 0.2 0.2", ["a.txt:2", "finite"]),
        ("-1 0.5 0.5 0.2 0.2", ["a.txt:2", "begin at 0"]),
        ("0 320 200 40 40", ["a.txt:2", "pixels"]),
        ("9 0.5 0.5 0.2 0.2", ["class 9", "1 names"]),
    ],
)
def test_yolo_line_that_is_no_label_is_named(tmp_path: Path, line: str, words: list[str]) -> None:
    picture(tmp_path / "a.jpg")
    write(tmp_path / "labels/a.txt", f"0 0.5 0.5 0.2 0.2\n{line}\n")
    write(tmp_path / "x.names", "cat")
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    one_line(error, *words)


def test_yolo_labels_of_other_images_are_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/b.txt", "0 0.5 0.5 0.2 0.2")
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    one_line(error, "none of 1 images")


def test_voc_corners_count_from_one_and_belong_to_the_box(tmp_path: Path) -> None:
    objects = OBJECT.format(name="dog", difficult=0, box=(1, 1, 60, 40))
    objects += OBJECT.format(name="cat", difficult=1, box=(11, 5, 20, 8))
    dataset = open_dataset(voc(tmp_path, objects))
    assert (dataset.kind, dataset.classes) == ("voc", ("cat", "dog"))
    _, item = load(dataset.items[0])
    assert item.xyxy.tolist() == [[0, 0, 60, 40], [10, 4, 20, 8]]
    assert item.class_id.tolist() == [1, 0]
    assert item.ignore.tolist() == [False, True]
    assert not item.crowd.any()


def test_a_devkit_of_one_year_is_that_year(tmp_path: Path) -> None:
    box = OBJECT.format(name="dog", difficult=0, box=(1, 1, 9, 9))
    voc(tmp_path / "VOCdevkit" / "VOC2007", box)
    dataset = open_dataset(tmp_path / "VOCdevkit")
    assert (dataset.kind, dataset.name, len(dataset)) == ("voc", "VOC2007", 1)
    voc(tmp_path / "VOCdevkit" / "VOC2012", box)
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path / "VOCdevkit")
    one_line(error, "holds VOC2007, VOC2012", "name one of them")
    voc(tmp_path / "mixed" / "other", box)
    picture(tmp_path / "mixed" / "images" / "a.jpg")
    write(tmp_path / "mixed" / "labels" / "a.txt", "0 .5 .5 .2 .2\n")
    assert open_dataset(tmp_path / "mixed").kind == "yolo"


def test_voc_split_file_selects_images(tmp_path: Path) -> None:
    for name in "abc":
        voc(tmp_path, OBJECT.format(name="dog", difficult=0, box=(1, 1, 9, 9)), name)
    split = write(tmp_path / "ImageSets/Main/val.txt", "c\na\n")
    assert [item.image.stem for item in open_dataset(split).items] == ["c", "a"]
    assert len(open_dataset(tmp_path)) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation><object>", ["a.xml", "not a VOC annotation"]),
        (
            "<annotation><object><name>x</name></object></annotation>",
            ["a.xml", "object 1", "bndbox"],
        ),
    ],
)
def test_voc_damaged_xml_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    voc(tmp_path, "")
    write(tmp_path / "Annotations/a.xml", text)
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    one_line(error, *words)


def test_voc_annotation_for_another_size_is_refused(tmp_path: Path) -> None:
    box = OBJECT.format(name="dog", difficult=0, box=(1, 1, 9, 9))
    with pytest.raises(DataError) as error:
        load(open_dataset(voc(tmp_path, box, width=80)).items[0])
    one_line(error, "a.jpg", "60x40", "80x40")


def test_kitti_dontcare_is_a_region_of_every_class(tmp_path: Path) -> None:
    picture(tmp_path / "training/image_2/000000.png")
    tail = "-1 -1 -1 -1000 -1000 -1000 -10"
    lines = [f"Car 0 0 0 1.5 2.5 11.5 12.5 {tail}", f"DontCare -1 -1 -10 20 20 30 30 {tail}"]
    path = write(tmp_path / "training/label_2/000000.txt", "\n".join(lines))
    dataset = open_dataset(tmp_path)
    _, item = load(dataset.items[0])
    assert dataset.kind == "kitti"
    assert item.xyxy.tolist() == [[1.5, 2.5, 11.5, 12.5], [20, 20, 30, 30]]
    assert dataset.classes[item.class_id[0]] == "Car"
    assert (item.class_id[1], item.crowd.tolist()) == (-1, [False, True])
    write(path, f"{lines[0]}\nCar 0 0 0 1 2 3\n")
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    one_line(error, "000000.txt:2", "7 fields")


@pytest.mark.parametrize("place", ["a.jpg", "images/a.jpg"])
def test_coco_boxes_areas_and_crowds(tmp_path: Path, place: str) -> None:
    picture(tmp_path / place)
    path = coco(
        tmp_path / "annotations.json",
        [
            {"category_id": 3, "bbox": [1.5, 2, 10, 20], "area": 77.5, "iscrowd": 0},
            {"category_id": 90, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        ],
    )
    for source in (path, tmp_path):
        dataset = open_dataset(source)
        _, item = load(dataset.items[0])
        assert (dataset.kind, dataset.classes) == ("coco", ("cat", "dog"))
        assert item.xyxy.tolist() == [[1.5, 2, 11.5, 22], [0, 0, 60, 40]]
        assert item.area.tolist() == [77.5, 2400]
        assert item.class_id.tolist() == [1, 0]
        assert item.crowd.tolist() == [False, True]


@pytest.mark.parametrize(
    "file", ["anything.json", "annotations.json", "annotations/instances_val2017.json"]
)
def test_a_folder_with_one_coco_json_is_taken_for_it(tmp_path: Path, file: str) -> None:
    official = file.endswith("val2017.json")
    picture(tmp_path / ("val2017/a.jpg" if official else "images/a.jpg"))
    coco(tmp_path / file, [{"category_id": 3, "bbox": [1, 2, 10, 20]}])
    dataset = open_dataset(tmp_path)
    assert dataset.kind == "coco"
    assert len(dataset.items[0]) == 1


def test_coco_images_that_are_not_there_are_told(tmp_path: Path) -> None:
    path = coco(tmp_path / "x.json", [])
    with pytest.raises(DataError) as error:
        open_dataset(path)
    one_line(error, "x.json", "none of its 1 images")
    document = json.loads(path.read_text())
    document["images"].append({"id": 8, "file_name": "b.jpg", "width": 60, "height": 40})
    write(path, json.dumps(document))
    picture(tmp_path / "b.jpg")
    assert open_dataset(path).dropped == {"image missing": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', ["x.json", "json"]),
        ("[1, 2]", ["x.json", "not COCO"]),
        ("null", ["x.json", "not COCO"]),
        ("[" * 100_000, ["x.json", "cannot be read as json"]),
        ('{"images": [], "categories": []}', ["x.json", "no annotations"]),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', ["x.json", "file_name"]),
    ],
)
def test_coco_damaged_json_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(DataError) as error:
        open_dataset(write(tmp_path / "x.json", text))
    one_line(error, *words)


@pytest.mark.parametrize(
    ("box", "kept", "reason"),
    [
        ([10, 10, 0, 5], None, "box without area"),
        ([10, 10, -4, 5], None, "box without area"),
        ([70, 10, 5, 5], None, "box outside the image"),
        ([50, 30, 20, 20], [50, 30, 60, 40], "box clipped to the image"),
        ([50.5, 30, 10, 10], [50.5, 30, 60.5, 40], None),
    ],
)
def test_box_rules_are_told(
    tmp_path: Path, box: list[float], kept: list[float] | None, reason: str | None
) -> None:
    picture(tmp_path / "a.jpg")
    path = coco(tmp_path / "x.json", [{"category_id": 3, "bbox": box, "area": 400}])
    dataset = open_dataset(path)
    assert dataset.items[0].xyxy.tolist() == ([kept] if kept else [])
    assert dataset.dropped == ({reason: 1} if reason else {})
    if reason:
        assert dataset.problems[0].where.endswith("x.json: annotation 0")
    if reason == "box clipped to the image":
        assert dataset.items[0].area.tolist() == [100]


def test_folder_of_images_has_no_labels_and_limit_spreads(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / f"{i}.png", (4, 4))
    dataset = open_dataset(tmp_path, limit=3)
    assert (dataset.kind, dataset.classes) == ("images", ())
    assert [item.image.stem for item in dataset.items] == ["0", "3", "6"]
    with pytest.raises(ValueError, match="limit"):
        open_dataset(tmp_path, limit=0)


def test_scenes_come_with_the_boxes_of_their_seed() -> None:
    dataset = open_dataset("scenes://?seed=5&count=4", limit=2)
    assert [item.seed for item in dataset.items] == [5, 7]
    for item in dataset.items:
        frame, labelled = load(item)
        scene = render(item.seed or 0)
        np.testing.assert_array_equal(frame, scene.image)
        np.testing.assert_array_equal(labelled.xyxy, scene.xyxy)
        np.testing.assert_array_equal(labelled.class_id, scene.class_id)
    assert len(open_dataset("scenes")) == 500
    for wrong in ("seed=x", "count=0", "cuont=3"):
        with pytest.raises(DataError, match="scenes://"):
            open_dataset(f"scenes://?{wrong}")


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    for path, word in ((tmp_path / "none", "no such"), (tmp_path, "no images")):
        with pytest.raises(DataError) as error:
            open_dataset(path)
        one_line(error, str(path), word)


def test_names_join_whatever_their_spelling() -> None:
    model = ("person", "Dining Table", "tv", "couch", "airplane", "motorcycle", "potted plant")
    names = (" tvmonitor", "sofa", "aeroplane", "motorbike", "diningtable", "potted_plant", "cow")
    assert match_classes(names, model).tolist() == [2, 3, 4, 5, 1, 6, -1]
    assert match_classes(model, names).tolist() == [-1, 4, 0, 1, 2, 3, 5]


def test_numbers_join_by_number_only_when_they_fit() -> None:
    assert match_classes(("0", "1"), ("cat", "dog", "cow")).tolist() == [0, 1]
    with pytest.raises(DataError, match="names file"):
        match_classes(("0", "1", "2"), ("cat", "dog"))
    with pytest.raises(DataError, match="share no class"):
        match_classes(("a", "b"), ("cat", "dog"))


def test_real_folders_open(edge_data: Path) -> None:
    wanted = {
        "aix": ("yolo", 115, 60, 1501),
        "bccd": ("voc", 292, 3, 3941),
        "bccd/ImageSets/Main/val.txt": ("voc", 87, 3, 1137),
        "kitti": ("kitti", 3, 8, 10),
        "coco/val": ("coco", 300, 80, 2943),
    }
    for name, figures in wanted.items():
        data = open_dataset(edge_data / name)
        boxes = sum(len(item) for item in data.items)
        assert (data.kind, len(data), len(data.classes), boxes) == figures


def test_zero_size_boxes_of_bccd_are_told(edge_data: Path) -> None:
    problems = open_dataset(edge_data / "bccd").problems
    assert [(p.reason, Path(p.where.split(":")[0]).stem) for p in problems] == [
        ("box without area", "BloodImage_00338"),
        ("box without area", "BloodImage_00343"),
    ]
