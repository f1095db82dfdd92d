"""Sets as Darknet and ultralytics describe them: obj.data, train.txt, data.yaml, images/val."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from apps.cli import main
from edge.data.datasets import load, open_dataset
from edge.data.yaml_subset import parse_yaml
from edge.errors import DataError
from edge.measure.accuracy import labelled


def picture(path: Path, label: Path | None, text: str = "1 0.5 0.5 0.25 0.5\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((40, 80, 3), 99, np.uint8))
    if label is not None:
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)
    return path


def split(root: Path) -> Path:
    """Two training pictures and one validation picture in ultralytics' layout."""
    for part, names in (("train", "ab"), ("val", "c")):
        for name in names:
            picture(root / "images" / part / f"{name}.png", root / "labels" / part / f"{name}.txt")
    return root


def names_of(dataset) -> list[str]:
    return [item.image.name for item in dataset.items]


def test_obj_data_gives_its_training_or_validation_pictures(tmp_path: Path) -> None:
    # As AlexeyAB's README has it: paths count from the folder in which Darknet is started.
    data = tmp_path / "darknet" / "data"
    for name in "abc":
        picture(data / "obj" / f"{name}.png", data / "obj" / f"{name}.txt")
    (data / "train.txt").write_text("data/obj/a.png\ndata/obj/b.png\n\n")
    (data / "test.txt").write_text("data/obj/c.png\r\n")
    (data / "obj.names").write_text("air\ndog\n")
    text = "classes = 2\ntrain  = data/train.txt\nvalid  = data/test.txt\nnames = data/obj.names\n"
    (data / "obj.data").write_text(text + "backup = backup/\n# eval=coco\n")
    train = open_dataset(data / "obj.data")
    assert names_of(train) == ["a.png", "b.png"] and train.classes == ("air", "dog")
    val = open_dataset(data / "obj.data", part="val")
    assert names_of(val) == ["c.png"] and not val.problems
    _, item = load(val.items[0])
    assert item.class_id.tolist() == [1] and item.xyxy.tolist() == [[30, 10, 50, 30]]
    assert names_of(open_dataset(data / "train.txt")) == ["a.png", "b.png"]
    assert open_dataset(data / "train.txt").classes == ("air", "dog")


def test_a_list_finds_labels_in_place_of_images_and_counts_pictures_that_are_gone(
    tmp_path: Path,
) -> None:
    root = split(tmp_path / "set")
    lines = [str(root / "images" / "train" / f"{name}.png") for name in ("a", "b", "gone")]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    dataset = open_dataset(tmp_path / "list.txt", ["x", "y"])
    assert names_of(dataset) == ["a.png", "b.png"] and all(len(item) for item in dataset.items)
    assert dataset.dropped == {"picture is missing": 1}
    assert "list.txt:3" in dataset.problems[0].where


COCO8 = """# Ultralytics COCO8 dataset, with this layout:
path: {path}  # dataset root dir
train: images/train # train images (relative to 'path')
val: images/val
test: # test images (optional)

# Classes
names:
  0: person
  1: 'traffic light'

download: |
  import os
  os.system("rm -rf /")  # never run
"""
ROBOFLOW = (
    "train: ../images/train\nval: ../images/val\n\nnc: 2\nnames: ['person', 'traffic light']\n"
)
LISTS = "train:\n- images/train\n- images/val\nval: val.txt\nnames: {0: person, 1: traffic light}\n"


@pytest.mark.parametrize(
    "text", [COCO8.format(path="set"), COCO8.format(path="."), ROBOFLOW, LISTS]
)
def test_a_yaml_of_ultralytics_gives_pictures_and_names(tmp_path: Path, text: str) -> None:
    root = split(tmp_path / "set")
    (root / "val.txt").write_text("./images/val/c.png\n")
    (root / "data.yaml").write_text(text)
    train = open_dataset(root / "data.yaml")
    assert names_of(train) == (["a.png", "b.png", "c.png"] if text is LISTS else ["a.png", "b.png"])
    assert train.classes == ("person", "traffic light")
    assert names_of(open_dataset(root / "data.yaml", part="val")) == ["c.png"]
    assert names_of(labelled(root / "data.yaml", ["person"])) == ["c.png"]


def test_a_folder_of_pictures_has_its_labels_beside_images(tmp_path: Path) -> None:
    root = split(tmp_path / "set")
    val = open_dataset(root / "images" / "val", ["x", "y"])
    assert val.kind == "yolo" and names_of(val) == ["c.png"] and len(val.items[0]) == 1
    (root / "data.yaml").write_text(ROBOFLOW)
    assert open_dataset(root / "images" / "val").classes == ("person", "traffic light")
    assert open_dataset(root / "images").kind == "images"
    assert open_dataset(picture(tmp_path / "plain" / "p.png", None).parent).kind == "images"


def test_the_last_folder_of_pictures_in_a_path_counts(tmp_path: Path) -> None:
    root = split(tmp_path / "images" / "set")
    assert len(open_dataset(root / "images" / "val", ["x", "y"]).items[0]) == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.data", "train = nowhere.txt", "nowhere.txt: cannot be read"),
        ("a.data", "valid = x.txt", "has no train"),
        ("a.data", "train nowhere", r"a\.data:1: .* is not KEY = VALUE"),
        ("a.txt", "nothing.png\nnone.png", r"none of its 2 pictures is there, such as .*a\.txt:1"),
        ("a.txt", "\n", "lists no pictures"),
        ("a.txt", "b\0c.png\n", "none of its 1 pictures"),
        ("a.yaml", "val: x\n", "has no train"),
        ("a.yaml", "train: nowhere\n", "'nowhere' is not there"),
        ("a.yaml", "train: [images/train\n", r"a\.yaml:1: .*\] is missing"),
        ("a.yaml", "train: &x images\n", "begins something other than text"),
        ("a.yaml", "train: !!python/object:os.system x\n", "begins something other than text"),
        ("a.yaml", "train: images/train\ntrain: images/val\n", r"a\.yaml:2: .*stands twice"),
        ("a.yaml", "train: images/train\nnames: {1: a}\n", "mapping from 0"),
        ("a.yaml", "train: images/train\nnc: 3\nnames: [a, b]\n", "says 3 classes and has 2 names"),
        ("a.yaml", "train:\n  deep:\n    er: 1\n", r"a\.yaml:1"),
        ("a.yaml", "train: images/train\nnames: [a]\n", "class 1, but .*a.yaml has 1 names"),
        ("a.yaml", "\xff", "not a text file"),
    ],
)
def test_what_is_wrong_with_a_description_is_said_with_its_place(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    root = split(tmp_path)
    (root / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=words) as error:
        open_dataset(root / name)
    assert "\n" not in str(error.value)


def test_pictures_without_any_label_are_refused_with_the_place_of_labels(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", None)
    (tmp_path / "a.txt").write_text("images/a.png\n")
    with pytest.raises(DataError, match=r"none of its 1 pictures has labels; .*labels/a\.txt"):
        open_dataset(tmp_path / "a.txt")


def test_yaml_scalars_lists_mappings_and_comments() -> None:
    text = (
        "a: x # y\nb: 'it is # not'\nc: [1, 'two, three', \"4\",]\nd:\n  - one\n  - two # 2\n"
        "e:\n  0: zero\n  'k': v\nf: {}\ng: []\nh:\ni: http://x.y/z#w\nj: [a,\n  b]\n---\n"
    )
    assert parse_yaml(text, "t.yaml") == {
        "a": "x",
        "b": "it is # not",
        "c": ["1", "two, three", "4"],
        "d": ["one", "two"],
        "e": {"0": "zero", "k": "v"},
        "f": {},
        "g": [],
        "h": None,
        "i": "http://x.y/z#w",
        "j": ["a", "b"],
    }


def test_the_commands_take_one_description_for_both_parts(tmp_path: Path, capsys) -> None:
    root = tmp_path / "set"
    rng = np.random.default_rng(0)
    for part, names in (("train", "abcd"), ("val", "ef")):
        for name in names:
            label = root / "labels" / part / f"{name}.txt"
            image = picture(root / "images" / part / f"{name}.png", label, "0 0.5 0.5 0.4 0.4\n")
            noise = rng.integers(0, 255, (40, 80, 3)).astype(np.uint8)
            cv2.imwrite(str(image), noise)
    (root / "data.yaml").write_text(ROBOFLOW)
    assert main(["anchors", "--data", str(root / "data.yaml"), "--k", "1"]) == 0
    assert "anchors = " in capsys.readouterr().out
