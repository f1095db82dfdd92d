"""KITTI object folders: `training/image_2` and `training/label_2`.

The format is that of the object development kit's readme.txt, https://www.cvlibs.net/datasets/kitti.
"""

from __future__ import annotations

from pathlib import Path

from edge.data.items import (
    EVERY_CLASS,
    Dataset,
    Item,
    Label,
    Problem,
    images_in,
    make_item,
    thin,
)
from edge.errors import DataError
from edge.files import read_file

__all__ = ["KITTI_CLASSES", "read_kitti"]

_LIMIT_BYTES = 64 << 20
KITTI_CLASSES = (
    "Car",
    "Van",
    "Truck",
    "Pedestrian",
    "Person_sitting",
    "Cyclist",
    "Tram",
    "Misc",
)


def read_kitti(folder: Path, limit: int | None = None) -> Dataset:
    """Read `folder/training` (or `folder` itself, if it has `label_2`); DontCare becomes a region.

    Raises:
        DataError: images without a label file, or a line that is not a label.
    """
    root = folder / "training" if (folder / "training").is_dir() else folder
    items: list[Item] = []
    problems: list[Problem] = []
    for image in thin(images_in(root / "image_2"), limit):
        item, told = make_item(image, _labels(root / "label_2" / f"{image.stem}.txt"))
        items.append(item)
        problems.extend(told)
    return Dataset(folder.name, "kitti", KITTI_CLASSES, tuple(items), str(folder), tuple(problems))


def _labels(path: Path) -> list[Label]:
    try:
        lines = read_file(path, limit=_LIMIT_BYTES, error=DataError).decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as KITTI labels: {error}") from error
    return [
        _label(line.split(), f"{path}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _label(fields: list[str], where: str) -> Label:
    if len(fields) < 15:
        raise DataError(f"{where}: {len(fields)} fields; a KITTI label has 15")
    try:
        x1, y1, x2, y2 = (float(field) for field in fields[4:8])
    except ValueError as error:
        raise DataError(f"{where}: fields 5 to 8 are not a box: {error}") from error
    if fields[0] == "DontCare":
        return Label(EVERY_CLASS, (x1, y1, x2, y2), where, crowd=True)
    if fields[0] not in KITTI_CLASSES:
        raise DataError(f"{where}: class {fields[0]!r}; KITTI has {', '.join(KITTI_CLASSES)}")
    return Label(KITTI_CLASSES.index(fields[0]), (x1, y1, x2, y2), where)
