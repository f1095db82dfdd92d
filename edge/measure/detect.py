"""Detections in pictures, folders of pictures and videos, drawn where that is wanted."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import read_image
from edge.data.items import images_in
from edge.detections import Detections
from edge.errors import ArtifactError, DataError
from edge.files import make_folder, refuse_input, write_file
from edge.options import count, option, share
from edge.reporting import say, track
from edge.runtime.detector import Detector
from edge.video.draw import draw
from edge.video.files import video_source
from edge.video.frame import SourceOptions

__all__ = ["DetectOptions", "DetectResult", "PictureDetections", "detect_pictures"]

Frame = NDArray[np.uint8]
_USUAL_FPS = 30.0


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise ValueError(f"{text!r} names no class; it takes names with commas between")
    return found


@dataclass(frozen=True)
class DetectOptions:
    """How `detect_pictures` looks at pictures.

    Attributes:
        score: leave out detections at or below this score; left out: what was fitted to the
            artifact, or 0.25
        iou: IoU above which two boxes of one class count as one object; left out: what the
            network was made for, or 0.45
        classes: report these classes alone, names with commas between
        multi_label: report every class of a box, not only its best
        draw: write the pictures with their boxes into this folder
        threads: CPU threads of onnxruntime; left out: every core
        exact: run INT8 on onnxruntime's own kernels, which round a little differently, instead of
            computing the Q/DQ graph as TensorRT does; `exact=False` in Python
    """

    score: float | None = option(None, metavar="S", check=share)
    iou: float | None = option(None, metavar="I", check=share)
    classes: tuple[str, ...] = option((), metavar="NAMES", check=_names)
    multi_label: bool = False
    draw: str | Path | None = option(None, metavar="DIR")
    threads: int | None = option(None, metavar="N", check=count)
    exact: bool = option(True, flag="--fast-int8")


@dataclass(frozen=True)
class PictureDetections:
    """What was found in one picture, or in one frame of a video.

    Attributes:
        image: the path as given.
        detections: `class`, `class_id`, `score` and `xyxy` in pixels, the highest score first.
        frame: number from 0 of the frame of a video; None of a picture.
        error: why a picture of a folder could not be read; None where it could.
    """

    image: str
    detections: tuple[dict[str, Any], ...]
    frame: int | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; `frame` and `error` only where they say something."""
        more = {"frame": self.frame, "error": self.error}
        found = {key: value for key, value in more.items() if value is not None}
        return {"image": self.image, **found, "detections": self.detections}


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

    @property
    def skipped(self) -> tuple[str, ...]:
        """A line for each picture that could not be read."""
        return tuple(one.error for one in self.pictures if one.error is not None)

    def to_json(self) -> list[Any]:
        """The pictures, as a list."""
        return list(self.pictures)


@dataclass(frozen=True)
class _Input:
    """A file to look at; one that was found in a folder may be damaged."""

    path: Path
    named: bool
    video: bool


def detect_pictures(
    artifact: str | Path, images: Sequence[str | Path], options: DetectOptions | None = None
) -> DetectResult:
    """Run an artifact over pictures and videos; of a folder over every image at any depth below it.

    A damaged picture of a folder is left out and told; one that was named is refused.

    Raises:
        DataError: a picture is missing or damaged, a folder holds none, or no such class.
        CameraError: a video cannot be read.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`; a file or folder
            that cannot be written.
    """
    asked = options or DetectOptions()
    inputs = _expand(images)
    targets = _targets(inputs, asked.draw)
    found: list[PictureDetections] = []
    with Detector.open(
        artifact,
        score=asked.score,
        iou=asked.iou,
        multi_label=asked.multi_label,
        threads=asked.threads,
        exact=asked.exact,
    ) as detector:
        title = ", ".join([Path(artifact).name, *detector.manifest.labels])
        look = _looking(detector, asked.classes)
        say(f"{title}, {detector.backend.name}")
        for one, target in track(zip(inputs, targets, strict=True), "detecting", len(inputs)):
            if one.video:
                found += _in_video(one.path, look, detector.spec.classes, target)
            else:
                found.append(_in_picture(one, look, detector.spec.classes, target))
        backend = detector.backend.name
    if all(one.error is not None for one in found):
        raise DataError(f"no picture can be read; the first: {found[0].error}")
    return DetectResult(title, backend, tuple(found))


def _looking(detector: Detector, classes: Sequence[str]) -> Callable[[Frame], Detections]:
    if not classes:
        return detector
    known = detector.spec.classes
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise DataError(
            f"--classes: {detector.spec.name} has no {', '.join(unknown)}; it has "
            f"{', '.join(known[:20])}{' ...' if len(known) > 20 else ''}"
        )
    wanted = [index for index, name in enumerate(known) if name in classes]

    def look(frame: Frame) -> Detections:
        found = detector(frame)
        return found[np.isin(found.class_id, wanted)]

    return look


def _in_picture(
    one: _Input,
    look: Callable[[Frame], Detections],
    classes: tuple[str, ...],
    target: Path | None,
) -> PictureDetections:
    try:
        frame = read_image(one.path)
    except DataError as error:
        if one.named:
            raise
        return PictureDetections(str(one.path), (), error=str(error))
    detections = look(frame)
    if target is not None:
        done, data = cv2.imencode(".jpg", draw(frame, detections, classes))
        if not done:
            raise ArtifactError(f"{target}: OpenCV cannot encode {frame.shape} as JPEG")
        write_file(target, data.tobytes())
    return PictureDetections(str(one.path), tuple(detections.to_json(classes)))


def _in_video(
    path: Path,
    look: Callable[[Frame], Detections],
    classes: tuple[str, ...],
    target: Path | None,
) -> list[PictureDetections]:
    found: list[PictureDetections] = []
    writer: cv2.VideoWriter | None = None
    part = None if target is None else target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        with video_source(path, SourceOptions(fast=True)) as source:
            source.open()
            for number, frame in enumerate(source):
                detections = look(frame.image)
                listed = tuple(detections.to_json(classes))
                found.append(PictureDetections(str(path), listed, frame=number))
                if part is None:
                    continue
                if writer is None:
                    writer = _open_writer(part, frame.image.shape, source.fps or _USUAL_FPS)
                writer.write(draw(frame.image, detections, classes))
            if source.note:
                say(f"{path}: {source.note}")
        if writer is not None and part is not None and target is not None:
            writer.release()
            refuse_input(target)
            os.replace(part, target)
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink()
    if not found:
        raise DataError(f"{path}: a video without a frame")
    return found


def _open_writer(path: Path, shape: tuple[int, ...], fps: float) -> cv2.VideoWriter:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (shape[1], shape[0]))
    if not writer.isOpened():
        raise ArtifactError(f"{path.parent}: OpenCV cannot write a video there")
    return writer


def _expand(images: Sequence[str | Path]) -> list[_Input]:
    found: list[_Input] = []
    for image in map(Path, images):
        if not image.exists():
            raise DataError(f"{image}: no such image, video or folder")
        if image.is_dir():
            found += [_Input(path, named=False, video=False) for path in images_in(image)]
        else:
            video = not cv2.haveImageReader(str(image)) and _is_video(image)
            found.append(_Input(image, named=True, video=video))
    if not found:
        raise ValueError("nothing to look at: name at least one image, video or folder")
    return found


def _is_video(path: Path) -> bool:
    capture = cv2.VideoCapture(str(path))
    try:
        return bool(capture.isOpened())
    finally:
        capture.release()


def _targets(inputs: Sequence[_Input], folder: str | Path | None) -> Sequence[Path | None]:
    """A file to draw for each input; a second one of the same name gets a number."""
    if folder is None:
        return [None] * len(inputs)
    folder = make_folder(folder)
    names = _unique(one.path.stem for one in inputs)
    kinds = ("mp4" if one.video else "jpg" for one in inputs)
    return [folder / f"{name}.detected.{kind}" for name, kind in zip(names, kinds, strict=True)]


def _unique(names: Iterator[str]) -> Iterator[str]:
    taken: set[str] = set()
    for name in names:
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(free)
        yield free
