"""Odd image files: pixels as Pillow and OpenCV's imread give them, alike for every command."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.data.datasets import load, open_dataset
from edge.data.distinct import Seen, pictures
from edge.data.image_files import read_image
from edge.errors import DataError
from edge.measure.detect import detect_pictures
from edge.measure.evaluate import evaluate
from tests.support.painted import write_painted, write_pictures
from tests.support.tolerances import CMYK_ATOL
from tests.test_datasets import OBJECT, XML, coco, one_line, picture, write

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
ORIENTATION = 0x112


def smooth(hw: tuple[int, int] = (40, 60)) -> Any:
    rng = np.random.default_rng(0)
    return Image.fromarray(cv2.resize(rng.integers(0, 256, (4, 6, 3), np.uint8), hw[::-1]))


def encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return np.asarray(image)[..., ::-1]


def alpha(image: Any) -> Any:
    rng = np.random.default_rng(1)
    layer = Image.fromarray(rng.integers(0, 256, image.size[::-1], np.uint8))
    return Image.merge("RGBA", (*image.split(), layer))


ODD = {
    "cmyk.jpg": lambda: encoded(smooth().convert("CMYK"), "JPEG"),
    "palette.png": lambda: encoded(smooth().convert("P", palette=1), "PNG"),
    "transparent.png": lambda: encoded(smooth().convert("P", palette=1), "PNG", transparency=3),
    "alpha.png": lambda: encoded(alpha(smooth()), "PNG"),
    "alpha.webp": lambda: encoded(alpha(smooth()), "WEBP", lossless=True, exact=True),
    "grey.png": lambda: encoded(smooth().convert("L"), "PNG"),
    "grey.jpg": lambda: encoded(smooth().convert("L"), "JPEG"),
    "grey-alpha.png": lambda: encoded(smooth().convert("LA"), "PNG"),
    "bits.png": lambda: encoded(smooth().convert("1"), "PNG"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_give_the_pixels_of_pillow_and_imread(tmp_path: Path, name: str) -> None:
    data, path = ODD[name](), tmp_path / name
    path.write_bytes(data)
    image = read_image(path)
    np.testing.assert_array_equal(image, cv2.imread(str(path)))
    np.testing.assert_allclose(
        image, by_pillow(data), rtol=0, atol=CMYK_ATOL if "cmyk" in name else 0
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(smooth(), "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), by_pillow(data))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_image_equals_imread(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"ä{suffix}")
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
@pytest.mark.parametrize(
    ("suffix", "kind", "words"),
    [
        (".png", "uint16", "16 bits a channel"),
        (".tiff", "uint16", "16 bits a channel"),
        (".hdr", "float32", "32 bits a channel"),
    ],
)
def test_more_than_eight_bits_are_named(
    tmp_path: Path, shape: tuple[int, ...], suffix: str, kind: str, words: str
) -> None:
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), np.full(shape, 900, kind))
    with pytest.raises(DataError) as error:
        read_image(tmp_path / f"deep{suffix}")
    one_line(error, f"deep{suffix}", words)


def turned(path: Path, orientation: int) -> Path:
    """The picture of a PNG file stored in another orientation, which EXIF makes good again."""
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    once = Image.Exif()
    once[ORIENTATION] = undo
    stored = ImageOps.exif_transpose(
        Image.open(io.BytesIO(encoded(Image.open(path), "PNG", exif=once)))
    )
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path.write_bytes(encoded(stored, "PNG", exif=exif))
    return path


BOX = (11, 5, 30, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_the_stored_picture_are_turned_with_it(tmp_path: Path, orientation: int) -> None:
    """Whoever passes EXIF over states the stored size; Pillow turns a mask of the box."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(smooth(), "PNG", exif=exif))
    mask = np.zeros((40, 60), np.uint8)
    x1, y1, x2, y2 = BOX
    mask[y1:y2, x1:x2] = 255
    marked = by_pillow(encoded(Image.fromarray(mask), "PNG", exif=exif))[..., 0]
    rows, columns = np.nonzero(marked)
    wanted = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    annotation = {"bbox": (x1, y1, x2 - x1, y2 - y1), "category_id": 3, "area": 5, "iscrowd": 0}
    path = coco(tmp_path / "a.json", [annotation], file_name="images/a.png")
    frame, item = load(open_dataset(path).items[0])
    assert item.hw == frame.shape[:2] == marked.shape
    # The same size both ways: what was stated says nothing, boxes count as upright.
    np.testing.assert_array_equal(item.xyxy[0], wanted if orientation > 4 else BOX)


def test_boxes_of_the_upright_picture_stay(tmp_path: Path) -> None:
    path = tmp_path / "JPEGImages" / "a.png"
    turned(picture(path, (40, 60)), 6)
    box = OBJECT.format(name="dog", difficult=0, box=(11, 6, 30, 20))
    write(tmp_path / "Annotations" / "a.xml", XML.format(w=60, objects=box))
    frame, item = load(open_dataset(tmp_path).items[0])
    assert frame.shape == (40, 60, 3)
    np.testing.assert_array_equal(item.xyxy, [(10, 5, 30, 20)])


@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_detect_evaluate_and_calibrate_see_one_upright_picture(
    tmp_path: Path, orientation: int
) -> None:
    network = write_painted(tmp_path / "painted.onnx")
    plain = write_pictures(tmp_path / "plain", 6)
    odd = Path(shutil.copytree(plain, tmp_path / "odd"))
    for path in sorted((odd / "images").iterdir()):
        turned(path, orientation)
        stored = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        assert not np.array_equal(stored, cv2.imread(str(path)))
    seen, known = Seen(), Seen()
    for one, other in zip(
        pictures(open_dataset(odd), seen), pictures(open_dataset(plain), known), strict=True
    ):
        np.testing.assert_array_equal(one[1], other[1])
    assert seen.digests == known.digests and not seen.skipped
    found, wanted = (
        detect_pictures(network, [folder / "images"]).pictures for folder in (odd, plain)
    )
    assert [one.detections for one in found] == [one.detections for one in wanted]
    assert sum(len(one.detections) for one in wanted) > 10
    scores = [evaluate(network, folder).map50 for folder in (odd, plain)]
    assert scores[0] == scores[1] > 0.5


def test_sixteen_bits_are_one_line_in_every_command(tmp_path: Path) -> None:
    network = write_painted(tmp_path / "painted.onnx")
    data = write_pictures(tmp_path / "data", 3)
    deep = data / "images" / "000.png"
    cv2.imwrite(str(deep), np.full((128, 128, 3), 900, np.uint16))
    with pytest.raises(DataError) as error:
        detect_pictures(network, [deep])
    one_line(error, "000.png", "16 bits a channel")
    judged = evaluate(network, data)
    assert judged.images == 2
    assert len(judged.skipped) == 1 and "16 bits a channel" in judged.skipped[0]
    seen = Seen()
    assert len(list(pictures(open_dataset(data), seen))) == 2
    assert len(seen.skipped) == 1 and "16 bits a channel" in seen.skipped[0]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_cut_off_image_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = picture(tmp_path / f"whole{suffix}", (200, 200))
    data = path.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: int(len(data) * share)])
    read_image(path)
    with pytest.raises(DataError) as error:
        read_image(cut)
    one_line(error, f"cut{suffix}")


def test_cut_off_jpeg_with_a_whole_thumbnail_is_noticed(tmp_path: Path) -> None:
    thumbnail = picture(tmp_path / "small.jpg", (16, 16)).read_bytes()
    whole = picture(tmp_path / "big.jpg", (200, 200)).read_bytes()
    exif = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "both.jpg"
    path.write_bytes(whole[:2] + exif + whole[2:])
    assert read_image(path).shape == (200, 200, 3)
    path.write_bytes((whole[:2] + exif + whole[2:]) + b"a film \xff\xda of the moment")
    assert read_image(path).shape == (200, 200, 3)
    path.write_bytes((whole[:2] + exif + whole[2:])[:-500])
    with pytest.raises(DataError, match="cut off"):
        read_image(path)
