"""Detections in pictures and folders of pictures, drawn where that is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import read_image
from edge.data.items import images_in
from edge.errors import ArtifactError, DataError
from edge.files import make_folder, write_file
from edge.options import count, option, share
from edge.reporting import say, track
from edge.runtime.detector import Detector
from edge.video.draw import draw

__all__ = ["DetectOptions", "DetectResult", "PictureDetections", "detect_pictures"]


@dataclass(frozen=True)
class DetectOptions:
    """How `detect_pictures` looks at pictures.

    Attributes:
        score: leave out detections at or below this score; left out: what was fitted to the
            artifact, or 0.25
        iou: IoU above which two boxes of one class count as one object; left out: what the
            network was made for, or 0.45
        multi_label: report every class of a box, not only its best
        draw: write the pictures with their boxes into this folder
        threads: CPU threads of onnxruntime; left out: every core
        exact: compute a Q/DQ graph as TensorRT does; --fast-int8 takes onnxruntime's own INT8
            kernels, which round a little differently
    """

    score: float | None = option(None, metavar="S", check=share)
    iou: float | None = option(None, metavar="I", check=share)
    multi_label: bool = False
    draw: str | Path | None = option(None, metavar="DIR")
    threads: int | None = option(None, metavar="N", check=count)
    exact: bool = option(True, flag="--fast-int8")


@dataclass(frozen=True)
class PictureDetections:
    """What was found in one picture.

    Attributes:
        image: the path as given.
        detections: `class`, `class_id`, `score` and `xyxy` in pixels, the highest score first.
    """

    image: str
    detections: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class DetectResult:
    """What `detect_pictures` found, picture by picture.

    Attributes:
        artifact: its file name and labels.
        backend: what ran it.
    """

    artifact: str
    backend: str
    pictures: tuple[PictureDetections, ...]

    def to_json(self) -> list[Any]:
        """The pictures, as a list."""
        return list(self.pictures)


def detect_pictures(
    artifact: str | Path, images: Sequence[str | Path], options: DetectOptions | None = None
) -> DetectResult:
    """Run an artifact over pictures; of a folder over every image at any depth below it.

    Raises:
        DataError: a picture is missing or damaged, or a folder holds none.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`; a file or folder
            that cannot be written.
    """
    asked = options or DetectOptions()
    paths = _expand(images)
    targets = _targets(paths, asked.draw)
    found: list[PictureDetections] = []
    with Detector.open(
        artifact,
        score=asked.score,
        iou=asked.iou,
        multi_label=asked.multi_label,
        threads=asked.threads,
        exact=asked.exact,
    ) as detector:
        classes = detector.spec.classes
        title = ", ".join([Path(artifact).name, *detector.manifest.labels])
        say(f"{title}, {detector.backend.name}")
        for path, target in track(zip(paths, targets, strict=True), "detecting", len(paths)):
            frame = read_image(path)
            detections = detector(frame)
            found.append(PictureDetections(str(path), tuple(detections.to_json(classes))))
            if target is not None:
                _write_jpeg(target, draw(frame, detections, classes))
    return DetectResult(title, detector.backend.name, tuple(found))


def _expand(images: Sequence[str | Path]) -> list[Path]:
    paths: list[Path] = []
    for image in map(Path, images):
        if not image.exists():
            raise DataError(f"{image}: no such image or folder")
        paths.extend(images_in(image) if image.is_dir() else [image])
    if not paths:
        raise ValueError("nothing to look at: name at least one image or folder")
    return paths


def _targets(paths: Sequence[Path], folder: str | Path | None) -> Sequence[Path | None]:
    """A picture for each path; a second one of the same name gets a number."""
    if folder is None:
        return [None] * len(paths)
    folder = make_folder(folder)
    return [folder / f"{name}.detected.jpg" for name in _unique(path.stem for path in paths)]


def _unique(names: Iterator[str]) -> Iterator[str]:
    taken: set[str] = set()
    for name in names:
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(free)
        yield free


def _write_jpeg(target: Path, picture: NDArray[np.uint8]) -> None:
    done, data = cv2.imencode(".jpg", picture)
    if not done:
        raise ArtifactError(f"{target}: OpenCV cannot encode {picture.shape} as JPEG")
    write_file(target, data.tobytes())
