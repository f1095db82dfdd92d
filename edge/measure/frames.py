"""Frames held in memory, so that a benchmark measures the detector and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.data.datasets import read_image
from edge.data.items import images_in
from edge.data.world.world import scene_set
from edge.errors import DataError

__all__ = ["hold_frames"]

Frame = NDArray[np.uint8]
_WORLD_HW = (720, 1280)


def hold_frames(source: str | Path | None, count: int) -> tuple[list[Frame], list[float]]:
    """At most `count` frames (H, W, 3) BGR uint8 and what decoding each took, milliseconds.

    Args:
        source: a video, an image or a folder of images; None: 1280x720 frames of the built-in
            world, whose rendering is no decoding and is not timed.

    Raises:
        DataError: the source is missing, damaged or empty.
    """
    if source is None:
        return [scene.image for scene in scene_set(count, 0, _WORLD_HW)], []
    frames: list[Frame] = []
    decode_ms: list[float] = []
    stream = _decoded(Path(source))
    while len(frames) < count:
        start = time.perf_counter()
        frame = next(stream, None)
        if frame is None:
            break
        decode_ms.append((time.perf_counter() - start) * 1e3)
        frames.append(frame)
    return frames, decode_ms


def _decoded(path: Path) -> Iterator[Frame]:
    if not path.exists():
        raise DataError(f"{path}: no such video, image or folder")
    if path.is_dir():
        # The list is made before the first frame is asked for: it is no part of decoding.
        return map(read_image, images_in(path))
    if cv2.haveImageReader(str(path)):
        return map(read_image, [path])
    return _video(path)


def _video(path: Path) -> Iterator[Frame]:
    capture = cv2.VideoCapture(str(path))
    try:
        ok, frame = capture.read()
        if not ok:
            raise DataError(f"{path}: neither an image nor a video that OpenCV can read")
        while ok:
            yield np.asarray(frame, np.uint8)
            ok, frame = capture.read()
    finally:
        capture.release()
