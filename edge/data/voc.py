"""Pascal VOC folders: `JPEGImages/`, `Annotations/*.xml`, `ImageSets/Main/*.txt`.

Corners are pixel indices that count from 1 and belong to the box, so the box that covers them is
(xmin - 1, ymin - 1, xmax, ymax) (VOC2012 development kit, section 6).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from edge.data.items import NO_LABELS, Dataset, Item, Label, Problem, images_in, make_item, thin
from edge.errors import DataError
from edge.files import read_file
from edge.names import check_class_name

__all__ = ["find_voc", "read_voc"]

_LIMIT_BYTES = 64 << 20


class _Object(NamedTuple):
    name: str
    xyxy: tuple[float, float, float, float]
    difficult: bool
    where: str


def find_voc(folder: Path) -> Path | None:
    """The VOC folder that `folder` is, or the one year that a `VOCdevkit` holds; else None.

    Raises:
        DataError: several years.
    """
    if _is_voc(folder):
        return folder
    # Only such names: a set of another layout may hold a VOC folder.
    years = sorted(child for child in folder.glob("VOC*") if _is_voc(child))
    if len(years) > 1:
        names = ", ".join(year.name for year in years)
        raise DataError(f"{folder}: holds {names}; name one of them, such as {years[-1]}")
    return years[0] if years else None


def _is_voc(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def read_voc(path: Path, limit: int | None = None) -> Dataset:
    """Read a VOC folder, or the part of it that `ImageSets/Main/NAME.txt` lists.

    Objects marked `difficult` need not be found. Classes are in alphabetic order.

    Raises:
        DataError: an annotation or image is missing or damaged.
    """
    folder = path.parents[2] if path.suffix == ".txt" else path
    images = {image.stem: image for image in images_in(folder / "JPEGImages")}
    stems = thin(_stems(path, folder), limit)
    read = [(_image(images, stem, folder), *_annotation(folder, stem)) for stem in stems]
    names = tuple(sorted({thing.name for _, things, _ in read for thing in things}))
    items: list[Item] = []
    problems: list[Problem] = []
    if path == folder:
        annotated = set(_stems(path, folder))
        problems += [
            Problem(NO_LABELS, str(one)) for name, one in images.items() if name not in annotated
        ]
    for image, things, hw in read:
        labels = [Label(names.index(t.name), t.xyxy, t.where, ignore=t.difficult) for t in things]
        item, told = make_item(image, labels, hw)
        items.append(item)
        problems.extend(told)
    return Dataset(folder.name, "voc", names, tuple(items), str(path), tuple(problems))


def _stems(path: Path, folder: Path) -> list[str]:
    if path.suffix == ".txt":
        stems = [line.split()[0] for line in _text(path).splitlines() if line.strip()]
    else:
        stems = sorted(xml.stem for xml in (folder / "Annotations").glob("*.xml"))
    if not stems:
        raise DataError(f"{path}: lists no annotated image")
    return stems


def _text(path: Path) -> str:
    try:
        return read_file(path, limit=_LIMIT_BYTES, error=DataError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a list of images in UTF-8: {error}") from error


def _image(images: dict[str, Path], stem: str, folder: Path) -> Path:
    if stem not in images:
        raise DataError(f"{folder / 'Annotations' / stem}.xml: no image {stem}.* in JPEGImages")
    return images[stem]


def _annotation(folder: Path, stem: str) -> tuple[list[_Object], tuple[int, int] | None]:
    path = folder / "Annotations" / f"{stem}.xml"
    try:
        root = ElementTree.fromstring(read_file(path, limit=_LIMIT_BYTES, error=DataError))
        things = [
            _object(node, f"{path}: object {number}")
            for number, node in enumerate(root.findall("object"), 1)
        ]
        height, width = (int(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except DataError:
        raise
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path}: not a VOC annotation: {error}") from error
    # Some tools write 0 for a size they did not look up.
    return things, (height, width) if height > 0 and width > 0 else None


def _object(node: ElementTree.Element, where: str) -> _Object:
    name = (node.findtext("name") or "").strip()
    corners = [node.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if not name or None in corners:
        raise ValueError(f"{where.rpartition(': ')[2]} lacks its name or a corner of its bndbox")
    xmin, ymin, xmax, ymax = (float(corner or "") for corner in corners)
    # A single point is a slip of the hand, not an object of one pixel.
    box = (
        (xmin, ymin, xmin, ymin)
        if xmax <= xmin or ymax <= ymin
        else (xmin - 1, ymin - 1, xmax, ymax)
    )
    check_class_name(name, where)
    return _Object(name, box, (node.findtext("difficult") or "0").strip() == "1", where)
