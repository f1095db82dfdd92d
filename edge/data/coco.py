"""COCO json files (https://cocodataset.org/#format-data), boxes only."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from edge.data.items import Dataset, Item, Label, Problem, make_item, thin
from edge.errors import DataError

__all__ = ["find_coco", "read_coco"]


def find_coco(folder: Path) -> Path | None:
    """`annotations.json` in `folder`, or the only json file in it or in its `annotations/`."""
    named = folder / "annotations.json"
    if named.is_file():
        return named
    for place in (folder, folder / "annotations"):
        files = list(place.glob("*.json"))
        if len(files) == 1 and b'"annotations"' in files[0].read_bytes():
            return files[0]
    return None


def read_coco(path: Path, limit: int | None = None) -> Dataset:
    """Read an annotation file whose images lie beside it, in `images/`, or as COCO ships them
    (`annotations/instances_NAME.json` and `NAME/`). Listed images that are not there are told and
    left out.

    Raises:
        DataError: the file is damaged or not of this format, or none of its images is there.
    """
    document = _document(path)
    try:
        number = {category["id"]: i for i, category in enumerate(document["categories"])}
        names = tuple(str(category["name"]) for category in document["categories"])
        labels: dict[Any, list[Label]] = defaultdict(list)
        for annotation in document["annotations"]:
            labels[annotation["image_id"]].append(_label(annotation, number, path))
        items, problems = _items(path, thin(document["images"], limit), labels)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not COCO annotations: {type(error).__name__} {error}") from error
    name = path.parent.name if path.name == "annotations.json" else path.stem
    return Dataset(name, "coco", names, tuple(items), str(path), tuple(problems))


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as json: {error}") from error
    wanted = {"images", "annotations", "categories"}
    missing = wanted - set(document) if isinstance(document, dict) else wanted
    if missing:
        raise DataError(f"{path}: not COCO annotations: no {', '.join(sorted(missing))}")
    return dict(document)


def _label(annotation: dict[str, Any], number: dict[int, int], path: Path) -> Label:
    where = f"{path}: annotation {annotation.get('id')}"
    if annotation["category_id"] not in number:
        raise DataError(f"{where}: category {annotation['category_id']} is not among categories")
    x, y, width, height = (float(side) for side in annotation["bbox"])
    area = annotation.get("area")
    return Label(
        number[annotation["category_id"]],
        (x, y, x + width, y + height),
        where,
        area=None if area is None else float(area),
        crowd=bool(annotation.get("iscrowd", 0)),
    )


def _items(
    path: Path, images: list[dict[str, Any]], labels: dict[Any, list[Label]]
) -> tuple[list[Item], list[Problem]]:
    official = path.parent.parent / path.stem.rpartition("_")[2]
    roots = [path.parent, path.parent / "images", path.parent.parent / "images", official]
    items: list[Item] = []
    problems: list[Problem] = []
    for image in images:
        found = [
            root / image["file_name"] for root in roots if (root / image["file_name"]).is_file()
        ]
        if not found:
            problems.append(Problem("image missing", str(image["file_name"])))
            continue
        hw = (image["height"], image["width"]) if "height" in image else None
        item, told = make_item(found[0], labels.get(image["id"], []), hw)
        items.append(item)
        problems.extend(told)
    if not items:
        raise DataError(
            f"{path}: none of its {len(images)} images lies beside it or in its folder's images/"
        )
    return items, problems
