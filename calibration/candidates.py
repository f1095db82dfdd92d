"""Pictures to choose calibration images from; frames of a video or camera lie on the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import open_dataset
from edge.data.items import Dataset, make_item, thin
from edge.errors import DataError
from edge.files import make_folder
from edge.reporting import track
from edge.video.disk import need_room
from edge.video.signals import interrupting
from edge.video.sources import SourceOptions, make_source, public_name

__all__ = ["MOST_BYTES", "open_candidates"]

# Of all frames together: some 700 of 1280x720.
MOST_BYTES = 1 << 30


@contextmanager
def open_candidates(
    data: str | Path, most: int, beside: str | Path, most_bytes: int = MOST_BYTES
) -> Iterator[Dataset]:
    """Open at most `most` pictures of a set, spread evenly, or frames of a video or camera.

    Frames of a source lie in a hidden folder beside `beside` as long as the context lasts, and
    take no more than `most_bytes` there, nor the disk's last room. They are deleted however it
    ends; only a killed process leaves them.

    Raises:
        DataError, CameraError: `data` cannot be opened, or gives no frame.
    """
    word = str(data)
    if word.startswith("scenes") or Path(word).is_dir() or word.endswith(".json"):
        yield open_dataset(data, limit=most)
        return
    parent = make_folder(Path(beside).absolute().parent)
    with interrupting(), _hidden(parent) as folder:
        yield _recorded(word, most, _Frames(folder, most, most_bytes))


@contextmanager
def _hidden(parent: Path) -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(dir=parent, prefix=".frames-")
    except OSError as error:
        raise DataError(f"{parent}: cannot be written: {error.strerror}") from error
    with folder as name:
        yield Path(name)


class _Frames:
    """Frames as PNG files, evenly spread over all that went by: when room ends, every second one
    goes, and of those to come only every second one is taken.

    Attributes:
        stride: of so many frames one is taken.
    """

    def __init__(self, folder: Path, most: int, most_bytes: int) -> None:
        self.folder, self.stride = folder, 1
        self._most, self._most_bytes = most, most_bytes
        self._kept: list[tuple[int, Path, int]] = []

    def add(self, index: int, image: NDArray[np.uint8]) -> None:
        """Take frame number `index`, if the stride meets it."""
        if index % self.stride:
            return
        path = self.folder / f"{index:06d}.png"
        try:
            need_room(self.folder)
            path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be written: {error.strerror}") from error
        self._kept.append((index, path, path.stat().st_size))
        while len(self._kept) > 1 and self._full():
            self._halve()

    def _full(self) -> bool:
        size = sum(each for _, _, each in self._kept)
        return len(self._kept) > self._most or size > self._most_bytes

    def _halve(self) -> None:
        self.stride *= 2
        for index, path, _ in self._kept:
            if index % self.stride:
                path.unlink()
        self._kept = [one for one in self._kept if not one[0] % self.stride]

    def paths(self) -> list[Path]:
        """Return the files, in the order of the frames."""
        return [path for _, path, _ in self._kept]


def _recorded(word: str, most: int, frames: _Frames) -> Dataset:
    """Write frames of a source as files: of a video evenly spread, of a camera one a second."""
    source = make_source(word, SourceOptions(fast=Path(word).is_file()))
    source.open()
    total = _frames_of(word)
    frames.stride = max(1, total // most, round(source.fps or 1) if source.live else 1)
    total = total or most * frames.stride
    with closing(source):
        for index in track(range(total), "recording", total):
            frame = source.read()
            if frame is None:
                break
            frames.add(index, frame.image)
    files = frames.paths()
    if not files:
        raise DataError(f"{public_name(word)}: it gave no frame")
    items = tuple(make_item(path, [])[0] for path in thin(files, most))
    return Dataset(public_name(word), "images", (), items, public_name(word))


def _frames_of(word: str) -> int:
    if not Path(word).is_file():
        return 0
    capture = cv2.VideoCapture(word)
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()
