"""YOLO text labels: one `class cx cy w h` line for each box, in fractions of the image's sides
(the format of Darknet's `training labels`, https://pjreddie.com/darknet/yolo/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge.data.items import (
    NO_IMAGE,
    NO_LABELS,
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
from edge.names import read_names

__all__ = ["class_names_of", "has_yolo_labels", "read_labels", "read_yolo"]

_LIMIT_BYTES = 64 << 20
# A higher number is a slip, and each class would get a name.
_MOST_CLASSES = 10_000


def has_yolo_labels(folder: Path) -> bool:
    """Whether `folder` has `labels/`, or images whose `.txt` lies beside them."""
    if (folder / "labels").is_dir():
        return True
    return any(image.with_suffix(".txt").is_file() for image in images_in(folder))


def read_yolo(
    folder: Path, classes: Sequence[str] | None = None, limit: int | None = None
) -> Dataset:
    """Read `images/` and `labels/`, or images with `labels/*.txt` or `*.txt` beside them.

    An image without a label file shows nothing, and is counted. Names come from `*.names` or
    `classes.txt` in the folder; `classes` are the names where there is no such file.

    Raises:
        DataError: no images, no label that belongs to one, or a line that is not a label.
    """
    root = folder / "images" if (folder / "images").is_dir() else folder
    images = images_in(root)
    texts = {image: _label_path(image, root, folder) for image in images}
    if not any(text.is_file() for text in texts.values()):
        raise DataError(f"{folder}: none of {len(images)} images has a label file of its name")
    items: list[Item] = []
    problems = _without_images(folder, texts)
    for image in thin(images, limit):
        if not texts[image].exists():
            problems.append(Problem(NO_LABELS, str(image)))
        item, told = make_item(image, read_labels(texts[image]), fraction=True)
        items.append(item)
        problems.extend(told)
    names = _names(folder, classes, items)
    return Dataset(folder.name, "yolo", names, tuple(items), str(folder), tuple(problems))


def _without_images(folder: Path, texts: Mapping[Path, Path]) -> list[Problem]:
    """Label files that belong to no image; looked for in `labels/`, which holds nothing else."""
    if not (folder / "labels").is_dir():
        return []
    known = set(texts.values()) | {folder / "labels" / "classes.txt"}
    found = sorted(path for path in (folder / "labels").rglob("*.txt") if path not in known)
    return [Problem(NO_IMAGE, str(path)) for path in found]


def _label_path(image: Path, root: Path, folder: Path) -> Path:
    if (folder / "labels").is_dir():
        return (folder / "labels" / image.relative_to(root)).with_suffix(".txt")
    return image.with_suffix(".txt")


def read_labels(path: Path) -> list[Label]:
    """Read a label file; one that is missing has no labels.

    Raises:
        DataError: it cannot be read, or a line is not a label.
    """
    if not path.exists():
        return []
    try:
        text = read_file(path, limit=_LIMIT_BYTES, error=DataError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as YOLO labels: {error}") from error
    return [
        _label(line, f"{path}:{number}")
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]


def _label(line: str, where: str) -> Label:
    fields = line.split()
    if len(fields) != 5:
        raise DataError(f"{where}: {len(fields)} fields; a label has 5: class cx cy w h")
    try:
        class_id = int(fields[0])
        cx, cy, width, height = (float(field) for field in fields[1:])
    except ValueError as error:
        raise DataError(f"{where}: {line.strip()!r} is not 'class cx cy w h': {error}") from error
    if not 0 <= class_id <= _MOST_CLASSES:
        raise DataError(
            f"{where}: class {class_id}; class numbers begin at 0 and end below {_MOST_CLASSES}"
        )
    if max(abs(cx), abs(cy)) > 2:
        raise DataError(f"{where}: {line.strip()!r} is in pixels; it takes fractions of the image")
    box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    return Label(class_id, box, where)


def _names(folder: Path, classes: Sequence[str] | None, items: Sequence[Item]) -> tuple[str, ...]:
    files = sorted(folder.glob("*.names")) or sorted(folder.glob("classes.txt"))
    if len(files) > 1:
        raise DataError(f"{folder}: {len(files)} *.names files; leave the one of these labels")
    own = read_names(files[0]) if files else None
    return class_names_of(items, own, classes, str(folder), str(files[0]) if files else None)


def class_names_of(
    items: Sequence[Item],
    own: Sequence[str] | None,
    classes: Sequence[str] | None,
    source: str,
    named_by: str | None = None,
) -> tuple[str, ...]:
    """Return the names of the labels' classes: their own, else `classes`, else "0", "1", ...

    Args:
        source: the data set, for the message.
        named_by: the file that has `own`, where that is another one.

    Raises:
        DataError: a label has a class without a name.
    """
    highest = max((int(item.class_id.max()) for item in items if len(item)), default=-1)
    if own is not None:
        names, where = tuple(own), named_by or source
    elif classes:
        names, where = tuple(classes), "the model"
    else:
        return tuple(map(str, range(highest + 1)))
    if highest >= len(names):
        raise DataError(
            f"{source}: a label has class {highest}, but {where} has {len(names)} names (from 0)"
        )
    return names
