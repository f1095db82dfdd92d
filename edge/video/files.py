"""Files, folders and the built-in world, at their own pace or as fast as they can be read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import cv2
import numpy as np

from edge.data.datasets import read_image
from edge.data.items import images_in
from edge.data.world.world import SceneStream
from edge.errors import CameraError, DataError
from edge.video.frame import MAX_SIDE, GuardedSource, Image, SourceOptions

__all__ = ["PacedSource", "folder_source", "scene_source", "video_source"]

# Pictures, None where one is damaged, with their seconds from the start; returns a remark.
Pictures = Generator["tuple[Image | None, float]", None, str]
# Later than this, after a suspend or on a slow disk, the playing begins anew at this picture.
_LATE_S = 1.0
_USUAL_FPS = 30.0


class PacedSource(GuardedSource):
    """A `Source` of pictures that a generator gives.

    Args:
        name: for people.
        pictures: called when the source is opened; gives the pictures and the nominal frames a
            second.
        pace: give each picture at its own time, as a camera does, and be `live`.
    """

    def __init__(
        self, name: str, pictures: Callable[[], tuple[Pictures, float | None]], pace: bool
    ) -> None:
        super().__init__(name, live=pace)
        self._pictures = pictures
        self._stream: Pictures | None = None
        self._start: float | None = None

    def _connect(self) -> None:
        self._stream, self.fps = self._pictures()
        self._start, self.note = None, ""

    def _take(self) -> tuple[Image, float] | None:
        while (taken := self._next()) is not None:
            image, seconds = taken
            if image is None:
                self.damaged += 1
            elif not self.live:
                return image, time.monotonic()
            elif not self._wait(seconds):
                return None
            else:
                return image, time.monotonic()
        return None

    def _release(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _next(self) -> tuple[Image | None, float] | None:
        if self._stream is None or self._closed.is_set():
            return None
        try:
            return next(self._stream)
        except StopIteration as end:
            self.note = str(end.value or "")
            return None

    def _wait(self, seconds: float) -> bool:
        now = time.monotonic()
        if self._start is None or now - self._start - seconds > _LATE_S:
            self._start = now - seconds
        return not self._closed.wait(max(0.0, self._start + seconds - now))


def video_source(path: Path, options: SourceOptions) -> PacedSource:
    """Return the frames of a video file that OpenCV can read."""
    return PacedSource(str(path), lambda: _open_video(path, options.fps), not options.fast)


def _open_video(path: Path, fps: float | None) -> tuple[Pictures, float]:
    if not path.is_file():
        raise CameraError(f"{path}: there is no such video")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise CameraError(
            f"{path}: not a video that OpenCV can read, or it was cut off while it was written; "
            "try another player or record it again"
        )
    own = float(capture.get(cv2.CAP_PROP_FPS))
    rate = fps or (own if 0 < own <= 1000 else _USUAL_FPS)
    return _video(path, capture, rate, fps is None), rate


def _video(path: Path, capture: cv2.VideoCapture, rate: float, stamps: bool) -> Pictures:
    count, last = 0, -1.0
    try:
        while True:
            done, image = capture.read()
            if not done:
                return _early_end(path, count, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            seconds = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3 if stamps else -1.0
            # Some containers have no time stamps, or the same one for every frame.
            last = seconds if seconds > last else max(0.0, last + 1 / rate)
            yield np.asarray(image, np.uint8), last
            count += 1
    finally:
        capture.release()


def _early_end(path: Path, count: int, promised: int) -> str:
    # Containers round, and some players' cuts leave a frame or two.
    if count == 0 or promised - count > max(2, promised // 50):
        return f"{path}: ended after {count} of {promised} frames; the file is damaged or cut off"
    return ""


def folder_source(path: Path, options: SourceOptions) -> PacedSource:
    """Return one image, or all below a folder by name, at a pace only where `fps` names one."""
    pace = not options.fast and options.fps is not None
    return PacedSource(str(path), lambda: _open_folder(path, options.fps), pace)


def _open_folder(path: Path, fps: float | None) -> tuple[Pictures, float | None]:
    try:
        paths = images_in(path) if path.is_dir() else [path]
    except DataError as error:
        raise CameraError(str(error)) from error
    return _images(path, paths, fps or _USUAL_FPS), fps


def _images(name: Path, paths: list[Path], rate: float) -> Pictures:
    damaged: list[str] = []
    for index, path in enumerate(paths):
        try:
            image: Image | None = read_image(path)
        except DataError as error:
            image = None
            damaged.append(str(error))
        yield image, index / rate
    return f"{len(damaged)} images left out: {damaged[0]}" if damaged else ""


def scene_source(address: str, options: SourceOptions) -> PacedSource:
    """Return a drive through the built-in world.

    The address is `scenes://?seed=1&night=0.3&fps=30&size=720x1280&fast=1`, each part optional.

    Raises:
        CameraError: an unknown name or a value that does not fit.
    """
    query = dict(parse_qsl(urlsplit(address).query, keep_blank_values=True))
    try:
        height, width = (int(side) for side in query.pop("size", "720x1280").lower().split("x"))
        seed, night = int(query.pop("seed", 1)), float(query.pop("night", 0.3))
        fps = options.fps or float(query.pop("fps", _USUAL_FPS))
        fast = query.pop("fast", "0") not in ("", "0")
        if query:
            raise ValueError(f"unknown: {', '.join(query)}")
        hw = options.hw or (height, width)
        if not math.isfinite(fps) or max(hw) > MAX_SIDE:
            raise ValueError(f"at most {MAX_SIDE} pixels a side, and a finite rate")
        SceneStream(seed, hw, night, fps)
    except ValueError as error:
        raise CameraError(
            f"{address}: {error}; it takes scenes://?seed=1&night=0.3&fps=30&size=720x1280"
        ) from error

    def pictures() -> tuple[Pictures, float]:
        return _scenes(SceneStream(seed, hw, night, fps), fps), fps

    return PacedSource(address, pictures, not options.fast and not fast)


def _scenes(stream: SceneStream, fps: float) -> Pictures:
    for index, scene in enumerate(stream):
        yield scene.image, index / fps
    return ""
