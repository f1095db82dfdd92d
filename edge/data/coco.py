"""COCO json files (https://cocodataset.org/#format-data), boxes only."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edge.data.items import Dataset, Item, Label, Problem, make_item, thin
from edge.errors import DataError
from edge.files import plain_text, read_file
from edge.names import check_class_name

__all__ = ["find_coco", "read_coco"]

# instances_train2017.json has 448 MB.
_LIMIT_BYTES = 2 << 30
_MOST_PX = 1 << 20


def find_coco(folder: Path) -> Path | None:
    """`annotations.json` in `folder`, or the only json file in it or in its `annotations/`."""
    named = folder / "annotations.json"
    if named.is_file():
        return named
    for place in (folder, folder / "annotations"):
        files = list(place.glob("*.json"))
        if len(files) == 1 and b'"annotations"' in read_file(
            files[0], limit=_LIMIT_BYTES, error=DataError
        ):
            return files[0]
    return None


def read_coco(path: Path, limit: int | None = None) -> Dataset:
    """Read an annotation file whose images lie beside it, in `images/`, or as COCO ships them
    (`annotations/instances_NAME.json` and `NAME/`). Listed images that are not there are left out
    and counted.

    Raises:
        DataError: the file is damaged or not of this format, or none of its images is there.
    """
    document = _document(path)
    number, names = _categories(path, document["categories"])
    labels: dict[int | str, list[Label]] = defaultdict(list)
    for index, annotation in enumerate(document["annotations"]):
        owner, label = _label(annotation, number, path, index)
        labels[owner].append(label)
    images = [_Image(path, index, image) for index, image in enumerate(document["images"])]
    items, problems = _items(path, thin(images, limit), labels)
    name = path.parent.name if path.name == "annotations.json" else path.stem
    return Dataset(name, "coco", names, tuple(items), str(path), tuple(problems))


def _document(path: Path) -> dict[str, list[Any]]:
    try:
        # The standard library's own floats: a COCO file holds millions of them. The fields that
        # are used are checked one by one.
        document = json.loads(
            read_file(path, limit=_LIMIT_BYTES, error=DataError), parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{path}: cannot be read as json: {plain_text(said)}") from error
    wanted = {"images", "annotations", "categories"}
    missing = wanted - set(document) if isinstance(document, dict) else wanted
    if missing:
        raise DataError(f"{path}: not COCO annotations: no {', '.join(sorted(missing))}")
    for name in sorted(wanted):
        if not isinstance(document[name], list):
            raise DataError(f"{path}: not COCO annotations: {name} is no list")
    return dict(document)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def _categories(path: Path, categories: list[Any]) -> tuple[dict[int | str, int], tuple[str, ...]]:
    """The index of each category's id, and the names."""
    number: dict[int | str, int] = {}
    names: list[str] = []
    for index, category in enumerate(categories):
        where = f"{path}: categories[{index}]"
        key, name = _id(category, "id", where), _field(category, "name", where)
        if not isinstance(name, str):
            raise DataError(f"{where}: its name is no text")
        check_class_name(name, where)
        if key in number or name in names:
            raise DataError(f"{where}: {name!r} ({key}) is there twice; delete or rename one")
        number[key] = index
        names.append(name)
    return number, tuple(names)


def _field(entry: Any, name: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: takes an object")
    if name not in entry:
        raise DataError(f"{where}: {name} is missing")
    return entry[name]


def _id(entry: Any, name: str, where: str) -> int | str:
    value = _field(entry, name, where)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DataError(f"{where}: {name} takes a whole number or text")
    return value


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{where}: {name} takes numbers")
    # A whole number of hundreds of digits is no float.
    if abs(value) > 1e300 or not math.isfinite(value):
        raise DataError(f"{where}: {name} is out of a number's range")
    return float(value)


def _label(
    annotation: Any, number: Mapping[int | str, int], path: Path, index: int
) -> tuple[int | str, Label]:
    """The id of the image that an annotation belongs to, and its box."""
    named = isinstance(annotation, dict) and isinstance(annotation.get("id"), int)
    where = f"{path}: annotation {annotation['id'] if named else f'[{index}]'}"
    owner = _id(annotation, "image_id", where)
    category = _id(annotation, "category_id", where)
    if category not in number:
        raise DataError(f"{where}: category {category} is not among categories")
    bbox = _field(annotation, "bbox", where)
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise DataError(f"{where}: bbox takes four numbers")
    x, y, width, height = (_number(side, "bbox", where) for side in bbox)
    area = annotation.get("area")
    label = Label(
        number[category],
        (x, y, x + width, y + height),
        where,
        area=None if area is None else _number(area, "area", where),
        crowd=bool(annotation.get("iscrowd", 0)),
    )
    return owner, label


class _Image:
    """An entry of `images`, checked."""

    def __init__(self, path: Path, index: int, entry: Any) -> None:
        where = f"{path}: images[{index}]"
        self.key = _id(entry, "id", where)
        self.name = _field(entry, "file_name", where)
        if not isinstance(self.name, str) or not _below(self.name):
            raise DataError(
                f"{where}: file_name {plain_text(str(self.name))[:60]!r} leaves the folder of the "
                "images; it takes a name below it"
            )
        self.hw: tuple[int, int] | None = None
        if "height" in entry and "width" in entry:
            sides = [entry[side] for side in ("height", "width")]
            if not all(type(side) is int and 0 < side <= _MOST_PX for side in sides):
                raise DataError(f"{where}: height and width take numbers of pixels")
            self.hw = (sides[0], sides[1])


def _below(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and "\0" not in name and parts[0] != "/" and ".." not in parts


def _items(
    path: Path, images: list[_Image], labels: Mapping[int | str, list[Label]]
) -> tuple[list[Item], list[Problem]]:
    official = path.parent.parent / path.stem.rpartition("_")[2]
    roots = [path.parent, path.parent / "images", path.parent.parent / "images", official]
    items: list[Item] = []
    problems: list[Problem] = []
    for image in images:
        found = next((root / image.name for root in roots if (root / image.name).is_file()), None)
        if found is None:
            problems.append(Problem("image missing", image.name))
            continue
        item, told = make_item(found, labels.get(image.key, []), image.hw)
        items.append(item)
        problems.extend(told)
    if not items:
        raise DataError(
            f"{path}: none of its {len(images)} images lies beside it or in its folder's images/"
        )
    return items, problems
