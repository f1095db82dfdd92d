"""Labelled images of every kind behind one door, and their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from edge.data.classes import match_classes
from edge.data.coco import find_coco, read_coco
from edge.data.image_files import read_image, turned_upright
from edge.data.items import Dataset, Item, Label, images_in, make_item, thin
from edge.data.kitti import read_kitti
from edge.data.listed import Part, is_described, labels_beside, read_described, read_mirrored
from edge.data.voc import find_voc, read_voc
from edge.data.world import world as scenes
from edge.data.yolo_txt import has_yolo_labels, read_yolo
from edge.errors import DataError

__all__ = ["FRESH_SEED", "Dataset", "Item", "load", "match_classes", "open_dataset", "read_image"]

# Scenes from here on are for evaluation; those below are free for training and calibration.
FRESH_SEED = 5_000_000


def open_dataset(
    path: str | Path,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    part: Part = "train",
) -> Dataset:
    """Find out what `path` holds and read its labels; images are read later, by `load`.

    Args:
        path: a COCO json; a folder of VOC, KITTI, COCO or YOLO layout, or of images alone; a
            VOC split (`ImageSets/Main/val.txt`) or a `VOCdevkit` of one year; Darknet's `obj.data`
            or a list of pictures; ultralytics' `data.yaml`; or `scenes`,
            `scenes://?seed=7&count=500`.
        classes: names for labels that have only numbers, usually the model's.
        limit: take at most this many images, spread evenly over the set.
        part: which part of an `obj.data` or `data.yaml` to open.

    Raises:
        DataError: nothing there, nothing in it, or a damaged label: names file and line.
    """
    if str(path) == "scenes" or str(path).startswith("scenes://"):
        return _scenes(str(path), limit)
    path = Path(path)
    if path.is_file():
        return _from_file(path, classes, limit, part)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    return _from_folder(path, classes, limit)


def _from_file(path: Path, classes: Sequence[str] | None, limit: int | None, part: Part) -> Dataset:
    if path.suffix.lower() == ".json":
        return read_coco(path, limit)
    if path.suffix == ".txt" and path.parts[-3:-1] == ("ImageSets", "Main"):
        return read_voc(path, limit)
    if is_described(path):
        return read_described(path, classes, limit, part)
    raise DataError(
        f"{path}: not a folder, a COCO json, a VOC split (ImageSets/Main/*.txt), an obj.data, a "
        "data.yaml or a list of pictures (.txt)"
    )


def _from_folder(path: Path, classes: Sequence[str] | None, limit: int | None) -> Dataset:
    voc = find_voc(path)
    if voc is not None:
        return read_voc(voc, limit)
    if (path / "training" / "label_2").is_dir() or (path / "label_2").is_dir():
        return read_kitti(path, limit)
    annotations = find_coco(path)
    if annotations is not None:
        return read_coco(annotations, limit)
    if has_yolo_labels(path):
        return read_yolo(path, classes, limit)
    if labels_beside(path):
        return read_mirrored(path, classes, limit)
    items = tuple(make_item(image, [])[0] for image in thin(images_in(path), limit))
    return Dataset(path.name, "images", (), items, str(path))


def load(item: Item) -> tuple[NDArray[np.uint8], Item]:
    """The image, (H, W, 3) BGR uint8, and its boxes in pixels.

    Raises:
        DataError: the image cannot be read, or is not the one that was labelled.
    """
    if item.seed is not None:
        return _render(item, item.seed)
    frame = read_image(item.image)
    height, width = frame.shape[:2]
    return frame, turned_upright(item, frame).in_pixels((height, width))


def _scenes(path: str, limit: int | None) -> Dataset:
    query = dict(parse_qsl(urlsplit(path).query, keep_blank_values=True))
    try:
        seed, count = int(query.pop("seed", FRESH_SEED)), int(query.pop("count", 500))
    except ValueError as error:
        raise DataError(f"{path}: seed and count take whole numbers: {error}") from error
    if query or count < 1 or seed < 0:
        raise DataError(f"{path}: it takes scenes://?seed=S&count=N, S from 0 and N from 1")
    blank = make_item(Path("scene"), [])[0]
    seeds = thin(range(seed, seed + count), limit)
    items = tuple(replace(blank, image=Path(f"scene-{each}"), seed=each) for each in seeds)
    return Dataset("scenes", "scenes", scenes.CLASSES, items, path)


def _render(item: Item, seed: int) -> tuple[NDArray[np.uint8], Item]:
    scene = scenes.render(seed)
    if item.hw is not None:
        # Rendered before, and perhaps of some classes alone since.
        return scene.image, item
    height, width = scene.image.shape[:2]
    rows = zip(scene.class_id.tolist(), scene.xyxy.tolist(), strict=True)
    labels = [Label(class_id, tuple(box), str(item.image)) for class_id, box in rows]
    return scene.image, make_item(item.image, labels, (height, width))[0]
