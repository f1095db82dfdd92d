"""Labelled sets that a file describes: Darknet's `obj.data` and `train.txt`, ultralytics' yaml.

Labels are YOLO's. They are found as both programs do it: in `labels/` in place of the last
`images/` of a picture's path, or else beside the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from edge.data.items import NO_LABELS, Dataset, Item, Problem, images_in, make_item, thin
from edge.data.yaml_subset import Value, parse_yaml
from edge.data.yolo_txt import class_names_of, read_labels
from edge.errors import DataError
from edge.files import plain_text, read_file
from edge.names import check_class_name, read_names

__all__ = ["Part", "is_described", "labels_beside", "read_described", "read_mirrored"]

Part = Literal["train", "val"]
_FOLDERS = ("images", "JPEGImages")
_LIMIT_BYTES = 256 << 20
# How the files call the part that validates.
_KEYS = {"train": ("train",), "val": ("valid", "val")}
# A path in a list counts from the folder in which Darknet was started, some way above the list.
_LEVELS = 4


def is_described(path: Path) -> bool:
    """Return whether `path` is such a file, by its suffix."""
    return path.suffix.lower() in (".data", ".txt", ".yaml", ".yml")


def read_described(
    path: Path, classes: Sequence[str] | None = None, limit: int | None = None, part: Part = "train"
) -> Dataset:
    """Read the part of a labelled set that a file describes.

    Args:
        path: x.data (Darknet), x.yaml (ultralytics), or a list of pictures, one a line.
        classes: names where neither the file nor a `.names` beside it has some.
        part: which part an x.data or x.yaml should give; a list has only one.

    Raises:
        DataError: the file is damaged, has no such part, or none of its pictures is there.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _read(path, _listed(path), _names_beside(path.parent), classes, limit)
    if suffix == ".data":
        return _read_data(path, classes, limit, part)
    return _read_yaml(path, classes, limit, part)


def labels_beside(folder: Path) -> bool:
    """Return whether a folder such as `images/val` has labels in `labels/val`."""
    resolved = folder.resolve()
    own = _label_folder(resolved)
    below = resolved.name not in _FOLDERS
    return below and own is not None and own.is_dir() and any(own.rglob("*.txt"))


def read_mirrored(
    folder: Path, classes: Sequence[str] | None = None, limit: int | None = None
) -> Dataset:
    """Read a folder such as `images/val` whose labels are in `labels/val`.

    Raises:
        DataError: no picture has labels, or a label is damaged.
    """
    resolved = folder.resolve()
    found = [(image, str(image)) for image in images_in(resolved)]
    roots = [resolved, *resolved.parents[: 1 + len(resolved.parts) - _last_images(resolved)]]
    names = next((names for root in roots if (names := _names_beside(root))), None)
    return _read(folder, found, names, classes, limit)


def _last_images(path: Path) -> int:
    """Return the position of the last folder of pictures in a path; -1: there is none."""
    found = [at for at, name in enumerate(path.parts) if name in _FOLDERS]
    return found[-1] if found else -1


def _label_folder(path: Path) -> Path | None:
    at = _last_images(path)
    return None if at < 0 else Path(*path.parts[:at], "labels", *path.parts[at + 1 :])


def _label_path(image: Path) -> Path:
    mirrored = _label_folder(image)
    beside = image.with_suffix(".txt")
    if mirrored is None or (beside.is_file() and not mirrored.with_suffix(".txt").is_file()):
        return beside
    return mirrored.with_suffix(".txt")


def _read(
    path: Path,
    images: Sequence[tuple[Path, str]],
    names: Sequence[str] | None,
    classes: Sequence[str] | None,
    limit: int | None,
) -> Dataset:
    """Read pictures, each with the place that names it, and their labels."""
    chosen = thin(images, limit)
    missing = [where for image, where in chosen if not image.is_file()]
    if len(missing) == len(chosen):
        raise DataError(
            f"{path}: none of its {len(images)} pictures is there, such as {missing[0]}"
        )
    problems = [Problem("picture is missing", where) for where in missing]
    items: list[Item] = []
    labelled = 0
    for image, _ in chosen:
        if not image.is_file():
            continue
        label = _label_path(image)
        labelled += label.is_file()
        if not label.is_file():
            problems.append(Problem(NO_LABELS, str(image)))
        item, found = make_item(image, read_labels(label), fraction=True)
        items.append(item)
        problems.extend(found)
    if not labelled:
        raise DataError(
            f"{path}: none of its {len(items)} pictures has labels; they belong in "
            f"{_label_path(items[0].image)}"
        )
    own = class_names_of(items, names, classes, str(path))
    return Dataset(path.stem, "yolo", own, tuple(items), str(path), tuple(problems))


def _listed(path: Path) -> list[tuple[Path, str]]:
    """Return the pictures of a list, each with its line."""
    lines = [
        (number, line.strip())
        for number, line in enumerate(_text(path).splitlines(), 1)
        if line.strip()
    ]
    if not lines:
        raise DataError(f"{path}: lists no pictures; it takes one path a line")
    place = _placed(path.parent, (line for _, line in lines))
    return [(place(line), f"{path}:{number}: {plain_text(line)[:100]}") for number, line in lines]


def _placed(folder: Path, lines: Iterable[str]) -> Callable[[str], Path]:
    """Return what turns a line into a path, from the first folder upwards where one exists."""
    folders = [folder, *list(folder.resolve().parents)[:_LEVELS], Path()]
    for line in lines:
        for root in folders:
            try:
                if (root / line).exists():
                    return lambda text, root=root: root / text  # type: ignore[misc]
            except (OSError, ValueError):
                continue
    return lambda text: folder / text


def _read_data(path: Path, classes: Sequence[str] | None, limit: int | None, part: Part) -> Dataset:
    options: dict[str, str] = {}
    for number, raw in enumerate(_text(path).splitlines(), 1):
        line = raw.partition("#")[0].strip()
        key, equals, value = line.partition("=")
        if line and not equals:
            raise DataError(f"{path}:{number}: {plain_text(line)[:60]!r} is not KEY = VALUE")
        if line:
            options.setdefault(key.strip(), value.strip())
    target = next((options[key] for key in _KEYS[part] if options.get(key)), None)
    if target is None:
        raise DataError(f"{path}: has no {' or '.join(_KEYS[part])}, which lists the pictures")
    place = _placed(path.parent, (target,))
    names = None
    if options.get("names"):
        names = read_names(_placed(path.parent, (options["names"],))(options["names"]))
    _check_count(path, options.get("classes"), names)
    listed = _listed(place(target))
    return _read(path, listed, names, classes, limit)


def _read_yaml(path: Path, classes: Sequence[str] | None, limit: int | None, part: Part) -> Dataset:
    described = parse_yaml(_text(path), str(path))
    target = next((described[key] for key in _KEYS[part] if described.get(key)), None)
    if target is None:
        raise DataError(f"{path}: has no {part}, which names the pictures")
    if isinstance(target, dict):
        raise DataError(f"{path}: {part} takes a folder, a list of pictures, or several of them")
    root = described.get("path")
    if root is not None and not isinstance(root, str):
        raise DataError(f"{path}: path takes one folder")
    images: list[tuple[Path, str]] = []
    for one in [target] if isinstance(target, str) else target:
        place = _yaml_place(path.parent, root, one)
        try:
            is_folder = place.is_dir()
        except OSError as error:
            raise DataError(
                f"{path}: {part}: {plain_text(one)[:100]!r} is no folder: {error.strerror}"
            ) from error
        if is_folder:
            images += [(image, str(image)) for image in images_in(place.resolve())]
        elif place.suffix == ".txt" and place.is_file():
            images += _listed(place)
        else:
            raise DataError(
                f"{path}: {part}: {plain_text(one)[:100]!r} is not there; it was looked "
                f"for at {place}"
            )
    names = _yaml_names(path, described.get("names"))
    count = described.get("nc")
    _check_count(path, count if isinstance(count, str) else None, names)
    return _read(path, images, names, classes, limit)


def _yaml_place(folder: Path, root: str | None, target: str) -> Path:
    """Return where a part is: below `path`, which counts from the yaml's folder or from above it.

    Files of Roboflow name `../train/images` and mean `train/images`.
    """
    roots = [folder] if root is None else [folder / root, folder.parent / root, folder]
    tries = [base / target for base in roots]
    if target.startswith("../"):
        tries += [base / target[3:] for base in roots]
    for one in tries:
        try:
            if one.exists():
                return one
        except (OSError, ValueError):
            continue
    return tries[0]


def _yaml_names(path: Path, names: Value) -> tuple[str, ...] | None:
    """Return names by number, from a list or from a mapping 0: first, 1: second."""
    if names is None:
        return None
    if isinstance(names, list):
        return tuple(check_class_name(name, f"{path}: names") for name in names)
    if isinstance(names, str) or sorted(names) != sorted(map(str, range(len(names)))):
        raise DataError(f"{path}: names takes a list, or a mapping from 0, 1, ... to each name")
    found = (names[str(number)] for number in range(len(names)))
    return tuple(check_class_name(name, f"{path}: names") for name in found)


def _check_count(path: Path, count: str | None, names: Sequence[str] | None) -> None:
    if count is not None and names is not None and count != str(len(names)):
        raise DataError(f"{path}: says {plain_text(count)[:20]} classes and has {len(names)} names")


def _names_beside(folder: Path) -> tuple[str, ...] | None:
    """Return the names of the one `.names`, `classes.txt` or `data.yaml` in a folder, if any."""
    files = sorted(folder.glob("*.names")) or sorted(folder.glob("classes.txt"))
    if len(files) == 1:
        return read_names(files[0])
    described = folder / "data.yaml"
    if not files and described.is_file():
        return _yaml_names(described, parse_yaml(_text(described), str(described)).get("names"))
    return None


def _text(path: Path) -> str:
    try:
        return read_file(path, limit=_LIMIT_BYTES, error=DataError).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file") from None
